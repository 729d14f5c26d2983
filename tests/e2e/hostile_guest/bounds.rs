//! What an attack may cost the host.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rvm_tests::memory::Memory;
use rvm_tests::{Bundle, Rvm};

use super::MAX_TIME;

/// The most that one process of ours may have resident, with what the guest has touched of its
/// memory.
const MAX_KIB: u64 = 32 * 1024;

/// The most descriptors and threads of a process that is not jailed.
const MAX_DESCRIPTORS: usize = 128;
const MAX_THREADS: usize = 64;

/// The most threads of a jailed process.
const MAX_JAILED_THREADS: usize = 512;

/// The most of a CPU that the monitor, root's process, may take.
const MAX_SHARE: f64 = 0.5;

/// The most bytes of the console's log, with what is written before it starts over.
const MAX_CONSOLE: u64 = (1 << 20) + (128 << 10);

/// The most that the user sees: 20 lines of 2,000 bytes of each process's log in a minute, the end
/// of the console, and an error.
const MAX_SEEN: usize = 3 * 20 * 2100 + 8192;

/// The length of a clock tick, in which /proc counts CPU time.
const TICK: Duration = Duration::from_millis(10);

/// What was seen of a world while it was attacked.
pub struct Bounds<'a> {
    rvm: &'a Rvm,
    memory: Memory,
    longest: (&'static str, Duration),
    descriptors: usize,
    threads: usize,
    begun: Option<(Instant, Duration)>,
    share: f64,
    console: u64,
    rounds: u64,
    /// Files of the shared directory's own, and below the container's root.
    files: (usize, usize),
    seen: String,
}

impl<'a> Bounds<'a> {
    pub fn new(rvm: &'a Rvm) -> Self {
        Self {
            rvm,
            memory: rvm.watch_memory(),
            longest: ("nothing", Duration::ZERO),
            descriptors: 0,
            threads: 0,
            begun: None,
            share: 0.0,
            console: 0,
            rounds: 0,
            files: (0, 0),
            seen: String::new(),
        }
    }

    /// Runs a verb.
    pub fn time<T>(&mut self, verb: &'static str, run: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = run();
        let took = start.elapsed();
        assert!(took <= MAX_TIME, "{verb}: {took:?}");
        if took > self.longest.1 {
            self.longest = (verb, took);
        }
        result
    }

    /// The attack begins.
    pub fn begin(&mut self, bundle: &Bundle) {
        self.begun = Some((Instant::now(), self.monitors_time()));
        self.files = self.count_files(bundle);
    }

    /// Whether the guest has said that it attacks.
    pub fn has_begun(&self) -> bool {
        self.count_rounds() > 0
    }

    /// How many rounds the guest has made, at the last power of two.
    pub fn count_rounds(&self) -> u64 {
        let text = fs::read(self.rvm.root().join("box/console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\0', "");
        let counts = text
            .lines()
            .filter_map(|line| line.strip_prefix("rounds ")?.parse().ok());
        counts.max().unwrap_or(0)
    }

    /// Looks at every process.
    pub fn look(&mut self) {
        for pid in self.rvm.processes() {
            let is_jailed = program(pid).is_some_and(|path| path.ends_with("rvm-vmm"))
                || program(pid).is_some_and(|path| path.contains("qemu"));
            let count =
                |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
            let (descriptors, threads) = (count("fd"), count("task"));
            if is_jailed {
                assert!(threads <= MAX_JAILED_THREADS, "{threads} threads");
            } else {
                assert!(descriptors <= MAX_DESCRIPTORS, "{descriptors} descriptors");
                assert!(threads <= MAX_THREADS, "{threads} threads");
            }
            self.descriptors = self.descriptors.max(descriptors);
            self.threads = self.threads.max(threads);
        }
        let console = self.rvm.root().join("box/console.log");
        let length = fs::metadata(console).map_or(0, |metadata| metadata.len());
        self.console = self.console.max(length);
    }

    /// The attack is over; the container is still there.
    pub fn end(&mut self, bundle: &Bundle) {
        self.look();
        if let Some((start, before)) = self.begun {
            let spent = self.monitors_time().saturating_sub(before);
            self.share = spent.as_secs_f64() / start.elapsed().as_secs_f64();
        }
        let (own, _) = self.files;
        self.files = self.count_files(bundle);
        // One that has ended has none.
        assert!(
            self.files.0 <= own,
            "the guest has added to the shared directory itself"
        );
        self.rounds = self.count_rounds();
    }

    /// What the user has seen of the container's monitor, without the container's output.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// Asserts the bounds and prints a row of the table. `error` is what the last verb said.
    /// Returns whether the guest has said that it attacks.
    pub fn check(&mut self, attack: &str, engine: &str, error: &str) -> bool {
        let log = fs::read(self.rvm.path("create.log")).unwrap();
        self.seen = String::from_utf8_lossy(&log).replace('#', "") + error;
        let (verb, took) = self.longest;
        let kib = self.memory.peak_kib();
        println!(
            "| {attack} | {engine} | {} rounds | {:.1} MiB | {} descriptors | {} threads | {:.0} % | \
             {} files | {} + {} bytes | {verb} {:.1} s |",
            self.rounds,
            kib as f64 / 1024.0,
            self.descriptors,
            self.threads,
            self.share * 100.0,
            self.files.1,
            self.console,
            self.seen.len(),
            took.as_secs_f64(),
        );
        assert!(kib > 0 && kib <= MAX_KIB, "a process had {kib} KiB");
        assert!(
            self.share <= MAX_SHARE,
            "the monitor took {} of a CPU",
            self.share
        );
        assert!(
            self.console <= MAX_CONSOLE,
            "{} bytes of console",
            self.console
        );
        assert!(self.seen.len() <= MAX_SEEN, "{} bytes", self.seen.len());
        for line in self.seen.lines() {
            let is_clean = |c: char| !c.is_control() && c != '\u{202e}';
            assert!(line.chars().all(is_clean), "{line:?}");
            assert!(!line.contains("panicked"), "{line}");
        }
        let is_flood = matches!(attack, "console" | "serial");
        assert!(self.console > 0 || !is_flood, "the console is empty");
        self.rounds > 0
    }

    /// The CPU time of the processes that are not jailed.
    fn monitors_time(&self) -> Duration {
        let pids = self.rvm.processes().into_iter();
        let monitors =
            pids.filter(|pid| program(*pid).is_some_and(|path| path.ends_with("bin/rvm")));
        monitors.filter_map(cpu_time).sum()
    }

    fn count_files(&self, bundle: &Bundle) -> (usize, usize) {
        let shared = self.rvm.root().join("box/shared");
        (count(&shared, 1), count(&bundle.path().join("rootfs"), 2))
    }
}

/// The program of a process.
fn program(pid: i32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.to_string_lossy().into_owned())
}

/// See proc_pid_stat(5): fields 14 and 15, of which two are before the name's end.
fn cpu_time(pid: i32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: u32 = fields.filter_map(|field| field.parse::<u32>().ok()).sum();
    Some(TICK * ticks)
}

/// Names below a directory, so many levels deep.
fn count(directory: &Path, depth: usize) -> usize {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let inside = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() && depth > 0 => 1 + count(&entry.path(), depth - 1),
        _ => 1,
    });
    inside.sum()
}
