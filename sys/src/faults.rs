//! Named points at which tests have a process fail, wait or die.
//!
//! `fault_point!("start.shared")` is a point. In every shipped program it is the value `Ok(())` and
//! nothing else: the feature `faults` of this crate, which only test builds have, makes it a call
//! of [`pass`]. Two environment variables, which processes pass on to those that they start, say
//! what happens at which points then:
//!
//! - `RVM_FAULTS`: rules, separated by `;`. `rvm monitor@state.write#2=error:ENOSPC` is one: in a
//!   process of that role, the second passage of the point fails. Without `ROLE@` it is a passage
//!   in any process, counted in each.
//! - `RVM_FAULTS_LOG`: a file to which each passage is appended, as a line `ROLE@POINT`.
//!
//! A role is the name of the program and that of the verb.

use std::collections::HashMap;
use std::env;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};

use crate::clone::exit_now;

const RULES: &str = "RVM_FAULTS";
const LOG: &str = "RVM_FAULTS_LOG";

/// The errors by name that a point may fail with.
const ERRORS: [(&str, Errno); 6] = [
    ("ENOSPC", Errno::NOSPC),
    ("EMFILE", Errno::MFILE),
    ("ENOMEM", Errno::NOMEM),
    ("EIO", Errno::IO),
    ("EINTR", Errno::INTR),
    ("EAGAIN", Errno::AGAIN),
];

/// What stands in an argument list for the verb, beside options and their values.
const VERBS: [&str; 24] = [
    "create",
    "start",
    "run",
    "exec",
    "monitor",
    "exec-monitor",
    "state",
    "list",
    "kill",
    "delete",
    "ps",
    "events",
    "update",
    "pause",
    "resume",
    "checkpoint",
    "restore",
    "template",
    "machine",
    "backend",
    "qemu",
    "probe",
    "namespace",
    "check",
];

/// What happens at a passage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Fail(Errno),
    Wait(Duration),
}

#[derive(Debug, PartialEq, Eq)]
struct Rule {
    role: Option<String>,
    point: String,
    /// From 1.
    passage: u32,
    action: Action,
}

struct Plan {
    role: String,
    /// None if they cannot be read.
    rules: Option<Vec<Rule>>,
    log: Option<File>,
    passed: Mutex<HashMap<&'static str, u32>>,
}

/// Passes a point, see the module.
pub fn pass(point: &'static str) -> io::Result<()> {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(Plan::of_environment).pass(point)
}

/// The variables above as a child needs them whose environment is a list of its own.
pub fn environment() -> Vec<CString> {
    let variable = |name| {
        let value = env::var(name).ok()?;
        CString::new(format!("{name}={value}")).ok()
    };
    [RULES, LOG].into_iter().filter_map(variable).collect()
}

impl Plan {
    fn of_environment() -> Self {
        let log = env::var_os(LOG);
        let append = |path| File::options().append(true).create(true).open(path).ok();
        Self {
            role: role(&env::args().collect::<Vec<_>>()),
            rules: rules(&env::var(RULES).unwrap_or_default()),
            log: log.and_then(append),
            passed: Mutex::default(),
        }
    }

    fn pass(&self, point: &'static str) -> io::Result<()> {
        if let Some(mut log) = self.log.as_ref() {
            log.write_all(format!("{}@{point}\n", self.role).as_bytes())?;
        }
        let passage = {
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            let count = passed.entry(point).or_default();
            *count += 1;
            *count
        };
        let Some(rules) = &self.rules else {
            return Err(io::Error::other(format!("{RULES} cannot be read")));
        };
        let applies = |rule: &&Rule| {
            let is_role = rule.role.as_ref().is_none_or(|role| *role == self.role);
            is_role && (rule.point.as_str(), rule.passage) == (point, passage)
        };
        match rules.iter().find(applies).map(|rule| rule.action) {
            None => Ok(()),
            Some(Action::Fail(errno)) => Err(errno.into()),
            Some(Action::Wait(time)) => {
                wait(time);
                Ok(())
            }
            Some(Action::Kill) => {
                let _ = kill_process(getpid(), Signal::KILL);
                // The first process of a pid namespace cannot kill itself.
                exit_now(128 + 9)
            }
        }
    }
}

/// Waits by a system call that every thread of rvm-vmm may make.
fn wait(time: Duration) {
    let start = Instant::now();
    while let Some(left) = time.checked_sub(start.elapsed()) {
        thread::park_timeout(left);
    }
}

fn role(arguments: &[String]) -> String {
    let mut arguments = arguments.iter();
    let program = arguments.next().map(Path::new);
    let name = program.and_then(Path::file_name).unwrap_or_default();
    let mut role = name.to_string_lossy().into_owned();
    if let Some(verb) = arguments.find(|argument| VERBS.contains(&argument.as_str())) {
        role.push(' ');
        role.push_str(verb);
    }
    role
}

fn rules(text: &str) -> Option<Vec<Rule>> {
    let rules = text.split(';').filter(|rule| !rule.is_empty());
    rules.map(rule).collect()
}

fn rule(text: &str) -> Option<Rule> {
    let (place, action) = text.split_once('=')?;
    let (place, passage) = place.split_once('#')?;
    let (role, point) = match place.split_once('@') {
        Some((role, point)) => (Some(role.to_owned()), point),
        None => (None, place),
    };
    let action = match action.split_once(':') {
        None if action == "kill" => Action::Kill,
        Some(("error", name)) => {
            let (_, errno) = ERRORS.into_iter().find(|(known, _)| *known == name)?;
            Action::Fail(errno)
        }
        Some(("delay", ms)) => Action::Wait(Duration::from_millis(ms.parse().ok()?)),
        _ => return None,
    };
    Some(Rule {
        role,
        point: point.to_owned(),
        passage: passage.parse().ok()?,
        action,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        Plan {
            role: "rvm monitor".to_owned(),
            rules: rules(text),
            log: None,
            passed: Mutex::default(),
        }
    }

    #[test]
    fn a_rule_applies_to_one_passage_in_one_role() {
        let plan = plan("rvm run@a#1=error:EIO;rvm monitor@a#2=error:ENOSPC");
        assert!(plan.pass("a").is_ok());
        assert!(plan.pass("b").is_ok());
        let error = plan.pass("a").unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::NOSPC));
        assert!(plan.pass("a").is_ok());
    }

    #[test]
    fn a_passage_waits() {
        let start = Instant::now();
        plan("a#1=delay:20").pass("a").unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn rules_that_cannot_be_read_are_told_at_every_point() {
        for text in ["a", "a=kill", "a#x=kill", "a#1=die", "a#1=error:EFOO"] {
            assert!(plan(text).pass("b").is_err(), "{text}");
        }
    }

    #[test]
    fn a_role_is_a_program_and_its_verb() {
        let of = |line: &str| {
            let arguments: Vec<_> = line.split(' ').map(str::to_owned).collect();
            role(&arguments)
        };
        assert_eq!(of("/x/rvm --root /r create --bundle b box"), "rvm create");
        assert_eq!(of("/x/rvm-vmm machine"), "rvm-vmm machine");
        assert_eq!(
            of("containerd-shim-rvm-v2 -id box"),
            "containerd-shim-rvm-v2"
        );
    }
}
