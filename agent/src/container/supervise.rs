//! What happens when a process of a container ends, or the kernel kills one for memory.

use std::sync::Arc;
use std::time::Duration;

use rvm_protocol::{ExecId, ProcessId};
use tokio::sync::oneshot;

use super::state::State;
use super::{Container, Runtime};
use crate::cgroup::{CgroupError, Watch};
use crate::events::Event;
use crate::process::{Exit, Process};

/// How long the processes that outlive the init process may take to end once they were killed.
const LEFTOVERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Follows a container to the end of its init process.
pub fn init_process(runtime: &Runtime, container: &Arc<Container>, exit: oneshot::Receiver<Exit>) {
    let (runtime, container) = (runtime.clone(), container.clone());
    tokio::spawn(async move {
        let watch = container
            .cgroup
            .watch()
            .inspect_err(|error| log::warn!("container {}: {error}", container.id))
            .ok();
        let oom = || Event::Oom(container.id.clone());
        let mut kills = oom_kills(watch.as_ref());
        tokio::pin!(exit);
        let exit = loop {
            let killed = async {
                match &watch {
                    Some(watch) => watch.oom_kills_beyond(kills).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                exit = &mut exit => break exit,
                () = killed => {
                    kills = oom_kills(watch.as_ref());
                    runtime.events.publish(&oom());
                }
            }
        };
        // The reaper lives as long as the machine.
        let Ok(exit) = exit else { return };
        end_leftovers(&container).await;
        let all_kills = oom_kills(watch.as_ref());
        if all_kills > kills {
            runtime.events.publish(&oom());
        }
        let exit = Exit {
            oom_killed: all_kills > 0,
            ..exit
        };
        *container.lock_state() = State::Stopped;
        finish(&runtime, &container, None, &container.init, exit);
    });
}

fn oom_kills(watch: Option<&Watch>) -> u64 {
    watch.map_or(0, Watch::oom_kills)
}

/// Follows an exec'd process to its end.
pub fn exec_process(
    runtime: &Runtime,
    container: &Arc<Container>,
    id: &ExecId,
    process: &Arc<Process>,
    exit: oneshot::Receiver<Exit>,
) {
    let (runtime, container) = (runtime.clone(), container.clone());
    let (id, process) = (id.clone(), process.clone());
    tokio::spawn(async move {
        let Ok(exit) = exit.await else { return };
        finish(&runtime, &container, Some(id), &process, exit);
    });
}

/// Records the end of a process and publishes it.
fn finish(
    runtime: &Runtime,
    container: &Container,
    exec: Option<ExecId>,
    process: &Process,
    exit: Exit,
) {
    process.finish(exit);
    runtime.events.publish(&Event::Exit {
        id: ProcessId {
            container: container.id.clone(),
            exec,
        },
        pid: process.pid(),
        exit,
    });
}

/// Kills the rest of a container whose init process has ended. With a pid namespace of the
/// container's own the kernel has done so.
async fn end_leftovers(container: &Container) {
    if container.owns_pid_namespace {
        return;
    }
    let ended = async {
        container.cgroup.kill()?;
        container.cgroup.watch()?.empty().await;
        Ok::<_, CgroupError>(())
    };
    match tokio::time::timeout(LEFTOVERS_TIMEOUT, ended).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::warn!("container {}: {error}", container.id),
        Err(_) => log::warn!(
            "container {}: processes did not end when killed",
            container.id
        ),
    }
}
