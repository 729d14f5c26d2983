//! Which engine is taken, and why.

use rvm_protocol::vmm::ProbeReport;

use super::kvm::Kvm;
use super::qemu::Qemu;
use super::{Engine, EngineKind, probe};
use crate::config::{Config, EngineChoice};

/// No engine can run here.
#[derive(Debug, thiserror::Error)]
#[error("no engine can run machines here: kvm: {kvm}; qemu: {qemu}; `rvm check` says what to do")]
pub struct NoEngine {
    kvm: String,
    qemu: String,
}

/// An engine, and what speaks for it in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which one.
    pub kind: EngineKind,
    /// Why.
    pub reason: String,
}

/// Takes the engine that the configuration names, or finds one.
pub fn choose(config: &Config) -> Result<Choice, NoEngine> {
    let configured = |kind| {
        Ok(Choice {
            kind,
            reason: "the configuration asks for it".to_owned(),
        })
    };
    match config.engine {
        EngineChoice::Kvm => configured(EngineKind::Kvm),
        EngineChoice::Qemu => configured(EngineKind::Qemu),
        EngineChoice::Auto => decide(&probe::cached(&config.vmm), config.qemu.exists(), config),
    }
}

fn decide(report: &ProbeReport, has_qemu: bool, config: &Config) -> Result<Choice, NoEngine> {
    let verdict = describe(report);
    if let ProbeReport::Usable { .. } = report {
        return Ok(Choice {
            kind: EngineKind::Kvm,
            reason: verdict,
        });
    }
    if has_qemu {
        return Ok(Choice {
            kind: EngineKind::Qemu,
            reason: verdict,
        });
    }
    let qemu = format!("{} is not installed", config.qemu.display());
    Err(NoEngine { kvm: verdict, qemu })
}

/// What the probe found, in one line.
pub fn describe(report: &ProbeReport) -> String {
    match report {
        ProbeReport::Usable { nanoseconds, mips } => format!(
            "KVM works at hardware speed ({mips} million instructions a second, probed in {} µs)",
            nanoseconds / 1000
        ),
        ProbeReport::Slow { mips } => format!(
            "KVM here emulates a guest's kernel code in software ({mips} million instructions a \
             second), which is too slow for a kernel"
        ),
        ProbeReport::Wrong { reason } => format!(
            "KVM here emulates a guest's kernel code in software and cannot do all of it: {reason}"
        ),
        ProbeReport::Unavailable { reason } => reason.clone(),
    }
}

/// The engine of this name.
pub fn engine(kind: EngineKind, config: &Config) -> Box<dyn Engine> {
    match kind {
        EngineKind::Kvm => Box::new(Kvm),
        EngineKind::Qemu => Box::new(Qemu {
            program: config.qemu.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::load(None).unwrap()
    }

    #[test]
    fn a_kvm_at_hardware_speed_is_taken() {
        let report = ProbeReport::Usable {
            nanoseconds: 500_000,
            mips: 3000,
        };
        assert_eq!(
            decide(&report, true, &config()).unwrap().kind,
            EngineKind::Kvm
        );
    }

    #[test]
    fn every_other_kvm_leads_to_qemu_and_the_reason_says_so() {
        for (report, word) in [
            (ProbeReport::Slow { mips: 1 }, "software"),
            (
                ProbeReport::Wrong {
                    reason: "INT3".to_owned(),
                },
                "INT3",
            ),
            (
                ProbeReport::Unavailable {
                    reason: "there is no /dev/kvm".to_owned(),
                },
                "/dev/kvm",
            ),
        ] {
            let choice = decide(&report, true, &config()).unwrap();
            assert_eq!(choice.kind, EngineKind::Qemu);
            assert!(choice.reason.contains(word), "{}", choice.reason);
        }
    }

    #[test]
    fn without_either_both_reasons_are_given() {
        let report = ProbeReport::Unavailable {
            reason: "there is no /dev/kvm".to_owned(),
        };
        let message = decide(&report, false, &config()).unwrap_err().to_string();
        assert!(
            message.contains("/dev/kvm") && message.contains("qemu-system-x86_64"),
            "{message}"
        );
    }
}
