//! The guest's clock beside the host's, which is set where it is the nested machine's.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime, clock_settime};
use rvm_tests::{Bundle, Rvm, command};

const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

/// How far the guest's clock may be from the host's, in nanoseconds: half of the time that a call
/// of the agent takes where a machine in software emulates another under load.
const EXACT: i128 = 50_000_000;

/// How long a wrong clock may stay wrong: sandbox/src/sandbox/clock.rs compares the clocks every 30
/// seconds, and a machine under load takes its time.
const CORRECTED: Duration = Duration::from_secs(90);

/// How long the guest may have another time after the host's clock was set.
const FOLLOWED: Duration = Duration::from_secs(5);

/// The host's clock, which one test sets while no other compares.
static HOST: RwLock<()> = RwLock::new(());

/// A container that tells what time it has.
struct Clock {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// From the program's first instructions.
    first: Times,
}

/// CLOCK_REALTIME and CLOCK_MONOTONIC in the guest, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    real: i128,
    monotonic: i128,
}

/// The guest's clock is ahead of the host's by at least and at most these nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Ahead(i128, i128);

fn host() -> i128 {
    UNIX_EPOCH.elapsed().unwrap().as_nanos() as i128
}

impl Clock {
    /// Starts the container. Its program sets the clock this many milliseconds ahead after its
    /// first look.
    fn start(rvm: &Rvm, id: &str, offset: i64) -> Self {
        let bundle = Bundle::new(&["inside", "clock", &offset.to_string()]);
        let bundle = bundle.capabilities(&["CAP_SYS_TIME"]);
        fs::copy(INSIDE, bundle.rootfs("bin/inside")).unwrap();
        let mut child = rvm.spawn_piped(&bundle, id);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        Self {
            first: times(&mut stdout),
            stdin: child.stdin.take().unwrap(),
            stdout,
            child,
        }
    }

    fn ask(&mut self) -> (Times, Ahead) {
        let before = host();
        self.stdin.write_all(b"\n").unwrap();
        let times = times(&mut self.stdout);
        (times, Ahead(times.real - host(), times.real - before))
    }

    /// The narrowest of several looks.
    fn compare(&mut self) -> (Times, Ahead) {
        let looks = (0..30).map(|_| self.ask());
        looks.min_by_key(|(_, ahead)| ahead.1 - ahead.0).unwrap()
    }

    fn end(self) {
        drop((self.stdin, self.stdout));
        assert!(command::wait(self.child).status.success());
    }
}

impl Ahead {
    /// Whether the clocks may be equal.
    fn is_exact(self) -> bool {
        self.0 <= EXACT && self.1 >= -EXACT
    }
}

fn times(stdout: &mut BufReader<ChildStdout>) -> Times {
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let (real, monotonic) = line.trim().split_once(' ').unwrap();
    Times {
        real: real.parse().unwrap(),
        monotonic: monotonic.parse().unwrap(),
    }
}

/// Keeps every CPU of the host busy until it is dropped.
struct Load(Vec<Child>);

impl Load {
    fn new() -> Self {
        let busy = |_| {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", "while :; do :; done"]).spawn().unwrap()
        };
        let cpus = std::thread::available_parallelism().unwrap().get();
        Self((0..2 * cpus).map(busy).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn the_clock_is_right_at_a_programs_first_instruction_and_after_a_pause() {
    let _host = HOST.read().unwrap_or_else(PoisonError::into_inner);
    let rvm = Rvm::new();
    let load = Load::new();
    let mut clock = Clock::start(&rvm, "box", 0);
    drop(load);
    let (later, ahead) = clock.compare();
    assert!(ahead.is_exact(), "{ahead:?}");
    // What the clock was wrong by at first shows as a jump since then.
    let first = clock.first;
    let jump = (later.real - first.real) - (later.monotonic - first.monotonic);
    assert!(jump.abs() < EXACT, "{first:?} and then {later:?}: {jump}");

    rvm.ok(&["pause", "box"]);
    std::thread::sleep(Duration::from_secs(2));
    rvm.ok(&["resume", "box"]);
    let (resumed, ahead) = clock.compare();
    assert!(ahead.is_exact(), "{ahead:?}");
    assert!(resumed.monotonic - later.monotonic > 2_000_000_000);
    clock.end();
}

#[test]
fn a_wrong_clock_is_set_right_and_the_monotonic_clock_goes_on() {
    let _host = HOST.read().unwrap_or_else(PoisonError::into_inner);
    let rvm = Rvm::new();
    let ahead = Clock::start(&rvm, "ahead", 3_600_000);
    let behind = Clock::start(&rvm, "behind", -3_600_000);
    let set = Instant::now();
    for mut clock in [ahead, behind] {
        let mut before = clock.first;
        loop {
            let (now, ahead) = clock.ask();
            assert!(now.monotonic > before.monotonic);
            before = now;
            if ahead.is_exact() {
                break;
            }
            assert!(set.elapsed() < CORRECTED, "{ahead:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        let (_, ahead) = clock.compare();
        assert!(ahead.is_exact(), "{ahead:?}");
        clock.end();
    }
}

/// Sets the host's clock this many seconds ahead.
fn set_host_ahead(seconds: i64) {
    let mut now = clock_gettime(ClockId::Realtime);
    now.tv_sec += seconds;
    clock_settime(ClockId::Realtime, now).unwrap();
}

#[test]
fn the_guest_follows_when_the_hosts_clock_is_set_and_its_monotonic_clock_goes_on() {
    if std::env::var_os("RVM_TEST_MAY_SET_CLOCK").is_none() {
        println!("skipped: only the nested machine's clock may be set");
        return;
    }
    let _host = HOST.write().unwrap_or_else(PoisonError::into_inner);
    let rvm = Rvm::new();
    let mut clock = Clock::start(&rvm, "box", 0);
    let (mut before, ahead) = clock.compare();
    assert!(ahead.is_exact(), "{ahead:?}");
    for seconds in [3600, -3600] {
        set_host_ahead(seconds);
        let set = Instant::now();
        loop {
            let (now, ahead) = clock.ask();
            let went = now.monotonic - before.monotonic;
            assert!(
                (0..60_000_000_000).contains(&went),
                "{before:?} and then {now:?}"
            );
            before = now;
            if ahead.is_exact() {
                break;
            }
            assert!(set.elapsed() < FOLLOWED, "{ahead:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("{seconds} s: followed after {:?}", set.elapsed());
        let (_, ahead) = clock.compare();
        assert!(ahead.is_exact(), "{ahead:?}");
    }
    clock.end();
}
