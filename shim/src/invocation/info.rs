//! The program's description of itself: `-v` for people, `-info` for containerd.

use std::io::{self, Write as _};

use anyhow::Context as _;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use rvm_sandbox::spec::features;

use super::input;
use crate::options::Options;

const NAME: &str = "io.containerd.rvm.v2";

/// The type by which containerd knows the document of features.md, in JSON (its
/// `core/runtime/typeurl.go`).
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints the version in the format of runc's shim.
pub fn print_version() -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    writeln!(
        io::stdout(),
        "containerd-shim-rvm-v2:\n  Version:  {version}"
    )?;
    Ok(())
}

/// Answers containerd's `-info` with an encoded `RuntimeInfo`. containerd, and kubelet through it,
/// read from it what pods may ask for, such as user namespaces.
pub fn print() -> anyhow::Result<()> {
    let info = info(&input::read()?)?;
    let bytes = info.write_to_bytes().context("cannot encode the answer")?;
    io::stdout()
        .write_all(&bytes)
        .context("cannot answer containerd")
}

fn info(input: &[u8]) -> anyhow::Result<RuntimeInfo> {
    let options = Any::parse_from_bytes(input).context("cannot read the runtime's options")?;
    Options::parse(&options)?;
    let version = RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    let features = Any {
        type_url: FEATURES.to_owned(),
        value: features().to_string().into_bytes(),
        ..Default::default()
    };
    Ok(RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(version).into(),
        options: Some(options)
            .filter(|options| !options.type_url.is_empty())
            .into(),
        features: Some(features).into(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_answer_has_the_features_that_kubelet_asks_for() {
        let info = info(b"").unwrap();
        assert_eq!(info.name, NAME);
        assert!(info.options.is_none());
        let features = info.features.unwrap();
        assert_eq!(features.type_url, FEATURES);
        let features: Value = serde_json::from_slice(&features.value).unwrap();
        let has = |list: &Value, name: &str| list.as_array().unwrap().contains(&name.into());
        assert!(has(&features["mountOptions"], "rro"));
        assert!(has(&features["linux"]["namespaces"], "user"));
        assert_eq!(
            features["linux"]["mountExtensions"]["idmap"]["enabled"],
            true
        );
    }

    #[test]
    fn the_options_come_back_and_unknown_ones_are_an_error() {
        let options = |kind: &str| Any {
            type_url: kind.to_owned(),
            value: b"\x12\x06/c/rvm".to_vec(),
            ..Default::default()
        };
        let known = options("runtimeoptions.v1.Options");
        let answer = info(&known.write_to_bytes().unwrap()).unwrap();
        assert_eq!(answer.options.as_ref(), Some(&known));
        let other = options("windows.v1.Options").write_to_bytes().unwrap();
        assert!(info(&other).is_err());
        assert!(info(b"\xff").is_err());
    }
}
