//! How the end of a machine's process is described.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How a process ended, in one line with the last lines that it logged.
pub(super) fn describe_exit(
    name: &str,
    status: &io::Result<Option<ExitStatus>>,
    last_lines: &[String],
) -> String {
    let how = match status {
        Ok(Some(status)) => match (status.code(), status.signal()) {
            (_, Some(libc::SIGSYS)) => {
                "was killed by SIGSYS: it made a system call that its filter forbids".to_owned()
            }
            (_, Some(signal)) => format!("was killed by signal {signal}"),
            (Some(code), _) => format!("ended with status {code}"),
            (None, None) => "ended".to_owned(),
        },
        Ok(None) => "ended".to_owned(),
        Err(error) => format!("is gone ({error})"),
    };
    match last_lines {
        [] => format!("{name} {how}"),
        lines => format!("{name} {how}: {}", lines.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_described_with_the_last_lines() {
        let killed = Ok(Some(ExitStatus::from_raw(9)));
        assert_eq!(
            describe_exit("QEMU", &killed, &[]),
            "QEMU was killed by signal 9"
        );
        let failed = Ok(Some(ExitStatus::from_raw(1 << 8)));
        let lines = ["no such option".to_owned()];
        assert_eq!(
            describe_exit("QEMU", &failed, &lines),
            "QEMU ended with status 1: no such option"
        );
    }
}
