//! The verbs, one a file: parse, load, act.

pub mod check;
pub mod checkpoint;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod exec_monitor;
pub mod features;
pub mod fork;
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
pub mod template;
pub mod update;

use std::future::Future;
use std::os::fd::RawFd;

use anyhow::Context;
use rvm_protocol::failure::Failure;
use rvm_sandbox::codes;
use rvm_sandbox::guest::descriptors;
use rvm_sys::fault_point;
use tokio::runtime::Runtime;

use crate::cli::Verb;

/// Marks the descriptors that the caller has left open close-on-exec, but those that the verb
/// passes on: none of the others may reach a monitor, a machine or a hook.
pub fn keep_descriptors(verb: &Verb) -> anyhow::Result<()> {
    let listening = create::listening_sockets();
    let with_listening = |preserved: u32| (listening.saturating_add(preserved), Vec::new());
    let (count, others): (u32, Vec<RawFd>) = match verb {
        Verb::Create(args) => with_listening(args.preserve_fds),
        Verb::Run(args) => with_listening(args.create.preserve_fds),
        Verb::Restore(args) => with_listening(args.create.preserve_fds),
        Verb::Exec(args) => (args.preserve_fds, Vec::new()),
        Verb::Monitor(args) => (
            args.listen_fds.saturating_add(args.preserve_fds),
            vec![args.ready],
        ),
        Verb::ExecMonitor(args) => (args.preserve_fds, vec![args.ready, args.process]),
        _ => (0, Vec::new()),
    };
    let kept: Vec<RawFd> = descriptors::numbers(count).chain(others).collect();
    rvm_sys::inherited_fds::close_on_exec_except(&kept)
        .context("cannot mark inherited descriptors close-on-exec")
}

/// Runs a future to its end on this thread.
fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(event_loop()?.block_on(work))
}

/// What runs futures on this thread. A verb that makes a container makes this first: without it,
/// the container could not be removed again.
fn event_loop() -> anyhow::Result<Runtime> {
    fault_point!("verb.event-loop")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("cannot start the event loop")
}

/// An error as a monitor reports it to its starter.
fn failure(error: &anyhow::Error) -> Failure {
    Failure::new(codes::of(error.as_ref()), format!("{error:#}"))
}
