//! The verbs, one a file: parse, load, act.

pub mod check;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod exec_monitor;
pub mod features;
pub mod kill;
pub mod list;
pub mod monitor;
pub mod overhead;
pub mod pause;
pub mod ps;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod stats;
pub mod unsupported;
pub mod update;

use std::future::Future;

use anyhow::Context;
use rvm_protocol::failure::Failure;
use rvm_sandbox::codes;

/// Runs a future to its end on this thread.
fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("cannot start the event loop")?;
    Ok(runtime.block_on(work))
}

/// An error as a monitor reports it to its starter.
fn failure(error: &anyhow::Error) -> Failure {
    Failure::new(codes::of(error.as_ref()), format!("{error:#}"))
}
