//! Starting a monitor: this program once more, as the process that stands for a container or for an
//! exec'd process, and the socket by which that process reports to its starter.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use rvm_protocol::failure::{Failure, MAX_MESSAGE};
use serde::{Deserialize, Serialize};

use super::lifecycle::{LifecycleError, failed, give_up, write_pid_file};
use crate::guest::descriptors;
use crate::state::Container;
use rvm_sys::fault_point;
use rvm_sys::readiness::Readable;

/// The longest report, in bytes. JSON makes six of a byte of a message at most.
const MAX_REPORT: u64 = 8 * MAX_MESSAGE as u64;

/// What a monitor reports, as JSON and then the end of the stream. Both ends are the same
/// executable, so the report needs no version.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Report {
    /// The container is created, or the process runs.
    Ready,
    Failed(Failure),
}

/// A monitor's end of the socket that leads to its starter.
#[derive(Debug)]
pub struct Starter(UnixStream);

impl Starter {
    /// Takes the descriptor whose number the starter has passed on the command line. Fails if it is
    /// not open.
    pub fn inherited(number: RawFd) -> io::Result<Self> {
        Ok(Self(descriptors::take(number)?.into()))
    }

    /// Reports that the container is created, or that the process runs. Nothing more can be
    /// reported then.
    pub fn report_ready(&self) -> io::Result<()> {
        self.report(&Report::Ready)
    }

    /// Reports why there is no container or process. Fails if the starter has gone, which it does
    /// once it has a report.
    pub fn report_failure(&self, failure: Failure) -> io::Result<()> {
        self.report(&Report::Failed(failure))
    }

    fn report(&self, report: &Report) -> io::Result<()> {
        fault_point!("monitor.report")?;
        (&self.0).write_all(&serde_json::to_vec(report)?)?;
        self.0.shutdown(Shutdown::Both)
    }

    /// Returns when the starter has gone.
    pub async fn gone(&self) {
        let Ok(readable) = Readable::new(self.0.as_fd()) else {
            return std::future::pending().await;
        };
        // Nothing is ever sent this way, so whatever is read is the end.
        let wait = readable.read(|fd: BorrowedFd<'_>| {
            let flags = rustix::net::RecvFlags::DONTWAIT;
            Ok(rustix::net::recv(fd, &mut [0; 1], flags).map(|_| ())?)
        });
        let _ = wait.await;
    }
}

/// Starts a container's monitor and waits until the container is created. `arguments` are those
/// with which this program becomes the monitor; the number of its descriptor is added to them.
pub async fn start_monitor(
    container: &Container,
    arguments: &[OsString],
    pid_file: Option<&Path>,
) -> Result<(), LifecycleError> {
    let created = spawn(arguments).and_then(|(pid, socket)| {
        await_ready(socket)?;
        fault_point!("create.ready").map_err(failed("create the container"))?;
        pid_file.map_or(Ok(()), |path| write_pid_file(path, pid))
    });
    if created.is_err() {
        give_up(container).await;
    }
    created
}

/// Starts the process that will stand for an exec'd one, and waits until that runs. `arguments` as
/// for [`start_monitor`].
pub fn start_exec_monitor(arguments: &[OsString]) -> Result<(), LifecycleError> {
    let (_, socket) = spawn(arguments)?;
    await_ready(socket)
}

fn spawn(arguments: &[OsString]) -> Result<(u32, UnixStream), LifecycleError> {
    let action = "start the container's monitor";
    fault_point!("monitor.spawn").map_err(failed(action))?;
    let (ours, theirs) = UnixStream::pair().map_err(failed(action))?;
    // The child inherits exactly this one.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|e| failed(action)(e.into()))?;
    let child = Command::new("/proc/self/exe")
        .arg0("rvm")
        .args(arguments)
        .arg(theirs.as_raw_fd().to_string())
        .stdin(Stdio::inherit())
        .spawn()
        .map_err(failed(action))?;
    fault_point!("monitor.spawned").map_err(failed(action))?;
    Ok((child.id(), ours))
}

fn await_ready(socket: UnixStream) -> Result<(), LifecycleError> {
    let action = "wait for the container's monitor";
    let mut report = Vec::new();
    socket
        .take(MAX_REPORT)
        .read_to_end(&mut report)
        .map_err(failed(action))?;
    if report.is_empty() {
        return Err(LifecycleError::MonitorGone);
    }
    match serde_json::from_slice(&report).map_err(|error| failed(action)(error.into()))? {
        Report::Ready => Ok(()),
        Report::Failed(failure) => Err(LifecycleError::Monitor(failure)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_protocol::failure::{Code, Coded};

    fn reported(report: impl FnOnce(Starter)) -> Result<(), LifecycleError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        report(Starter(theirs));
        await_ready(ours)
    }

    #[test]
    fn a_monitor_that_is_ready_cannot_fail_any_more() {
        let ready = reported(|starter| {
            starter.report_ready().unwrap();
            let late = Failure::new(Code::Internal, "late");
            assert!(starter.report_failure(late).is_err());
        });
        assert!(ready.is_ok());
    }

    #[test]
    fn the_starter_receives_code_and_message() {
        let failure = Failure::new(Code::NotFound, "no such file");
        let error = reported(|starter| starter.report_failure(failure).unwrap()).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert_eq!(error.to_string(), "no such file");
    }

    #[test]
    fn a_monitor_that_reports_nothing_has_ended() {
        assert!(matches!(reported(drop), Err(LifecycleError::MonitorGone)));
        let half = reported(|starter| (&starter.0).write_all(b"{\"failed\"").unwrap());
        assert!(matches!(half, Err(LifecycleError::Io { .. })));
    }
}
