//! A hostile program in the place of rvm-vmm (`tests/hostile`), which plays machine and agent: rvm
//! and the shim stay small, their verbs and calls answer soon or can be ended, what the user sees
//! is short and clean, and nothing is left behind.
//!
//! With `--show-output` each test prints its rows of the table: mode, program, the most memory of
//! one process, the longest time of a verb, what the user sees first.

/// Tests by name: the mode, what is done to the machine once the container runs, and how some verbs
/// end. A module's own `live` leads the container through its life.
macro_rules! cases {
    ($($name:ident: $mode:literal $(after $once_started:expr)? => [$($expected:expr),* $(,)?];)*) => {$(
        #[test]
        fn $name() {
            #[allow(unused_mut, unused_assignments)]
            let mut once_started: fn(&Rvm) = |_| {};
            $(once_started = $once_started;)?
            if let Some(outcomes) = live($mode, once_started) {
                expect(&outcomes, &[$($expected),*]);
            }
        }
    )*};
}

#[path = "hostile/shim.rs"]
mod shim;
#[path = "hostile/verbs.rs"]
mod verbs;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use rvm_tests::memory::Memory;
use rvm_tests::{Rvm, command, leaks};

/// The most that one process of ours may have resident.
const MAX_KIB: u64 = 32 * 1024;

/// How long a verb may take, its end included that is asked for after [`patience`].
const MAX_TIME: Duration = Duration::from_secs(10);

/// How long a verb is waited for before it is ended.
fn patience(mode: &str, verb: &str) -> Duration {
    Duration::from_secs(match (mode, verb) {
        // The machine is given five seconds to say why its agent has hung up, the guest as many to
        // end what is killed and to close its streams.
        ("agent-hangs-up" | "truncated-frame" | "garbage" | "oversize-frames", _)
        | ("denies" | "keeps-streams", "run")
        | (_, "kill" | "wait" | "delete") => 9,
        _ => 2,
    })
}

/// The most bytes of one line that the user sees: the longest message of an agent, and what is said
/// around it.
const MAX_LINE: usize = 17 * 1024;

/// The most lines: those of a log, of the end of a console, and an error.
const MAX_LINES: usize = 20 + 20 + 5;

/// A world whose machines are played by the program in this mode; None where that is impossible.
fn world(mode: &str) -> Option<Rvm> {
    // The device is passed on and never used.
    if !Path::new("/dev/kvm").exists() {
        println!("skipped: there is no /dev/kvm");
        return None;
    }
    let rvm = Rvm::new().on_engine("kvm");
    let program = rvm.path(&format!("hostile-{mode}"));
    symlink(env!("CARGO_BIN_EXE_rvm-hostile"), &program).unwrap();
    // A machine that becomes a template has seen nothing hostile.
    let config = format!("engine = \"kvm\"\ntemplates = \"off\"\nvmm = {program:?}");
    Some(rvm.configured(&config))
}

/// Stops the program that plays the machine.
fn freeze(rvm: &Rvm) {
    for pid in rvm.processes() {
        if leaks::command_line(pid).contains("/hostile-") {
            command::signal(pid, libc::SIGSTOP);
        }
    }
}

/// What came of a verb, or of a call.
#[derive(Debug)]
struct Outcome {
    verb: &'static str,
    /// 0 for success; -n for one that had to be ended by signal n, or by its time limit.
    code: i32,
    took: Duration,
    /// Its error output, or error.
    error: String,
}

/// Asserts what holds in every mode, and prints a row of the table.
#[track_caller]
fn check(mode: &str, program: &str, outcomes: &[Outcome], memory: &Memory) {
    let kib = memory.peak_kib();
    let longest = outcomes.iter().map(|outcome| outcome.took).max().unwrap();
    let seen = outcomes.iter().find(|outcome| !outcome.error.is_empty());
    let seen = seen.and_then(|outcome| outcome.error.lines().next());
    let seen: String = seen.unwrap_or("nothing").chars().take(160).collect();
    println!(
        "| {mode} | {program} | {:.1} MiB | {:.1} s | {seen} |",
        kib as f64 / 1024.0,
        longest.as_secs_f64()
    );
    for outcome in outcomes {
        let Outcome { verb, error, .. } = outcome;
        assert!(outcome.took <= MAX_TIME, "{verb}: {:?}", outcome.took);
        assert_clean(verb, error);
        for line in error.lines() {
            assert!(line.len() <= MAX_LINE, "{verb}: {} bytes", line.len());
            assert!(!line.contains("panicked"), "{verb}: {line}");
        }
        assert!(error.lines().count() <= MAX_LINES, "{verb}: {error}");
    }
    assert!(kib > 0, "no process was seen");
    assert!(kib <= MAX_KIB, "{mode}: {program} had {kib} KiB");
}

/// Asserts that a text moves no cursor and changes no direction of writing.
#[track_caller]
fn assert_clean(verb: &str, text: &str) {
    let is_clean = |c: char| !c.is_control() && c != '\u{202e}';
    for line in text.lines() {
        assert!(line.chars().all(is_clean), "{verb}: {line:?}");
    }
}

/// Asserts how a verb ended, and that its error output holds some words.
#[track_caller]
fn expect(outcomes: &[Outcome], expected: &[(&str, i32, &str)]) {
    for (verb, code, words) in expected {
        let mut found = outcomes.iter().filter(|outcome| outcome.verb == *verb);
        let outcome = found.next().unwrap_or_else(|| panic!("no {verb}"));
        assert_eq!(outcome.code, *code, "{outcome:?}");
        assert!(outcome.error.contains(words), "{outcome:?}");
    }
}
