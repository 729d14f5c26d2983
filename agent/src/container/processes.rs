//! ListProcesses: the processes of a container, read from /proc.
//!
//! A process that is inside execve(2) has its new memory for a moment before the kernel has put the
//! arguments there, and the end of the start's channel, which the kernel closes on the way, lies
//! before that moment. So a process without arguments is read again a little later.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::param::page_size;
use rustix::time::{ClockId, clock_gettime};
use rvm_protocol::agent as api;

use super::{Container, ContainerError};

/// The longest command line in the answer, in bytes.
const MAX_COMMAND: usize = 4096;
/// The longest command lines of all processes together, in bytes. The host reads answers of 384
/// KiB, which some two thousand processes reach beside that.
const MAX_COMMANDS: usize = 128 * 1024;
/// How long execve(2) may take to set the arguments, in milliseconds, step by step. A process that
/// has none by then has none at all.
const EXEC_STEPS_MS: [u64; 4] = [1, 2, 4, 8];
/// The first major number of pseudo-terminals, and the number of majors.
const PTS_MAJOR: u64 = 136;
const PTS_MAJORS: u64 = 8;

impl Container {
    /// Lists every process in the container's group, without those that end meanwhile.
    pub async fn processes(&self) -> Result<api::ListProcessesResponse, ContainerError> {
        let clock = Clock::read();
        let mut list = List::default();
        for pid in self.cgroup.processes()? {
            list.add(pid, &clock);
            // There may be thousands, and other requests wait.
            tokio::task::yield_now().await;
        }
        for step in EXEC_STEPS_MS {
            if list.executing.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(step)).await;
            list.read_executing(&clock);
        }
        Ok(api::ListProcessesResponse {
            processes: list.processes,
            now_ns: nanoseconds(clock.now),
            ..Default::default()
        })
    }
}

/// The processes that were found.
#[derive(Default)]
struct List {
    processes: Vec<api::ProcessInfo>,
    /// The bytes of their command lines.
    commands: usize,
    /// The indices of those that may be in execve(2).
    executing: Vec<usize>,
}

impl List {
    fn add(&mut self, pid: i32, clock: &Clock) {
        let Some(found) = read(pid, clock) else {
            return;
        };
        if found.is_executing {
            self.executing.push(self.processes.len());
        }
        let info = self.bounded(found.info);
        self.processes.push(info);
    }

    /// Reads the processes again that were in execve(2).
    fn read_executing(&mut self, clock: &Clock) {
        for index in std::mem::take(&mut self.executing) {
            let pid = self.processes[index].pid;
            let Some(found) = read(pid.cast_signed(), clock) else {
                continue;
            };
            if found.is_executing {
                self.executing.push(index);
            } else {
                self.commands -= self.processes[index].command.len();
                self.processes[index] = self.bounded(found.info);
            }
        }
    }

    /// Leaves a command line out that the answer has no room for.
    fn bounded(&mut self, mut info: api::ProcessInfo) -> api::ProcessInfo {
        if self.commands + info.command.len() > MAX_COMMANDS {
            info.command.clear();
        }
        self.commands += info.command.len();
        info
    }
}

/// Translates the times in /proc to the guest's clock.
struct Clock {
    now: Duration,
    booted: Duration,
    ticks_per_second: u64,
}

impl Clock {
    fn read() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let up = clock_gettime(ClockId::Boottime);
        let up = Duration::new(
            up.tv_sec.unsigned_abs(),
            u32::try_from(up.tv_nsec).unwrap_or(0),
        );
        Self {
            now,
            booted: now.saturating_sub(up),
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
        }
    }

    fn duration(&self, ticks: u64) -> Duration {
        Duration::from_nanos((ticks).saturating_mul(1_000_000_000 / self.ticks_per_second))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A process, and whether it may be in execve(2): it has memory, and no arguments in it. A zombie
/// and a thread of the kernel have no memory.
struct Found {
    info: api::ProcessInfo,
    is_executing: bool,
}

fn read(pid: i32, clock: &Clock) -> Option<Found> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let stat = Stat::parse(&stat)?;
    let status = Status(&status);
    let uids: Vec<u32> = status.numbers("Uid:", 10);
    let capability_sets = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];
    let command = command(&arguments);
    let is_executing = arguments.is_empty() && stat.virtual_bytes > 0;
    let info = api::ProcessInfo {
        pid: pid.unsigned_abs(),
        ppid: stat.ppid,
        uid: uids.get(1).copied().unwrap_or(0),
        started_at_ns: nanoseconds(clock.booted + clock.duration(stat.started)),
        cpu_ns: nanoseconds(clock.duration(stat.cpu)),
        terminal: terminal(stat.terminal),
        command: command.unwrap_or_else(|| format!("[{}]", stat.name)),
        pids: status.numbers("NSpid:", 10),
        process_groups: status.numbers("NSpgid:", 10),
        sessions: status.numbers("NSsid:", 10),
        name: stat.name.to_owned(),
        state: stat.state.to_owned(),
        nice: stat.nice,
        threads: stat.threads,
        virtual_bytes: stat.virtual_bytes,
        resident_bytes: stat.resident_pages.saturating_mul(page_size() as u64),
        uids,
        gids: status.numbers("Gid:", 10),
        groups: status.numbers("Groups:", 10),
        capabilities: capability_sets
            .iter()
            .flat_map(|key| status.numbers(key, 16))
            .collect(),
        seccomp: status.numbers("Seccomp:", 10).first().copied().unwrap_or(0),
        ..Default::default()
    };
    Some(Found { info, is_executing })
}

