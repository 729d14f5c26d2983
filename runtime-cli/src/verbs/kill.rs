//! rvm kill

use std::process::ExitCode;

use anyhow::bail;
use rvm_sandbox::container::lifecycle;

use super::block_on;
use crate::cli::{Global, KillArgs};

/// Sends a signal to a container.
pub fn run(global: &Global, args: &KillArgs) -> anyhow::Result<ExitCode> {
    let signal = parse(&args.signal)?;
    let container = global.store().open(&args.id)?;
    block_on(lifecycle::kill(&container, signal, args.all))??;
    Ok(ExitCode::SUCCESS)
}

/// The signals of x86-64 by name, without SIG.
const NAMES: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The highest signal of Linux.
const LAST: i32 = 64;

/// Reads a signal: a number, or a name in upper or lower case, with or without SIG, such as `kill`
/// or `SIGRTMIN+3`.
fn parse(text: &str) -> anyhow::Result<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = || {
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number)
    };
    match text.parse().ok().or_else(named).or_else(|| real_time(name)) {
        Some(signal) if (0..=LAST).contains(&signal) => Ok(signal),
        _ => bail!("unknown signal {text:?}"),
    }
}

fn real_time(name: &str) -> Option<i32> {
    let offset = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text[1..].parse().ok()
        }
    };
    let (min, max) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let signal = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) if rest.is_empty() || rest.starts_with('+') => min + offset(rest)?,
        (_, Some(rest)) if rest.is_empty() || rest.starts_with('-') => max - offset(rest)?,
        _ => return None,
    };
    (min..=max).contains(&signal).then_some(signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        for text in ["9", "KILL", "SIGKILL", "kill", "sigkill"] {
            assert_eq!(parse(text).unwrap(), libc::SIGKILL, "{text}");
        }
        assert_eq!(parse("RTMIN+3").unwrap(), libc::SIGRTMIN() + 3);
        assert_eq!(parse("SIGRTMAX-1").unwrap(), libc::SIGRTMAX() - 1);
        assert_eq!(parse("37").unwrap(), 37);
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "", "65", "-1", "SIGFOO", "RTMIN-1", "RTMIN+99", "RTMAX+1", "9x",
        ] {
            assert!(
                parse(text)
                    .unwrap_err()
                    .to_string()
                    .contains("unknown signal"),
                "{text}"
            );
        }
    }
}
