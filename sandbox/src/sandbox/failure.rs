//! How a guest's failure is explained: by stage, time, engine, reason and the end of its console.

use std::path::Path;
use std::time::Duration;

use crate::config::EngineKind;
use crate::engine::{MachineEnd, console_tail};

/// A guest that ended, or whose agent did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "the guest failed during {stage}, after {after:.1?} on the {engine} engine: {how}{console}"
)]
pub struct GuestFailure {
    stage: &'static str,
    after: Duration,
    engine: EngineKind,
    how: String,
    console: String,
}

impl GuestFailure {
    /// A guest failed during `stage` in the way that `how` says. The end of `console` is read here.
    pub(super) fn new(
        stage: &'static str,
        after: Duration,
        engine: EngineKind,
        how: String,
        console: &Path,
    ) -> Box<Self> {
        Box::new(Self {
            stage,
            after,
            engine,
            how,
            console: console_tail(console),
        })
    }
}

/// What the end of a machine during a container's life means, with the end of its console.
pub(super) fn explain_end(end: &MachineEnd, console: &Path) -> String {
    let console = console_tail(console);
    format!("the sandbox ended unexpectedly: {end}{console}")
}

/// What it means that a guest has not answered for `limit`, with the end of its console.
pub(super) fn explain_silence(limit: Duration, console: &Path) -> String {
    let console = console_tail(console);
    format!(
        "the guest does not answer: its agent has said nothing for {} s; SIGKILL ends its \
         containers all the same{console}",
        limit.as_secs()
    )
}
