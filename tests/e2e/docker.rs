//! Docker with rvm as its runtime: dockerd of the system, or of `$RVM_TEST_ENGINE_ROOT`.

#[path = "engine/checkpoint.rs"]
mod checkpoint;
#[path = "engine/exec.rs"]
mod exec;
#[path = "engine/files.rs"]
mod files;
#[path = "engine/init.rs"]
mod init;
#[path = "engine/life.rs"]
mod life;
#[path = "engine/limits.rs"]
mod limits;
#[path = "engine/nested.rs"]
mod nested;
#[path = "engine/network.rs"]
mod network;
#[path = "engine/options.rs"]
mod options;
#[path = "engine/run.rs"]
mod run;
#[path = "engine/silent.rs"]
mod silent;

use rvm_tests::engine::docker::docker as engine;

/// Differences between the engines.
const IS_PODMAN: bool = false;
