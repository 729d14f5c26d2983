//! The process between clone3(2) and execve(2): what a container's init process, and every process
//! that joins later, does before it executes the program.
//!
//! It runs the agent's binary, executed anew so that it has nothing of the agent's memory, with one
//! thread. The agent starts it with the descriptors of [`plan::fd`] and no others. It has root's
//! rights at first and gives them up step by step. It trusts the plan, and nothing in the
//! container's root.

pub mod channel;
mod console;
mod copy_up;
pub mod create;
mod devices;
mod guest_devices;
mod hooks;
mod join;
mod lookup;
mod masks;
mod mounts;
pub mod plan;
mod privileges;
mod program;
mod rootfs;
mod targets;
mod user;

use std::error::Error;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};

use channel::Report;
pub use mounts::filesystem;
use plan::{Plan, Role, fd};
pub use privileges::HARD_NOFILE;
pub use rootfs::STAGING;
use rvm_sys::error_chain::chain;

use crate::sys::{Doing as _, clone, signal};

/// The argument that makes the agent's binary this process.
pub const ARGUMENT: &str = "container-init";

/// The exit status after a failure; runc's.
pub const EXIT_FAILED: i32 = 255;

/// A stage that failed, as it is reported to the agent.
#[derive(Debug)]
pub struct Failure {
    stage: &'static str,
    message: String,
}

/// Names the stage that an error belongs to.
trait Stage<T> {
    fn stage(self, stage: &'static str) -> Result<T, Failure>;
}

impl<T, E: Error> Stage<T> for Result<T, E> {
    fn stage(self, stage: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            stage,
            message: chain(&error),
        })
    }
}

/// The socket to the agent.
#[derive(Clone, Copy)]
struct Control(BorrowedFd<'static>);

impl Control {
    fn send(self, report: &Report, fd: Option<BorrowedFd<'_>>) -> rustix::io::Result<()> {
        channel::send(self.0, report, fd)
    }

    /// Waits for StartContainer. Ends the process if the agent closes the socket instead.
    fn wait_for_start(self) {
        if clone::read_byte(fd::CONTROL).is_err() {
            clone::exit_now(EXIT_FAILED);
        }
    }
}

/// Carries the plan out. Never returns: the process becomes the program or ends.
pub fn run() -> ! {
    // SAFETY: the agent has put the socket there; it stays open until execve(2).
    #[allow(unsafe_code)]
    let control = Control(unsafe { BorrowedFd::borrow_raw(fd::CONTROL) });
    // It returns only if a stage failed.
    let Err(failure) = prepare_and_execute(control);
    let report = Report::Failed {
        stage: failure.stage.to_owned(),
        message: failure.message,
    };
    // If the agent is gone, so is the machine.
    let _ = control.send(&report, None);
    clone::exit_now(EXIT_FAILED)
}

fn prepare_and_execute(control: Control) -> Result<std::convert::Infallible, Failure> {
    signal::reset_all();
    let plan = read_plan()?;
    clone::close_on_exec_from(fd::EXTRA as u32 + plan.extra)
        .doing(|| "mark descriptors")
        .stage("start")?;
    rustix::process::setsid()
        .doing(|| "make a session")
        .stage("start")?;
    let filter = match plan.process.seccomp_flags {
        Some(_) => read_all(fd::SECCOMP)
            .doing(|| "read the filter")
            .stage("seccomp")?,
        None => Vec::new(),
    };
    match plan.role {
        Role::Create(container) => create::run(&container, &plan.process, &filter, control),
        Role::Join {
            namespaces,
            user_namespace,
        } => join::run(namespaces, user_namespace, &plan.process, &filter, control),
    }
}

fn read_plan() -> Result<Plan, Failure> {
    let text = read_all(fd::PLAN)
        .doing(|| "read the plan")
        .stage("start")?;
    serde_json::from_slice(&text).stage("start")
}

/// Reads a memory file from its start, whatever its offset is: processes share that of the filter.
fn read_all(number: i32) -> std::io::Result<Vec<u8>> {
    let file = inherited(number);
    let length = rustix::fs::fstat(&file)?.st_size as usize;
    let mut data = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match rustix::io::pread(&file, &mut data[filled..], filled as u64)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    Ok(data)
}

/// Takes ownership of a descriptor at a number of [`plan::fd`].
#[allow(unsafe_code)]
fn inherited(number: i32) -> OwnedFd {
    // SAFETY: the agent has put one there for this purpose, and each is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
