//! Which engine is taken, and why.

use std::fmt;

use super::{Engine, Verdict, of};
use crate::config::{Config, EngineChoice, EngineKind};

/// No engine can run here.
#[derive(Debug, thiserror::Error)]
#[error("no engine can run machines here: {0}; `rvm check` says what to do")]
pub struct NoEngine(Reasons);

/// Why each engine cannot run here.
#[derive(Debug, Default)]
struct Reasons(Vec<(EngineKind, String)>);

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, reason)) in self.0.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(f, "{separator}{kind}: {reason}")?;
        }
        Ok(())
    }
}

/// An engine, and the reason for it in one line.
pub struct Choice {
    /// The engine.
    pub engine: &'static Engine,
    /// Why this one.
    pub reason: String,
}

/// Takes the engine that the configuration names, or the first that works.
pub fn choose(config: &Config) -> Result<Choice, NoEngine> {
    match config.engine {
        EngineChoice::Only(kind) => Ok(Choice {
            engine: of(kind),
            reason: "the configuration asks for it".to_owned(),
        }),
        EngineChoice::Auto => decide(
            EngineKind::ALL
                .into_iter()
                .map(|kind| (kind, (of(kind).probe)(config))),
        ),
    }
}

/// The first engine that works. An engine is preferred to those after it, so what speaks for one is
/// why those before it do not work.
fn decide(verdicts: impl Iterator<Item = (EngineKind, Verdict)>) -> Result<Choice, NoEngine> {
    let mut refused = Reasons::default();
    for (kind, verdict) in verdicts {
        match verdict {
            Ok(reason) => {
                let earlier: Vec<String> = refused.0.into_iter().map(|(_, why)| why).collect();
                return Ok(Choice {
                    engine: of(kind),
                    reason: match earlier.is_empty() {
                        true => reason,
                        false => earlier.join("; "),
                    },
                });
            }
            Err(reason) => refused.0.push((kind, reason)),
        }
    }
    Err(NoEngine(refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(kvm: Verdict, qemu: Verdict) -> Result<Choice, NoEngine> {
        decide([(EngineKind::Kvm, kvm), (EngineKind::Qemu, qemu)].into_iter())
    }

    #[test]
    fn an_engine_that_works_is_taken_before_those_after_it() {
        let choice = decided(Ok("fast".to_owned()), Ok("there".to_owned()));
        let choice = choice.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(choice.engine.kind, EngineKind::Kvm);
        assert_eq!(choice.reason, "fast");
    }

    #[test]
    fn a_later_engine_is_explained_by_what_the_earlier_ones_lack() {
        let choice = decided(Err("there is no /dev/kvm".to_owned()), Ok(String::new()));
        let choice = choice.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(choice.engine.kind, EngineKind::Qemu);
        assert_eq!(choice.reason, "there is no /dev/kvm");
    }

    #[test]
    fn without_any_every_reason_is_given() {
        let kvm = Err("there is no /dev/kvm".to_owned());
        let qemu = Err("/usr/bin/qemu-system-x86_64 is not installed".to_owned());
        let message = decided(kvm, qemu).err().unwrap().to_string();
        assert_eq!(
            message,
            "no engine can run machines here: kvm: there is no /dev/kvm; qemu: \
             /usr/bin/qemu-system-x86_64 is not installed; `rvm check` says what to do"
        );
    }
}
