//! The host's side of a sandbox.
//!
//! Everything that rvm's command line and its containerd shim have in common: the state of
//! containers on disk, the size of machines, the translation of config.json, the shared directory,
//! standard streams, and the engines that run machines. See the crate's README for what it may
//! assume.

// The rooms, bottom first: a room uses those above it in this list, never one below. A test of the
// repository checks it. A room that only this crate uses is private.
pub mod host;
pub mod config;
mod sizing;
pub mod cgroup;
mod share;
pub mod disk;
mod dir;
pub mod network;
pub mod checkpoint;
pub mod engine;
pub mod spec;
pub mod guest;
pub mod sandbox;
pub mod state;
mod hooks;
pub mod anchor;
pub mod control;
pub mod container;
pub mod monitor;
pub mod codes;
pub mod check;

/// What a fuzzer calls, with bytes that a guest, a process that a guest has taken over, a file or a
/// user could send: one function for each file in fuzz/fuzz_targets. None may panic.
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing {
    pub use crate::cgroup::systemd_hostile::replies as systemd;
    pub use crate::control::hostile::messages as control;
    pub use crate::engine::receive_any as qmp;
    pub use crate::spec::hostile::configuration as config_json;
    pub use crate::state::hostile::files as state_files;

    /// An agent's answers, and what is made of them.
    pub fn agent_answers(input: &[u8]) {
        let told = crate::guest::agent::hostile::answers(input);
        for list in &told.processes {
            let _ = crate::anchor::shown(list);
        }
        told.clocks
            .into_iter()
            .for_each(crate::sandbox::compare_clocks);
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn every_target_takes_its_corpus() {
            rvm_fuzz_input::replay(
                "rvm_sandbox",
                &[
                    ("agent_answers", super::agent_answers),
                    ("config_json", super::config_json),
                    ("control", super::control),
                    ("qmp", super::qmp),
                    ("state_files", super::state_files),
                    ("systemd", super::systemd),
                ],
            );
        }
    }
}
