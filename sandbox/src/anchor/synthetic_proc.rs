//! A container's processes in the `/proc` of its [view](super::rootfs_view).
//!
//! `podman top` reads `/proc` in the mount namespace of the container's pid. The guest's processes
//! are not processes of the host, so the view's `/proc` holds files in the format of proc(5), made
//! from the agent's list of processes. They are written when a reader opens the directory; fanotify
//! blocks the reader until then. The guest controls the contents of the files but not their names,
//! which are numbers in bounds.

use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with, unlinkat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use rvm_protocol::ContainerId;
use rvm_protocol::agent::{ListProcessesResponse, ProcessInfo};

use crate::sandbox::Guest;
use rvm_sys::fanotify::AccessRequests;

/// Limits the host's memory to some 1,000 processes: a hostile guest may list any number.
pub const MOUNT_OPTIONS: &CStr = c"mode=755,size=8m,nr_inodes=8k";

/// The most processes that are shown. With more, readers get an error.
const MAX_PROCESSES: usize = 1000;

/// How long a reader waits for the guest's list.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// `USER_HZ`: clock ticks per second in the files of proc(5).
const HZ: u64 = 100;

const PAGE: u64 = 4096;

/// The name of a process's directory while it is written.
const NEW: &str = "new";

const FILES: [&str; 3] = ["stat", "status", "cmdline"];

/// Whether the container's engine reads this `/proc`. Only Podman is known to, and each container
/// takes one of root's fanotify groups: 128, unless fs.fanotify.max_user_groups says otherwise.
pub fn is_needed(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    let manager = annotations.and_then(|all| all.get("io.container.manager"));
    manager.is_some_and(|manager| manager == "libpod")
}

/// Serves the processes of the container `id` in its directory until `end` completes.
pub fn serve(
    dir: OwnedFd,
    id: &ContainerId,
    guest: &Arc<Guest>,
    end: impl Future<Output = ()> + Send + 'static,
) {
    let requests = AccessRequests::new();
    let watched = requests.and_then(|requests| {
        requests.watch_opens(dir.as_fd())?;
        Ok(requests)
    });
    let requests = match watched {
        Ok(requests) => requests,
        Err(error) => return tracing::info!("processes are not shown on the host: {error}"),
    };
    let (id, guest) = (id.to_owned(), Arc::clone(guest));
    tokio::spawn(async move {
        tokio::select! {
            error = handle_opens(&requests, &dir, &id, &guest) => {
                tracing::warn!("processes are no longer shown on the host: {error}");
            }
            () = end => {}
        }
    });
}

