//! A process that joins a running container.

use std::convert::Infallible;
use std::os::fd::AsFd as _;

use rustix::process::DumpableBehavior;

use super::channel::Report;
use super::create::{become_the_user, join_keyring};
use super::plan::{ProcessPlan, fd};
use super::{Control, Failure, Stage as _, console, inherited, privileges};
use crate::sys::{Doing as _, OsError, clone};

/// Joins the namespaces and becomes the program. The process was cloned into its cgroup and pid
/// namespace.
pub(super) fn run(
    namespaces: u64,
    user_namespace: bool,
    process: &ProcessPlan,
    filter: &[u8],
    control: Control,
) -> Result<Infallible, Failure> {
    // The container's processes can see this one from the start, and a privileged one among them
    // could otherwise access the descriptors that it still has (CVE-2016-9962).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "make the process undumpable")
        .stage("start")?;
    privileges::set_initial_affinity(process).stage("cpu affinity")?;
    join_namespaces(namespaces, user_namespace).stage("namespaces")?;
    join_keyring(process).stage("keyring")?;
    if let Some(plan) = process.terminal {
        let terminal = console::open(None, plan).stage("console")?;
        control
            .send(&Report::Terminal, Some(terminal.master.as_fd()))
            .stage("console")?;
        terminal.become_stdio().stage("console")?;
    }
    console::fix_stdio_owner(process).stage("stdio")?;
    let program = become_the_user(process)?;
    privileges::set_final_affinity(process).stage("cpu affinity")?;
    program.execute(process, filter)
}

fn join_namespaces(namespaces: u64, user_namespace: bool) -> Result<(), OsError> {
    let init = inherited(fd::JOIN);
    clone::enter_namespaces(init.as_fd(), namespaces)
        .doing(|| "join the namespaces of the container")?;
    if user_namespace {
        clone::become_root().doing(|| "become root of the container's user namespace")?;
    }
    Ok(())
}
