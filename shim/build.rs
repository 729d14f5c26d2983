//! Generates the messages of `proto/` without protoc, and compiles the pause program.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const PAUSE: &str = "pause/pause.rs";

/// The files of `proto/`, each of which becomes a module.
const PROTOCOLS: [&str; 3] = ["cri", "runctypes", "runtimeoptions"];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    generate_messages(&out)?;
    compile_pause(&out.join("pause"))
}

fn generate_messages(out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    ttrpc_codegen::Codegen::new()
        .inputs(PROTOCOLS.map(|name| format!("proto/{name}.proto")))
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().lite_runtime(true))
        .run()?;
    // The generated files begin with inner attributes, so they can be modules but not included.
    let modules = PROTOCOLS.map(|name| format!("pub mod {name};\n"));
    Ok(fs::write(out.join("modules.rs"), modules.concat())?)
}

/// Compiles the program that `src/sandbox_bundle/pause.rs` embeds. It has no standard library and
/// no C library, so cargo cannot build it together with the shim.
fn compile_pause(program: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PAUSE}");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .args([PAUSE, "--crate-type=bin", "--edition=2024"])
        .arg("--target")
        .arg(variable("TARGET")?)
        .arg("-o")
        .arg(program)
        .args(["-Copt-level=s", "-Cpanic=abort", "-Cforce-unwind-tables=no"])
        .args(["-Cstrip=symbols", "-Crelocation-model=static"])
        .arg("-Clink-args=-nostdlib -static -Wl,--build-id=none");
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = OsString::from("-Clinker=");
        option.push(linker);
        rustc.arg(option);
    }
    match rustc.status()?.success() {
        true => Ok(()),
        false => Err(format!("cannot compile {PAUSE}").into()),
    }
}

fn variable(name: &str) -> Result<OsString, Box<dyn Error>> {
    Ok(env::var_os(name).ok_or_else(|| format!("cargo does not set {name}"))?)
}