/// Writes the current processes before each open of the directory.
async fn handle_opens(
    requests: &AccessRequests,
    dir: &OwnedFd,
    id: &ContainerId,
    guest: &Guest,
) -> io::Error {
    let mut shown = Vec::new();
    loop {
        let request = match requests.next().await {
            Ok(request) => request,
            Err(error) => return error,
        };
        let listed = tokio::time::timeout(LIST_TIMEOUT, guest.agent().processes(id)).await;
        let written = match &listed {
            Ok(Ok(list)) => write(dir, list, &mut shown),
            Ok(Err(error)) => Err(io::Error::other(error.to_string())),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match written {
            Ok(()) => request.allow(),
            Err(error) => tracing::info!("processes cannot be shown on the host: {error}"),
        }
    }
}

/// Writes the listed processes and removes all others. `shown` holds the pids in the directory.
fn write(dir: &OwnedFd, list: &ListProcessesResponse, shown: &mut Vec<u32>) -> io::Result<()> {
    if list.processes.len() > MAX_PROCESSES {
        return Err(io::Error::other("there are too many"));
    }
    let clock = Clock::read(list.now_ns);
    let pids = PidTable::of(list);
    // The view's link to itself.
    let _ = unlinkat(dir, "1", AtFlags::empty());
    text(
        dir,
        "stat",
        &format!("btime {}\n", clock.boot_time.as_secs()),
    )?;
    let before = std::mem::take(shown);
    for process in &list.processes {
        if let Some(pid) = pids.pid(process).filter(|pid| !shown.contains(pid)) {
            shown.push(pid);
            let texts = [
                stat(pid, process, &pids, &clock),
                status(pid, process, &pids),
                format!("{}\0", process.command),
            ];
            write_process(dir, &pid.to_string(), &texts)?;
        }
    }
    let mut gone = before.iter().filter(|pid| !shown.contains(pid));
    gone.try_for_each(|pid| remove(dir, &pid.to_string()))
}

/// Exchanges a process's directory atomically: a reader may have the old one open.
fn write_process(dir: &OwnedFd, pid: &str, texts: &[String; 3]) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    remove(dir, NEW)?;
    mkdirat(dir, NEW, mode)?;
    let new = openat(dir, NEW, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    for (name, content) in FILES.iter().zip(texts) {
        text(&new, name, content)?;
    }
    mkdirat(&new, "ns", mode)?;
    // The number of no namespace of the host.
    rustix::fs::symlinkat("pid:[0]", &new, "ns/pid")?;
    match renameat_with(dir, NEW, dir, pid, RenameFlags::EXCHANGE) {
        Err(Errno::NOENT) => Ok(renameat_with(dir, NEW, dir, pid, RenameFlags::empty())?),
        Err(error) => Err(error.into()),
        Ok(()) => remove(dir, NEW),
    }
}

fn text(dir: &OwnedFd, name: &str, content: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::from_raw_mode(0o444))?;
    File::from(file).write_all(content.as_bytes())
}

