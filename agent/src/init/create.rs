//! The init process of a container.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::os::fd::AsFd as _;

use rustix::process::DumpableBehavior;
use rustix::thread::UnshareFlags;
use rvm_sys::namespaces::unshare;
use rvm_sys::{keyring, loopback};

use super::channel::Report;
use super::hooks::{self, HookPoint};
use super::mounts::Mounts;
use super::plan::{ContainerPlan, ProcessPlan, TimeOffset};
use super::program::Program;
use super::rootfs::Rootfs;
use super::{Control, Failure, Stage as _, console, devices, masks, privileges, user};
use crate::sys::{Doing as _, OsError, clone};

/// Sets the container up, waits for StartContainer, and becomes the program.
///
/// The order is runc's where a container can tell the difference.
pub(super) fn run(
    plan: &ContainerPlan,
    process: &ProcessPlan,
    filter: &[u8],
    control: Control,
) -> Result<Infallible, Failure> {
    make_namespaces(plan).stage("namespaces")?;
    join_keyring(process).stage("keyring")?;

    let root = make_file_system(plan, process, control)?;
    root.pivot().stage("rootfs")?;
    set_names(plan).stage("hostname")?;

    console::fix_stdio_owner(process).stage("stdio")?;
    let program = become_the_user(process)?;
    control.send(&Report::Ready, None).stage("start")?;
    control.wait_for_start();

    let env = program.environment();
    // The hooks are programs of the container's files, and so under its filter.
    let filter_of_hooks = process.seccomp_flags.map(|flags| (filter, flags));
    let (point, hooks) = (HookPoint::StartContainer, &plan.start_hooks);
    hooks::run_all(point, hooks, &env, filter_of_hooks, plan).stage("hooks")?;
    program.execute(process, filter)
}

fn make_namespaces(plan: &ContainerPlan) -> Result<(), OsError> {
    if let Some(offsets) = &plan.time_offsets {
        // Before the process is made undumpable, after which its /proc files belong to root.
        make_time_namespace(offsets)?;
    }
    // Processes of a shared pid namespace must not access this one while it has root's rights.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "make the process undumpable")?;
    if plan.cgroup_namespace {
        unshare(UnshareFlags::NEWCGROUP).doing(|| "make a cgroup namespace")?;
    }
    if plan.network_namespace {
        loopback::bring_up().doing(|| "bring lo up")?;
    }
    Ok(())
}

/// Makes a time namespace and enters it: unshare(2) alone makes one for children, and a process
/// that joins the container before its program runs would find another.
fn make_time_namespace(offsets: &[TimeOffset]) -> Result<(), OsError> {
    unshare(UnshareFlags::NEWTIME).doing(|| "make a time namespace")?;
    for (clock, seconds, nanoseconds) in offsets {
        let line = format!("{clock} {seconds} {nanoseconds}");
        std::fs::write("/proc/self/timens_offsets", &line)
            .doing(|| format!("set time offset {line}"))?;
    }
    let made = File::open("/proc/self/ns/time_for_children").doing(|| "open the time namespace")?;
    clone::enter_namespaces(made.as_fd(), libc::CLONE_NEWTIME as u64)
        .doing(|| "enter the time namespace")
}

pub(super) fn join_keyring(process: &ProcessPlan) -> Result<(), OsError> {
    let Some(name) = &process.keyring else {
        return Ok(());
    };
    let name = std::ffi::CString::new(name.as_str())
        .map_err(std::io::Error::from)
        .doing(|| "name the session keyring")?;
    keyring::join_new_session(&name).doing(|| "make a session keyring")
}

fn make_file_system(
    plan: &ContainerPlan,
    process: &ProcessPlan,
    control: Control,
) -> Result<Rootfs, Failure> {
    let root = Rootfs::prepare(plan).stage("rootfs")?;
    let mut mounts = Mounts::new(&root, plan.cgroup_namespace);
    for mount in &plan.mounts {
        mounts.make(mount).stage("mounts")?;
    }
    if plan.populate_dev {
        devices::populate(&root, plan).stage("devices")?;
    }
    if let Some(plan) = process.terminal {
        let terminal = console::open(Some(&root), plan).stage("console")?;
        console::bind(&root, &terminal).stage("console")?;
        control
            .send(&Report::Terminal, Some(terminal.master.as_fd()))
            .stage("console")?;
        terminal.become_stdio().stage("console")?;
    }
    let hooks = &plan.create_hooks;
    hooks::run_all(HookPoint::CreateContainer, hooks, &process.env, None, plan).stage("hooks")?;
    root.make_directory(&process.cwd).stage("cwd")?;
    write_sysctls(&plan.sysctls).stage("sysctl")?;
    masks::make_read_only(&root, &plan.readonly_paths).stage("readonly paths")?;
    masks::hide(&root, &plan.masked_paths).stage("masked paths")?;
    mounts.finish().stage("mounts")?;
    if plan.readonly_rootfs {
        root.make_read_only().stage("rootfs")?;
    }
    Ok(root)
}

/// Writes to the guest's own /proc, whose sysctls are those of the caller's namespaces, and never
/// to a /proc that an image has prepared (CVE-2019-19921).
pub fn write_sysctls(sysctls: &BTreeMap<String, String>) -> Result<(), OsError> {
    for (path, value) in sysctls {
        std::fs::write(format!("/proc/sys/{path}"), value)
            .doing(|| format!("write sysctl {} = {value}", path.replace('/', ".")))?;
    }
    Ok(())
}

fn set_names(plan: &ContainerPlan) -> Result<(), OsError> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).doing(|| format!("sethostname {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .doing(|| format!("setdomainname {name:?}"))?;
    }
    Ok(())
}

/// Gives up root's rights and finds the program.
pub(super) fn become_the_user(process: &ProcessPlan) -> Result<Program, Failure> {
    let directory_entered = user::enter_directory_as_root(process).stage("cwd")?;
    privileges::set_scheduling(process).stage("scheduling")?;
    privileges::set_no_new_privileges(process).stage("no_new_privs")?;
    privileges::set_rlimits(process).stage("rlimits")?;
    privileges::set_user_and_capabilities(process).stage("user")?;
    if !directory_entered {
        user::enter_directory(process).stage("cwd")?;
    }
    user::check_directory(process).stage("cwd")?;
    Program::find(process).stage("exec")
}
