//! The columns of ps(1) that the agent's answer fills.

use std::fmt::Write as _;

use rvm_protocol::agent::{ListProcessesResponse, ProcessInfo};
use rvm_sandbox::host::local_time::LocalTime;
use rvm_sandbox::host::users::UserNames;

/// A column of the table.
#[derive(Clone, Debug)]
pub struct Column {
    kind: &'static Kind,
    header: String,
}

/// What a column shows, under any of its names, with the header and the width of procps.
#[derive(Debug)]
struct Kind {
    names: &'static [&'static str],
    header: &'static str,
    width: usize,
    align: Align,
    value: fn(&ProcessInfo, &Context<'_>) -> String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}
use Align::{Left, Right};

/// What some columns need beside the process.
struct Context<'a> {
    users: &'a UserNames,
    now_ns: u64,
}

const fn kind(
    names: &'static [&'static str],
    (header, width, align): (&'static str, usize, Align),
    value: fn(&ProcessInfo, &Context<'_>) -> String,
) -> Kind {
    Kind {
        names,
        header,
        width,
        align,
        value,
    }
}

const KINDS: &[Kind] = &[
    kind(
        &["user", "euser", "uname"],
        ("USER", 8, Left),
        |process, context| user(&context.users.name(process.uid)),
    ),
    kind(&["ruser"], ("RUSER", 8, Left), |process, context| {
        user(&context.users.name(first(&process.uids)))
    }),
    kind(&["uid", "euid"], ("UID", 5, Right), |process, _| {
        process.uid.to_string()
    }),
    kind(&["ruid"], ("RUID", 5, Right), |process, _| {
        first(&process.uids).to_string()
    }),
    kind(&["gid", "egid"], ("GID", 5, Right), |process, _| {
        process.gids.get(1).copied().unwrap_or(0).to_string()
    }),
    kind(&["rgid"], ("RGID", 5, Right), |process, _| {
        first(&process.gids).to_string()
    }),
    kind(&["pid", "tgid"], ("PID", 7, Right), |process, _| {
        process.pid.to_string()
    }),
    kind(&["ppid"], ("PPID", 7, Right), |process, _| {
        process.ppid.to_string()
    }),
    kind(&["pgid", "pgrp"], ("PGID", 7, Right), |process, _| {
        first(&process.process_groups).to_string()
    }),
    kind(
        &["sid", "sess", "session"],
        ("SID", 7, Right),
        |process, _| first(&process.sessions).to_string(),
    ),
    kind(&["c"], ("C", 2, Right), |process, context| {
        utilization(process, context.now_ns).to_string()
    }),
    kind(&["%cpu", "pcpu"], ("%CPU", 4, Right), |process, context| {
        format!("{}.0", utilization(process, context.now_ns))
    }),
    kind(
        &["stime", "start_time"],
        ("STIME", 5, Right),
        |process, context| started(process.started_at_ns, context.now_ns),
    ),
    kind(&["etime"], ("ELAPSED", 11, Right), |process, context| {
        elapsed(age_ns(process, context.now_ns))
    }),
    kind(&["etimes"], ("ELAPSED", 7, Right), |process, context| {
        (age_ns(process, context.now_ns) / NS_PER_SECOND).to_string()
    }),
    kind(
        &["tty", "tt", "tname"],
        ("TTY", 8, Left),
        |process, _| match process.terminal.as_str() {
            "" => "?".to_owned(),
            name => name.to_owned(),
        },
    ),
    kind(&["time", "cputime"], ("TIME", 8, Right), |process, _| {
        cpu_time(process.cpu_ns)
    }),
    kind(&["s", "state"], ("S", 1, Left), |process, _| {
        process.state.clone()
    }),
    kind(&["stat"], ("STAT", 4, Left), |process, _| {
        process.state.clone()
    }),
    kind(&["ni", "nice"], ("NI", 3, Right), |process, _| {
        process.nice.to_string()
    }),
    kind(&["nlwp", "thcount"], ("NLWP", 4, Right), |process, _| {
        process.threads.to_string()
    }),
    kind(&["vsz", "vsize"], ("VSZ", 6, Right), |process, _| {
        (process.virtual_bytes / 1024).to_string()
    }),
    kind(
        &["rss", "rssize", "rsz"],
        ("RSS", 5, Right),
        |process, _| (process.resident_bytes / 1024).to_string(),
    ),
    kind(
        &["comm", "ucmd", "ucomm"],
        ("COMMAND", 15, Left),
        |process, _| process.name.clone(),
    ),
    kind(
        &["args", "cmd", "command"],
        ("COMMAND", 27, Left),
        |process, _| process.command.clone(),
    ),
];

const NS_PER_SECOND: u64 = 1_000_000_000;

impl Column {
    /// The column of this name, with a header of its own or procps's; `None` if there is none.
    pub fn new(name: &str, header: Option<&str>) -> Option<Self> {
        let kind = KINDS.iter().find(|kind| kind.names.contains(&name))?;
        let header = header.unwrap_or(match name {
            "cmd" => "CMD",
            _ => kind.header,
        });
        Some(Self {
            kind,
            header: header.to_owned(),
        })
    }

    /// Columns by `NAME` or `NAME=HEADER`. They must exist.
    fn all(names: &[&str]) -> Vec<Self> {
        let column = |name: &&str| match name.split_once('=') {
            Some((name, header)) => Self::new(name, Some(header)),
            None => Self::new(name, None),
        };
        names.iter().filter_map(column).collect()
    }

    /// The columns without an option.
    pub fn short() -> Vec<Self> {
        Self::all(&["pid", "tty", "time", "comm=CMD"])
    }

    /// The columns of -f.
    pub fn full() -> Vec<Self> {
        Self::all(&[
            "user=UID", "pid", "ppid", "c", "stime", "tty", "time", "cmd",
        ])
    }

    fn cell(&self, text: &str, is_last: bool) -> String {
        let width = self.kind.width.max(self.header.chars().count());
        match self.kind.align {
            Right => format!("{text:>width$}"),
            Left if is_last => text.to_owned(),
            Left => format!("{text:<width$}"),
        }
    }
}

/// The table with its headers, unless all are empty.
pub fn table(list: &ListProcessesResponse, users: &UserNames, columns: &[Column]) -> String {
    let context = Context {
        users,
        now_ns: list.now_ns,
    };
    let line = |text: &dyn Fn(&Column) -> String| {
        let last = columns.len().saturating_sub(1);
        let cells = columns.iter().enumerate();
        let cells = cells.map(|(index, column)| column.cell(&text(column), index == last));
        cells.collect::<Vec<_>>().join(" ")
    };
    let mut text = String::new();
    // Writing to a String cannot fail.
    if columns.iter().any(|column| !column.header.is_empty()) {
        let _ = writeln!(text, "{}", line(&|column| column.header.clone()));
    }
    for process in &list.processes {
        let value = |column: &Column| (column.kind.value)(process, &context);
        let _ = writeln!(text, "{}", line(&value));
    }
    text
}

fn first(ids: &[u32]) -> u32 {
    ids.first().copied().unwrap_or(0)
}

/// A user's name in eight columns, with a + where it is cut.
fn user(name: &str) -> String {
    match name.char_indices().nth(8) {
        None => name.to_owned(),
        Some(_) => name.chars().take(7).chain(['+']).collect(),
    }
}

fn age_ns(process: &ProcessInfo, now_ns: u64) -> u64 {
    now_ns.saturating_sub(process.started_at_ns)
}

/// CPU time as a percentage of the time since the start, at most 99.
fn utilization(process: &ProcessInfo, now_ns: u64) -> u64 {
    match age_ns(process, now_ns) {
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

/// `DD-HH:MM:SS`, without days where there are none.
fn cpu_time(ns: u64) -> String {
    let seconds = ns / NS_PER_SECOND;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let time = format!("{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match days {
        0 => time,
        days => format!("{days}-{time}"),
    }
}

/// The same, without hours too where there are none.
fn elapsed(ns: u64) -> String {
    let time = cpu_time(ns);
    match time.strip_prefix("00:") {
        Some(minutes) => minutes.to_owned(),
        None => time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NS_PER_SECOND;

    fn list() -> ListProcessesResponse {
        ListProcessesResponse {
            processes: vec![ProcessInfo {
                pid: 77,
                ppid: 1,
                uid: 4_000_000_000,
                started_at_ns: 1_700_000_000 * SECOND,
                cpu_ns: 30 * SECOND,
                command: "sleep 1000".to_owned(),
                name: "sleep".to_owned(),
                state: "S".to_owned(),
                threads: 1,
                resident_bytes: 8192,
                ..Default::default()
            }],
            now_ns: 1_700_000_060 * SECOND,
            ..Default::default()
        }
    }

    fn shown(columns: &[Column]) -> String {
        table(&list(), &UserNames::default(), columns)
    }

    #[test]
    fn the_full_table_is_that_of_ps() {
        let text = shown(&Column::full());
        let mut lines = text.lines();
        assert_eq!(
            lines.next().unwrap(),
            "UID          PID    PPID  C STIME TTY          TIME CMD"
        );
        let line = lines.next().unwrap();
        assert!(line.starts_with("4000000+      77       1 50 "), "{line}");
        assert!(line.ends_with(" ?        00:00:30 sleep 1000"), "{line}");
    }

    #[test]
    fn the_short_table_is_that_of_ps() {
        assert_eq!(
            shown(&Column::short()),
            "    PID TTY          TIME CMD\n     77 ?        00:00:30 sleep\n"
        );
    }

    #[test]
    fn a_column_has_the_header_that_is_given_and_no_line_if_all_are_empty() {
        let columns = Column::all(&["pid=PROCESS", "stat", "rss", "etime", "nlwp"]);
        assert_eq!(
            shown(&columns),
            "PROCESS STAT   RSS     ELAPSED NLWP\n     77 S        8       01:00    1\n"
        );
        assert_eq!(shown(&Column::all(&["comm="])), "sleep\n");
    }

    #[test]
    fn every_name_is_that_of_one_column() {
        let mut names: Vec<&str> = KINDS.iter().flat_map(|kind| kind.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(Column::new("wchan", None).is_none());
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
        assert_eq!(elapsed(3723 * SECOND), "01:02:03");
    }
}
