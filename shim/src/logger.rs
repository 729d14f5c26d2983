//! A program that logs a container's output: it reads standard output from descriptor 3 and standard
//! error from 4, and closes or writes to 5 when it is ready.
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

/// How long it may take to write what it has, once there is no more.
const END_LIMIT: Duration = Duration::from_secs(12);

/// Descriptors are moved above this before they get the numbers that the program knows.
const PARKED_FROM: RawFd = 10;

/// The program.
#[derive(Debug)]
pub struct Logger(Child);

impl Logger {
    /// Starts it, and waits until it is ready. Its standard output and error are to be written to
    /// the descriptors that come back.
    pub fn start(
        program: &Path,
        arguments: &[String],
        container_id: &str,
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
            .env("CONTAINER_ID", container_id)
            .env("CONTAINER_NAMESPACE", namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let place = move || {
            for (fd, number) in numbers.iter().zip(3..) {
                // SAFETY: dup2 takes any numbers, and those below PARKED_FROM that it closes are
                // this child's copies.
                if unsafe { libc::dup2(*fd, number) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: the closure only makes system calls.
        unsafe { command.pre_exec(place) };
        let logger = Self(command.spawn()?);
        // The end of this pipe must be the program's alone, so that its death is heard.
        drop(parked);
        rustix::io::retry_on_intr(|| rustix::io::read(&is_ready, &mut [0_u8; 1]))?;
        Ok((logger, to_stdout.into(), to_stderr.into()))
    }

    /// Ends it, after time to write what it has. Whoever calls does not wait.
    pub fn finish(mut self) {
        let wait = move || {
            let pid = Pid::from_child(&self.0);
            if let Err(error) = kill_process(pid, Signal::TERM) {
                tracing::debug!("the logging program was not told to end: {error}");
            }
            let start = Instant::now();
            while start.elapsed() < END_LIMIT {
                if !matches!(self.0.try_wait(), Ok(None)) {
                    return;
                }
                thread::sleep(Duration::from_millis(50));
            }
            tracing::warn!("the logging program does not end and is killed");
            // It may have ended in between.
            let _ = self.0.kill().and_then(|()| self.0.wait());
        };
        let builder = thread::Builder::new()
            .name("logger".to_owned())
            .stack_size(64 * 1024);
        if let Err(error) = builder.spawn(wait) {
            tracing::warn!("the logging program is left alone: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write as _;

    #[test]
    fn both_outputs_and_the_containers_name_reach_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "exec 5>&-; cat <&3 >\"$1\"; cat <&4 >>\"$1\"; \
                      echo $CONTAINER_ID $CONTAINER_NAMESPACE $2 >>\"$1\"; mv \"$1\" \"$1.done\"";
        let arguments = ["-c", script, "log", log.to_str().unwrap(), "more"];
        let arguments = arguments.map(str::to_owned);
        let (logger, stdout, stderr) =
            Logger::start(Path::new("/bin/sh"), &arguments, "box", "space").unwrap();
        File::from(stdout).write_all(b"out\n").unwrap();
        File::from(stderr).write_all(b"err\n").unwrap();
        let done = dir.path().join("log.done");
        let start = Instant::now();
        while !done.exists() && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(10));
        }
        let text = std::fs::read_to_string(done).unwrap();
        assert_eq!(text, "out\nerr\nbox space more\n");
        logger.finish();
    }

    #[test]
    fn a_program_that_dies_at_once_is_not_waited_for() {
        let (logger, _, _) = Logger::start(Path::new("/bin/false"), &[], "box", "space").unwrap();
        logger.finish();
    }
}
