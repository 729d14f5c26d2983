//! The program's description of itself: `-v` for people, `-info` for containerd.

use std::io::{self, Write as _};

use anyhow::Context as _;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message as _;

const NAME: &str = "io.containerd.rvm.v2";

/// Prints the version in the format of runc's shim.
pub fn print_version() -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    writeln!(
        io::stdout(),
        "containerd-shim-rvm-v2:\n  Version:  {version}"
    )?;
    Ok(())
}

/// Answers containerd's `-info` with an encoded `RuntimeInfo`.
pub fn print() -> anyhow::Result<()> {
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let bytes = info.write_to_bytes().context("cannot encode the answer")?;
    io::stdout()
        .write_all(&bytes)
        .context("cannot answer containerd")
}
