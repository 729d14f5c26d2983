//! A program that logs a container's output, by containerd's `binary://` protocol: it reads
//! standard output from descriptor 3 and standard error from 4, and closes or writes to 5 when it
//! is ready.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, Signal, kill_process};
use rvm_protocol::ContainerId;

/// How long the program may take to exit after the end of the output.
const EXIT_TIMEOUT: Duration = Duration::from_secs(12);

/// Descriptors are duplicated to this number or above before dup2(2) gives them 3, 4 and 5, so that
/// none of them overwrites another.
const PARKED_FROM: RawFd = 10;

/// The program. Dropping this has it exit some time later.
#[derive(Debug)]
pub struct Logger(Option<Child>);

impl Logger {
    /// Starts the program and waits until it is ready. The caller writes the container's standard
    /// output and error to the descriptors that this returns.
    pub fn start(
        program: &Path,
        arguments: &[String],
        container: &ContainerId,
        namespace: &str,
    ) -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (stdout, to_stdout) = io::pipe()?;
        let (stderr, to_stderr) = io::pipe()?;
        let (is_ready, ready) = io::pipe()?;
        let park = |fd: OwnedFd| fcntl_dupfd_cloexec(fd, PARKED_FROM).map_err(io::Error::from);
        let parked = [
            park(stdout.into())?,
            park(stderr.into())?,
            park(ready.into())?,
        ];
        let numbers = parked.each_ref().map(|fd| fd.as_raw_fd());
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("CONTAINER_ID", container.as_str())
            .env("CONTAINER_NAMESPACE", namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let place = move || {
            for (fd, number) in numbers.iter().zip(3..) {
                // SAFETY: dup2 accepts any number; what it closes below PARKED_FROM are this
                // child's copies.
                if unsafe { libc::dup2(*fd, number) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only makes system calls.
        unsafe { command.pre_exec(place) };
        let logger = Self(Some(command.spawn()?));
        // Only the program may hold the write end of this pipe, so that the read ends if it dies.
        drop(parked);
        rustix::io::retry_on_intr(|| rustix::io::read(&is_ready, &mut [0_u8; 1]))?;
        Ok((logger, to_stdout.into(), to_stderr.into()))
    }

    /// Has the program exit, and returns when it has: the log is complete then.
    pub async fn finish(mut self) {
        if let Some(program) = self.0.take() {
            // An error means that the shim ends.
            let _ = tokio::task::spawn_blocking(move || end(program)).await;
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let Some(program) = self.0.take() else {
            return;
        };
        let builder = thread::Builder::new()
            .name("logger".to_owned())
            .stack_size(64 * 1024);
        if let Err(error) = builder.spawn(move || end(program)) {
            tracing::warn!("cannot wait for the logging program: {error}");
        }
    }
}

/// Has a program exit, as runc's shim does: with SIGTERM, and after [`EXIT_TIMEOUT`] with SIGKILL.
fn end(mut program: Child) {
    // Most have exited with the end of the output.
    if !matches!(program.try_wait(), Ok(None)) {
        return;
    }
    if let Err(error) = kill_process(Pid::from_child(&program), Signal::TERM) {
        tracing::debug!("cannot send SIGTERM to the logging program: {error}");
    }
    let start = Instant::now();
    while start.elapsed() < EXIT_TIMEOUT {
        if !matches!(program.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    tracing::warn!("the logging program does not exit and is killed");
    // It may have exited in between.
    let _ = program.kill().and_then(|()| program.wait());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write as _;

    fn id() -> ContainerId {
        ContainerId::new("box").unwrap()
    }

    #[test]
    fn both_outputs_and_the_containers_id_reach_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "exec 5>&-; cat <&3 >\"$1\"; cat <&4 >>\"$1\"; \
                      echo $CONTAINER_ID $CONTAINER_NAMESPACE $2 >>\"$1\"; mv \"$1\" \"$1.done\"";
        let arguments = ["-c", script, "log", log.to_str().unwrap(), "more"];
        let arguments = arguments.map(str::to_owned);
        let (logger, stdout, stderr) =
            Logger::start(Path::new("/bin/sh"), &arguments, &id(), "space").unwrap();
        File::from(stdout).write_all(b"out\n").unwrap();
        File::from(stderr).write_all(b"err\n").unwrap();
        let done = dir.path().join("log.done");
        let start = Instant::now();
        while !done.exists() && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(10));
        }
        let text = std::fs::read_to_string(done).unwrap();
        assert_eq!(text, "out\nerr\nbox space more\n");
        drop(logger);
    }

    #[tokio::test]
    async fn a_program_may_finish_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "trap 'sleep 0.3; echo done >\"$1\"; exit' TERM; exec 5>&-; \
                      while :; do sleep 0.05; done";
        let arguments = ["-c", script, "log", log.to_str().unwrap()].map(str::to_owned);
        let (logger, ..) = Logger::start(Path::new("/bin/sh"), &arguments, &id(), "space").unwrap();
        logger.finish().await;
        assert_eq!(std::fs::read_to_string(log).unwrap(), "done\n");
    }

    #[test]
    fn a_program_that_dies_at_once_is_not_waited_for() {
        Logger::start(Path::new("/bin/false"), &[], &id(), "space").unwrap();
    }
}