/// Removes a process's directory, complete or not.
fn remove(dir: &OwnedFd, name: &str) -> io::Result<()> {
    let files = FILES.iter().chain(&["ns/pid"]);
    let files = files.map(|file| (format!("{name}/{file}"), AtFlags::empty()));
    let dirs = [format!("{name}/ns"), name.to_owned()].map(|dir| (dir, AtFlags::REMOVEDIR));
    for (path, flags) in files.chain(dirs) {
        match unlinkat(dir, path, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Maps the guest's pids to those in the container's pid namespace.
struct PidTable<'a> {
    list: &'a ListProcessesResponse,
    /// The index of the container's namespace in a process's list of pids, as in NSpid of
    /// proc_pid_status(5). A process may be in nested namespaces, too.
    level: usize,
}

impl<'a> PidTable<'a> {
    fn of(list: &'a ListProcessesResponse) -> Self {
        let depths = list.processes.iter().map(|process| process.pids.len());
        Self {
            list,
            level: depths.min().unwrap_or(0).saturating_sub(1),
        }
    }

    fn pid(&self, process: &ProcessInfo) -> Option<u32> {
        self.in_container(&process.pids)
            .filter(|pid| (1..=i32::MAX.unsigned_abs()).contains(pid))
    }

    fn in_container(&self, ids: &[u32]) -> Option<u32> {
        ids.get(self.level).copied()
    }

    /// 0 if the parent is outside the container.
    fn parent(&self, process: &ProcessInfo) -> u32 {
        let is_parent = |other: &&ProcessInfo| other.pid == process.ppid;
        let parent = self.list.processes.iter().find(is_parent);
        parent.and_then(|parent| self.pid(parent)).unwrap_or(0)
    }
}

/// Converts the guest's times to the host's.
struct Clock {
    uptime: Duration,
    boot_time: Duration,
    guest_now_ns: u64,
}

impl Clock {
    fn read(guest_now_ns: u64) -> Self {
        let up = clock_gettime(ClockId::Boottime);
        let up = Duration::from_secs(up.tv_sec.unsigned_abs());
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            uptime: up,
            boot_time: now.unwrap_or_default().saturating_sub(up),
            guest_now_ns,
        }
    }

    /// A start time in ticks since the host's boot, such that the process's age is right.
    fn started(&self, process: &ProcessInfo) -> u64 {
        let age = self.guest_now_ns.saturating_sub(process.started_at_ns);
        ticks(self.uptime.saturating_sub(Duration::from_nanos(age)))
    }
}

fn ticks(duration: Duration) -> u64 {
    let hundredths = duration.as_millis() / u128::from(1000 / HZ);
    u64::try_from(hundredths).unwrap_or(u64::MAX)
}

/// See proc_pid_stat(5). Unknown fields are 0. Readers split at spaces, so the name has none.
fn stat(pid: u32, process: &ProcessInfo, pids: &PidTable<'_>, clock: &Clock) -> String {
    let mut text = format!(
        "{pid} ({}) {} {} {} {} 0 -1 0 0 0 0 0 {} 0 0 0 {} {} {} 0 {} {} {}",
        process.name.replace(char::is_whitespace, "_"),
        state(process),
        pids.parent(process),
        pids.in_container(&process.process_groups).unwrap_or(0),
        pids.in_container(&process.sessions).unwrap_or(0),
        ticks(Duration::from_nanos(process.cpu_ns)),
        process.nice.saturating_add(20),
        process.nice,
        process.threads,
        clock.started(process),
        process.virtual_bytes,
        process.resident_bytes / PAGE,
    );
    text += &" 0".repeat(28);
    text + "\n"
}

/// See proc_pid_status(5). Unknown fields are absent.
fn status(pid: u32, process: &ProcessInfo, pids: &PidTable<'_>) -> String {
    let mut text = format!(
        "Name:\t{}\nState:\t{}\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{}\n",
        process.name,
        state(process),
        pids.parent(process),
    );
    // Writing to a String cannot fail.
    for (key, ids) in [
        ("Uid", four_ids(&process.uids, process.uid)),
        ("Gid", four_ids(&process.gids, 0)),
        ("Groups", joined(&process.groups)),
        ("NSpid", pid.to_string()),
        ("VmSize", format!("{} kB", process.virtual_bytes / 1024)),
        ("VmRSS", format!("{} kB", process.resident_bytes / 1024)),
        ("Threads", process.threads.to_string()),
        ("Seccomp", process.seccomp.to_string()),
    ] {
        let _ = writeln!(text, "{key}:\t{ids}");
    }
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    for (key, set) in sets.iter().zip(&process.capabilities) {
        let _ = writeln!(text, "{key}:\t{set:016x}");
    }
    text
}

/// The letter of the process's state.
fn state(process: &ProcessInfo) -> char {
    let letter = process.state.chars().next();
    letter.filter(char::is_ascii_alphabetic).unwrap_or('?')
}

/// Real, effective, saved and file system id.
fn four_ids(ids: &[u32], fallback: u32) -> String {
    match ids.len() {
        4 => joined(ids),
        _ => joined(&[fallback; 4]),
    }
}

fn joined(ids: &[u32]) -> String {
    let words: Vec<String> = ids.iter().map(u32::to_string).collect();
    words.join("\t")
}

/// What is shown of a guest's list, as text.
#[cfg(any(test, feature = "fuzzing"))]
pub fn shown(list: &ListProcessesResponse) -> String {
    let (clock, pids) = (Clock::read(list.now_ns), PidTable::of(list));
    let one = |process: &ProcessInfo| {
        let pid = pids.pid(process)?;
        Some(stat(pid, process, &pids, &clock) + &status(pid, process, &pids))
    };
    list.processes.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const SECOND: u64 = 1_000_000_000;

    fn process(pids: &[u32], ppid: u32, name: &str) -> ProcessInfo {
        ProcessInfo {
            pid: pids[0],
            ppid,
            uid: 33,
            started_at_ns: 100 * SECOND,
            cpu_ns: 2 * SECOND,
            command: format!("{name} 1000"),
            pids: pids.to_vec(),
            name: name.to_owned(),
            state: "S".to_owned(),
            threads: 1,
            resident_bytes: 3 * PAGE,
            uids: vec![33, 33, 33, 33],
            gids: vec![5, 6, 7, 8],
            capabilities: vec![0, 1, 2, 3, 4],
            ..Default::default()
        }
    }

    fn list(processes: Vec<ProcessInfo>) -> ListProcessesResponse {
        ListProcessesResponse {
            processes,
            now_ns: 130 * SECOND,
            ..Default::default()
        }
    }

    struct Shown(tempfile::TempDir, OwnedFd, Vec<u32>);

    impl Shown {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink("1", dir.path().join("1")).unwrap();
            let fd = File::open(dir.path()).unwrap().into();
            Self(dir, fd, Vec::new())
        }

        fn write(&mut self, processes: Vec<ProcessInfo>) -> io::Result<()> {
            write(&self.1, &list(processes), &mut self.2)
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.path().join(path)).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
            let names = fs::read_dir(self.0.path()).unwrap().map(name);
            let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn processes_have_the_pids_of_the_containers_namespace() {
        let mut shown = Shown::new();
        let processes = vec![
            process(&[70, 1], 2, "sh"),
            process(&[77, 9], 70, "a b"),
            process(&[78, 10, 1], 77, "in"),
        ];
        shown.write(processes).unwrap();
        assert_eq!(shown.names(), ["1", "10", "9", "stat"]);
        let stat = shown.read("9/stat");
        let fields: Vec<&str> = stat.split_whitespace().collect();
        assert_eq!(fields.len(), 52);
        assert_eq!(fields[..4], ["9", "(a_b)", "S", "1"]);
        assert_eq!((fields[13], fields[23]), ("200", "3"));
        let up = Clock::read(0).uptime.as_secs();
        let started: u64 = fields[21].parse().unwrap();
        assert!(started.abs_diff((up - 30) * HZ) <= HZ, "{started} {up}");
        let status = shown.read("10/status");
        assert!(status.contains("PPid:\t9\n"), "{status}");
        assert!(status.contains("Gid:\t5\t6\t7\t8\n"), "{status}");
        assert!(status.contains("CapEff:\t0000000000000002\n"), "{status}");
        assert_eq!(shown.read("1/cmdline"), "sh 1000\0");
        assert!(fs::read_link(shown.0.path().join("1/ns/pid")).is_ok());
        // Ended processes are gone, the others are written again.
        shown.write(vec![process(&[70, 1], 2, "other")]).unwrap();
        assert_eq!(shown.names(), ["1", "stat"]);
        assert_eq!(shown.read("1/cmdline"), "other 1000\0");
    }

    #[test]
    fn a_lying_guest_shows_nothing_but_processes() {
        let mut shown = Shown::new();
        let odd = ProcessInfo {
            state: "/..".to_owned(),
            uids: vec![1; 100],
            ..process(&[u32::MAX - 1], 1, ") R")
        };
        let none = ProcessInfo::default();
        let twice = [process(&[5], 5, "x"), process(&[5], 5, "y")];
        shown
            .write([vec![odd.clone()], twice.to_vec()].concat())
            .unwrap();
        assert_eq!(shown.names(), ["5", "stat"]);
        shown.write(vec![none]).unwrap();
        assert_eq!(shown.names(), ["stat"]);
        let odd = ProcessInfo {
            pids: vec![7],
            ..odd
        };
        shown.write(vec![odd]).unwrap();
        assert!(
            shown.read("7/stat").starts_with("7 ()_R) ? 0 "),
            "{}",
            shown.read("7/stat")
        );
        assert!(shown.read("7/status").contains("Uid:\t33\t33\t33\t33\n"));
        assert!(
            shown
                .write(vec![process(&[1], 0, "x"); MAX_PROCESSES + 1])
                .is_err()
        );
    }
}
