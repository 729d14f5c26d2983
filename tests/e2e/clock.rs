//! The guest's clock beside the host's. No test sets the host's clock.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rvm_tests::{Bundle, Rvm, command};
use serde_json::json;

const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

/// How far the guest's clock may be from the host's, in nanoseconds: half of the time that a call
/// of the agent takes where a machine in software emulates another under load.
const EXACT: i128 = 50_000_000;

/// How long a wrong clock may stay wrong: sandbox/src/sandbox/clock.rs compares the clocks every 30
/// seconds, and a machine under load takes its time.
const CORRECTED: Duration = Duration::from_secs(90);

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
        let bundle = Bundle::new(&["inside", "clock", &offset.to_string()]).with(|config| {
            let capabilities = &mut config["process"]["capabilities"];
            for set in ["bounding", "effective", "permitted"] {
                capabilities[set] = json!(["CAP_SYS_TIME"]);
            }
        });
        fs::copy(INSIDE, bundle.rootfs("bin/inside")).unwrap();
        let mut run = rvm.command(&["run", "--bundle"]);
        run.arg(bundle.write()).arg(id);
        let mut child = run
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
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
