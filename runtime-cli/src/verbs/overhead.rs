//! rvm overhead

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use rvm_sandbox::cgroup::{limit_mib, overhead};
use rvm_sandbox::engine::{Engine, choice};

use super::update::bytes;
use crate::cli::{Global, OverheadArgs};

/// Prints the `overhead` field of a RuntimeClass.
pub fn run(global: &Global, args: &OverheadArgs) -> anyhow::Result<ExitCode> {
    let config = global.config()?;
    let memory_mib = match &args.memory {
        None => config.memory_mib,
        Some(text) => {
            let bytes = bytes(text).context("invalid value for --memory")?;
            let Some(mib) = limit_mib(bytes) else {
                bail!("invalid value for --memory: {text} is no limit");
            };
            mib
        }
    };
    let text = describe(choice::choose(&config)?.engine, memory_mib);
    write!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn describe(engine: &Engine, memory_mib: u64) -> String {
    let overhead = overhead(engine.overhead, memory_mib);
    format!(
        "# Of pods that use up to {memory_mib} MiB, on the {} engine.\n\
         overhead:\n  podFixed:\n    memory: {}Mi\n    cpu: {}m\n",
        engine.kind, overhead.memory_mib, overhead.cpu_millis
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_sandbox::config::EngineKind;
    use rvm_sandbox::engine::of;

    #[test]
    fn a_larger_pod_and_a_slower_engine_cost_more() {
        let small = describe(of(EngineKind::Kvm), 512);
        let expected = "overhead:\n  podFixed:\n    memory: 124Mi\n    cpu: 100m\n";
        assert!(small.ends_with(expected), "{small}");
        let large = describe(of(EngineKind::Kvm), 4096);
        assert!(large.contains("memory: 265Mi"), "{large}");
        let class = include_str!("../../../deploy/kubernetes/runtimeclass.yaml");
        let (_, stated) = large.split_once('\n').unwrap();
        assert!(class.contains(stated), "{class}");
        let slow = describe(of(EngineKind::Qemu), 512);
        assert!(slow.contains("memory: 468Mi"), "{slow}");
    }
}
