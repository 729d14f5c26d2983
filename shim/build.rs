//! Generates the messages of `proto/cri.proto`, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/cri.proto");
    ttrpc_codegen::Codegen::new()
        .input("proto/cri.proto")
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().lite_runtime(true))
        .run()?;
    // The generated file begins with inner attributes, so it can be a module but not included.
    let modules = std::path::Path::new(&std::env::var("OUT_DIR")?).join("modules.rs");
    std::fs::write(modules, "pub mod cri;\n")?;
    Ok(())
}
