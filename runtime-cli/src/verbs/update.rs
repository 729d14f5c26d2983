//! rvm update

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use oci_spec::runtime::LinuxResources;
use rvm_sandbox::container::update;
use serde_json::{Map, Value, json};

use super::block_on;
use crate::cli::{Global, UpdateArgs};

/// The largest object that is read, in bytes.
const MAX_RESOURCES: u64 = 1 << 20;

/// Changes the limits of a container.
pub fn run(global: &Global, args: &UpdateArgs) -> anyhow::Result<ExitCode> {
    let container = global.store().open(&args.id)?;
    let change = match &args.resources {
        Some(path) => read(path)?,
        None => from_options(args)?,
    };
    block_on(update::update(&container, &change))??;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> anyhow::Result<LinuxResources> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin()
            .take(MAX_RESOURCES)
            .read_to_string(&mut text),
        _ => std::fs::File::open(path)
            .and_then(|file| file.take(MAX_RESOURCES).read_to_string(&mut text)),
    };
    let what = || format!("cannot read the limits from {}", path.display());
    read.with_context(what)?;
    serde_json::from_str(&text).with_context(what)
}

fn from_options(args: &UpdateArgs) -> anyhow::Result<LinuxResources> {
    for (option, value) in [
        ("--l3-cache-schema", &args.l3_cache_schema),
        ("--mem-bw-schema", &args.mem_bw_schema),
    ] {
        if value.is_some() {
            bail!("{option} is not supported: a virtual machine cannot manage the host's caches");
        }
    }
    for (option, value) in [
        ("--kernel-memory", &args.kernel_memory),
        ("--kernel-memory-tcp", &args.kernel_memory_tcp),
    ] {
        if value.is_some() {
            tracing::warn!("{option} has no effect");
        }
    }
    let bytes = |option: &str, text: &Option<String>| {
        let parsed = text.as_deref().map(bytes).transpose();
        parsed.with_context(|| format!("invalid value for {option}"))
    };
    let resources = json!({
        "memory": present([
            ("limit", bytes("--memory", &args.memory)?.map(Value::from)),
            ("reservation", bytes("--memory-reservation", &args.memory_reservation)?.map(Value::from)),
            ("swap", bytes("--memory-swap", &args.memory_swap)?.map(Value::from)),
        ]),
        "cpu": present([
            ("shares", args.cpu_share.map(Value::from)),
            ("quota", args.cpu_quota.map(Value::from)),
            ("burst", args.cpu_burst.map(Value::from)),
            ("period", args.cpu_period.map(Value::from)),
            ("realtimeRuntime", args.cpu_rt_runtime.map(Value::from)),
            ("realtimePeriod", args.cpu_rt_period.map(Value::from)),
            ("cpus", args.cpuset_cpus.clone().map(Value::from)),
            ("mems", args.cpuset_mems.clone().map(Value::from)),
            ("idle", args.cpu_idle.map(Value::from)),
        ]),
        "blockIO": present([("weight", args.blkio_weight.map(Value::from))]),
        "pids": present([("limit", args.pids_limit.map(Value::from))]),
    });
    Ok(serde_json::from_value(resources)?)
}

/// An object of the fields that have a value.
fn present<const N: usize>(fields: [(&str, Option<Value>); N]) -> Map<String, Value> {
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// Reads a number of bytes as Docker's tools write it: a number, perhaps with a fraction, and a
/// unit that is a power of 1024; or -1.
pub fn bytes(text: &str) -> anyhow::Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit = unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit);
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => bail!("{text:?} is no number of bytes, such as 512, 256m or 1.5g"),
    };
    let number: f64 = number
        .parse()
        .with_context(|| format!("{text:?} is no number of bytes, such as 512, 256m or 1.5g"))?;
    let bytes = number * 1024_f64.powi(power);
    if bytes > i64::MAX as f64 {
        bail!("{text:?} is too large");
    }
    Ok(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        for (text, expected) in [
            ("-1", -1),
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("64M", 64 << 20),
            ("64MiB", 64 << 20),
            ("1 gb", 1 << 30),
            ("1.5g", 3 << 29),
        ] {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "m", "-2", "1x", "1.2.3", "9999999p"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_options_that_are_given_become_resources() {
        let args = UpdateArgs {
            memory: Some("64m".to_owned()),
            cpu_quota: Some(-1),
            pids_limit: Some(7),
            ..UpdateArgs::default()
        };
        let resources = from_options(&args).unwrap();
        assert_eq!(
            serde_json::to_value(resources).unwrap(),
            json!({ "memory": { "limit": 64 << 20 }, "cpu": { "quota": -1 },
                    "blockIO": {}, "pids": { "limit": 7 } })
        );
    }

    #[test]
    fn cache_and_bandwidth_schemas_are_refused() {
        let args = UpdateArgs {
            l3_cache_schema: Some("L3:0=f".to_owned()),
            ..UpdateArgs::default()
        };
        let error = from_options(&args).unwrap_err().to_string();
        assert!(error.contains("--l3-cache-schema"), "{error}");
    }
}