/// Fields of /proc/pid/stat.
struct Stat<'a> {
    name: &'a str,
    state: &'a str,
    ppid: u32,
    terminal: u64,
    cpu: u64,
    nice: i32,
    threads: u32,
    started: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl<'a> Stat<'a> {
    /// The second field is the program's name in parentheses, which may hold anything.
    fn parse(text: &'a str) -> Option<Self> {
        let (before, after) = text.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        // From field 3 on, as proc_pid_stat(5) counts.
        let fields: Vec<_> = after.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            name,
            state: fields.first()?,
            ppid: u32::try_from(field(4)?).ok()?,
            terminal: field(7)?,
            cpu: field(14)? + field(15)?,
            nice: fields.get(19 - 3)?.parse().ok()?,
            threads: u32::try_from(field(20)?).ok()?,
            started: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// The text of /proc/pid/status.
struct Status<'a>(&'a str);

impl Status<'_> {
    /// The numbers of the line that begins with `key`.
    fn numbers<T: TryFrom<u64>>(&self, key: &str, radix: u32) -> Vec<T> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(key));
        let words = line.into_iter().flat_map(str::split_whitespace);
        words
            .filter_map(|word| T::try_from(u64::from_str_radix(word, radix).ok()?).ok())
            .collect()
    }
}

/// The name of a controlling terminal below /dev; empty if there is none, or one that has no name
/// in a container.
fn terminal(device: u64) -> String {
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | (device >> 12) & 0xfff00,
    );
    if (PTS_MAJOR..PTS_MAJOR + PTS_MAJORS).contains(&major) {
        format!("pts/{}", (major - PTS_MAJOR) * 256 + minor)
    } else {
        String::new()
    }
}

/// The arguments with spaces between them.
fn command(arguments: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&arguments[..arguments.len().min(MAX_COMMAND)]);
    let text = text.trim_end_matches('\0').replace('\0', " ");
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_move_the_fields() {
        let text = "7 (a) b (c) S 5 7 7 34817 7 0 0 0 0 0 30 12 0 0 20 -5 3 0 4711 9 8";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.name, stat.state, stat.ppid), ("a) b (c", "S", 5));
        assert_eq!((stat.cpu, stat.started), (42, 4711));
        assert_eq!((stat.nice, stat.threads), (-5, 3));
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (9, 8));
        assert_eq!(terminal(stat.terminal), "pts/1");
    }

    #[test]
    fn what_has_no_terminal_names_none() {
        assert_eq!(terminal(0), "");
        assert_eq!(terminal(0x440), "");
    }

    #[test]
    fn numbers_of_a_status_stand_behind_their_key() {
        let status = Status("Name:\tUid:\nUid:\t1\t2\t3\t4\nNSpid:\t77\t1\nCapEff:\t000001ff\n");
        assert_eq!(status.numbers::<u32>("Uid:", 10), [1, 2, 3, 4]);
        assert_eq!(status.numbers::<u64>("CapEff:", 16), [0x1ff]);
        assert_eq!(status.numbers::<u32>("NSpid:", 10), [77, 1]);
        assert!(status.numbers::<u32>("Groups:", 10).is_empty());
    }

    #[test]
    fn arguments_are_separated_by_spaces() {
        assert_eq!(command(b"sleep\x001000\x00").as_deref(), Some("sleep 1000"));
        assert_eq!(command(b""), None);
    }

    #[test]
    fn this_process_is_found() {
        let pid = std::process::id();
        let found = read(pid as i32, &Clock::read()).unwrap();
        assert!(!found.is_executing);
        let process = found.info;
        assert_eq!(process.pid, pid);
        assert!(process.ppid > 0 && !process.command.is_empty());
        assert!(process.pids[0] == pid && process.uids[1] == process.uid);
        assert_eq!((process.gids.len(), process.capabilities.len()), (4, 5));
        assert!(process.resident_bytes > 0 && process.threads > 0);
        let now = nanoseconds(Clock::read().now);
        assert!((now - 600_000_000_000..=now).contains(&process.started_at_ns));
    }

    #[test]
    fn a_process_in_execve_is_read_again() {
        let clock = Clock::read();
        let mut list = List::default();
        list.add(std::process::id() as i32, &clock);
        let command = std::mem::replace(&mut list.processes[0].command, "[exe]".to_owned());
        (list.commands, list.executing) = ("[exe]".len(), vec![0]);
        list.read_executing(&clock);
        assert_eq!(list.processes[0].command, command);
        assert_eq!(list.commands, command.len());
        assert!(list.executing.is_empty());
    }

    #[test]
    fn a_zombie_is_not_in_execve() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        let zombie = loop {
            let found = read(pid, &Clock::read()).unwrap();
            if found.info.state == "Z" {
                break found;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(!zombie.is_executing && zombie.info.command == "[true]");
        child.wait().unwrap();
    }

    #[test]
    fn command_lines_are_bounded_together() {
        let mut list = List::default();
        let info = |length| api::ProcessInfo {
            command: "x".repeat(length),
            ..Default::default()
        };
        assert_eq!(
            list.bounded(info(MAX_COMMANDS - 1)).command.len(),
            MAX_COMMANDS - 1
        );
        assert_eq!(list.bounded(info(2)).command, "");
        assert_eq!(list.bounded(info(1)).command, "x");
    }
}
