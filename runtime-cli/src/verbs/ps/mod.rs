//! rvm ps

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use rvm_protocol::agent::{ListProcessesResponse, ProcessInfo};
use rvm_sandbox::container::running;
use rvm_sandbox::host::local_time::LocalTime;
use rvm_sandbox::host::users::UserNames;

use super::block_on;
use crate::cli::{Format, Global, PsArgs};

/// Prints the processes of a container. The table, for people, has those in the guest with their
/// pids there. The JSON list is for engines, which look pids up on the host: it has those of the
/// host's processes that run the container.
pub fn run(global: &Global, args: &PsArgs) -> anyhow::Result<ExitCode> {
    check_options(&args.options)?;
    let container = global.store().open(&args.id)?;
    let text = match args.format {
        Format::Table => {
            let mut list = block_on(running::processes(&container))??;
            list.processes.sort_by_key(|process| process.pid);
            table(&list, &UserNames::load())
        }
        Format::Json => json(&running::host_processes(&container)?)?,
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses options other than those of the default. runc runs ps(1) with them on the host, where
/// the guest's processes are not seen.
fn check_options(options: &[String]) -> anyhow::Result<()> {
    let is_default = |option: &String| matches!(option.as_str(), "-e" | "-f" | "-ef" | "-fe");
    match options.iter().find(|option| !is_default(option)) {
        None => Ok(()),
        Some(option) => bail!(
            "ps option {option:?} is not supported, only -ef is; to have another, execute ps in \
             the container"
        ),
    }
}

fn json(pids: &BTreeSet<i32>) -> anyhow::Result<String> {
    // As runc: no list rather than an empty one.
    let pids = (!pids.is_empty()).then_some(pids);
    Ok(serde_json::to_string(&pids)? + "\n")
}

/// The table of `ps -ef`.
fn table(list: &ListProcessesResponse, users: &UserNames) -> String {
    let mut text = "UID          PID    PPID  C STIME TTY          TIME CMD\n".to_owned();
    for process in &list.processes {
        let terminal = match process.terminal.as_str() {
            "" => "?",
            name => name,
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<8} {:>7} {:>7} {:>2} {:>5} {:<8} {:>8} {}",
            user(&users.name(process.uid)),
            process.pid,
            process.ppid,
            utilization(process, list.now_ns),
            started(process.started_at_ns, list.now_ns),
            terminal,
            cpu_time(process.cpu_ns),
            process.command,
        );
    }
    text
}

/// A user's name in eight columns, with a + where it is cut.
fn user(name: &str) -> String {
    match name.char_indices().nth(8) {
        None => name.to_owned(),
        Some(_) => name.chars().take(7).chain(['+']).collect(),
    }
}

/// CPU time as a percentage of the time since the start, at most 99.
fn utilization(process: &ProcessInfo, now_ns: u64) -> u64 {
    match now_ns.saturating_sub(process.started_at_ns) {
        0 => 0,
        age => (u128::from(process.cpu_ns) * 100 / u128::from(age)).min(99) as u64,
    }
}

/// When a process started: the time if it was today, else the day, or the year if it was another.
fn started(at_ns: u64, now_ns: u64) -> String {
    let (Some(at), Some(now)) = (LocalTime::of(at_ns), LocalTime::of(now_ns)) else {
        return "?".to_owned();
    };
    if at.year != now.year {
        return at.year.to_string();
    }
    if (at.month, at.day) != (now.month, now.day) {
        return format!("{}{:02}", at.month_name(), at.day);
    }
    format!("{:02}:{:02}", at.hour, at.minute)
}

fn cpu_time(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let time = format!("{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match days {
        0 => time,
        days => format!("{days}-{time}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn list() -> ListProcessesResponse {
        ListProcessesResponse {
            processes: vec![ProcessInfo {
                pid: 77,
                ppid: 1,
                uid: 4_000_000_000,
                started_at_ns: 1_700_000_000 * SECOND,
                cpu_ns: 30 * SECOND,
                command: "sleep 1000".to_owned(),
                ..Default::default()
            }],
            now_ns: 1_700_000_060 * SECOND,
            ..Default::default()
        }
    }

    #[test]
    fn the_table_is_that_of_ps() {
        let text = table(&list(), &UserNames::default());
        let line = text.lines().nth(1).unwrap();
        assert!(line.starts_with("4000000+      77       1 50 "), "{line}");
        assert!(line.ends_with(" ?        00:00:30 sleep 1000"), "{line}");
    }

    #[test]
    fn json_is_the_pids_or_nothing() {
        assert_eq!(json(&BTreeSet::from([78, 77])).unwrap(), "[77,78]\n");
        assert_eq!(json(&BTreeSet::new()).unwrap(), "null\n");
    }

    #[test]
    fn a_start_is_a_time_a_day_or_a_year() {
        let at = 1_700_000_000 * SECOND;
        let day = 86_400 * SECOND;
        assert!(started(at, at).contains(':'));
        assert!(started(at, at + 2 * day).starts_with("Nov1"));
        assert_eq!(started(at, at + 400 * day), "2023");
    }

    #[test]
    fn cpu_time_grows_days() {
        assert_eq!(cpu_time(0), "00:00:00");
        assert_eq!(cpu_time((86_400 + 3723) * SECOND), "1-01:02:03");
    }

    #[test]
    fn options_that_mean_something_else_are_refused() {
        assert!(check_options(&["-ef".to_owned()]).is_ok());
        assert!(check_options(&["aux".to_owned()]).is_err());
    }
}
