//! What happens when a process of a container ends, or the kernel kills one for memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Container;
use super::state::State;
use crate::events::Event;
use crate::process::Process;
use crate::reaper::Exit;
use crate::sandbox::Sandbox;

/// How long what a first process leaves behind may take to end after having been killed.
const LEFTOVERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Follows a container to its end.
pub fn first_process(sandbox: &Sandbox, container: &Arc<Container>, exit: oneshot::Receiver<Exit>) {
    let (sandbox, container) = (sandbox.clone(), container.clone());
    tokio::spawn(async move {
        let watch = container
            .cgroup
            .watch()
            .inspect_err(|error| log::warn!("container {}: {error}", container.id))
            .ok();
        let mut kills = watch.as_ref().map_or(0, |watch| watch.oom_kills());
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
                    kills = watch.as_ref().map_or(0, |watch| watch.oom_kills());
                    sandbox.events.publish(&Event::Oom { container_id: container.id.clone() });
                }
            }
        };
        // The reaper lives as long as the machine.
        let Ok(exit) = exit else { return };
        end_leftovers(&container).await;
        sandbox.write_back().await;
        if watch
            .as_ref()
            .is_some_and(|watch| watch.oom_kills() > kills)
        {
            sandbox.events.publish(&Event::Oom {
                container_id: container.id.clone(),
            });
        }
        *container.lock_state() = State::Stopped;
        announce(&sandbox, &container, "", &container.init, exit);
    });
}

/// Follows an exec'd process to its end.
pub fn exec_process(
    sandbox: &Sandbox,
    container: &Arc<Container>,
    exec_id: &str,
    process: &Arc<Process>,
    exit: oneshot::Receiver<Exit>,
) {
    let (sandbox, container) = (sandbox.clone(), container.clone());
    let (exec_id, process) = (exec_id.to_owned(), process.clone());
    tokio::spawn(async move {
        let Ok(exit) = exit.await else { return };
        announce(&sandbox, &container, &exec_id, &process, exit);
    });
}

fn announce(
    sandbox: &Sandbox,
    container: &Container,
    exec_id: &str,
    process: &Process,
    exit: Exit,
) {
    process.finish(exit);
    sandbox.events.publish(&Event::Exit {
        container_id: container.id.clone(),
        exec_id: exec_id.to_owned(),
        pid: process.pid(),
        exit,
    });
}

/// A pid namespace ends with its first process. Without one, the rest of the container is killed
/// here.
async fn end_leftovers(container: &Container) {
    if container.owns_pid_namespace {
        return;
    }
    let ended = async {
        container.cgroup.kill()?;
        container.cgroup.watch()?.empty().await;
        Ok::<_, super::cgroup::CgroupError>(())
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
