//! rvm's verbs.

use std::fs::{self, File};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use rvm_tests::{Bundle, Rvm, command};

use super::{MAX_TIME, Outcome, assert_clean, check, expect, freeze, patience, world};

/// How long a verb that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(1);

/// The life of a container, verb after verb.
struct Life {
    rvm: Rvm,
    outcomes: Vec<Outcome>,
    /// Open until the end, so that there are streams in both directions.
    inputs: Vec<ChildStdin>,
    /// Likewise; nobody reads the output of the container that is created.
    outputs: Vec<ChildStdout>,
    mode: &'static str,
}

impl Life {
    fn verb(&mut self, verb: &'static str, arguments: &[&str]) {
        let [out, err] = ["out", "err"].map(|stream| self.rvm.path(&format!("{verb}.{stream}")));
        let mut command = self.rvm.command(&[&[verb], arguments].concat());
        command.stdin(Stdio::piped());
        // Files, because monitors keep them open.
        command.stderr(File::create(&err).unwrap());
        match verb {
            "create" => command.stdout(Stdio::piped()),
            _ => command.stdout(File::create(&out).unwrap()),
        };
        let start = Instant::now();
        let mut child = command.spawn().unwrap();
        self.inputs.extend(child.stdin.take());
        self.outputs.extend(child.stdout.take());
        let code = end(&mut child, patience(self.mode, verb));
        let took = start.elapsed();
        if matches!(verb, "state" | "ps" | "events") {
            assert_clean(verb, &fs::read_to_string(&out).unwrap());
        }
        self.outcomes.push(Outcome {
            verb,
            code,
            took,
            error: self.error_of(verb),
        });
    }

    /// What a verb and its monitor have written to their error output so far, without the output of
    /// the container.
    fn error_of(&self, verb: &str) -> String {
        let error = fs::read(self.rvm.path(&format!("{verb}.err"))).unwrap();
        String::from_utf8_lossy(&error).replace('#', "")
    }
}

/// Waits for a verb, and ends it if it takes too long.
fn end(child: &mut Child, patience: Duration) -> i32 {
    let pid = child.id().cast_signed();
    let mut asked = 0;
    for (signal, wait) in [
        (libc::SIGTERM, patience),
        (libc::SIGKILL, GRACE),
        (0, MAX_TIME),
    ] {
        let start = Instant::now();
        while start.elapsed() < wait {
            if let Some(status) = child.try_wait().unwrap() {
                return match asked {
                    0 => status.code().unwrap(),
                    signal => -signal,
                };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        command::signal(pid, signal);
        asked = signal;
    }
    panic!("a killed process did not end");
}

/// Leads containers through their lives in this mode.
fn live(mode: &'static str, once_started: fn(&Rvm)) -> Option<Vec<Outcome>> {
    let rvm = world(mode)?;
    let memory = rvm.watch_memory();
    let (short, long) = (Bundle::new(&["echo"]), Bundle::new(&["sleep", "1000"]));
    let [short, long] = [&short, &long].map(|bundle| bundle.write().to_str().unwrap());
    let mut life = Life {
        rvm,
        outcomes: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        mode,
    };
    life.verb("run", &["--bundle", short, "short"]);
    life.verb("create", &["--bundle", long, "box"]);
    life.verb("start", &["box"]);
    once_started(&life.rvm);
    for (verb, arguments) in [
        ("state", &["box"] as &[&str]),
        ("ps", &["box"]),
        ("events", &["--stats", "box"]),
        ("exec", &["box", "echo"]),
        ("update", &["--memory", "300000000", "box"]),
        ("pause", &["box"]),
        ("resume", &["box"]),
        ("kill", &["box", "KILL"]),
        ("delete", &["--force", "box"]),
    ] {
        life.verb(verb, arguments);
    }
    // One that was killed while it ran a container could not.
    life.rvm.ok(&["delete", "--force", "short"]);
    life.outcomes[1].error = life.error_of("create");
    check(mode, "rvm", &life.outcomes, &memory);
    expect(&life.outcomes, &[("delete", 0, "")]);
    drop(memory);
    life.rvm.assert_nothing_left();
    Some(life.outcomes)
}

cases! {
    a_machine_as_it_should_be_works: "honest" => [
        ("run", 0, ""), ("create", 0, ""), ("start", 0, ""), ("state", 0, ""), ("ps", 0, ""),
        ("events", 0, ""), ("exec", 0, ""), ("update", 0, ""), ("pause", 0, ""),
        ("resume", 0, ""), ("kill", 0, ""),
    ];
    a_frozen_machine_is_killed: "honest" after freeze => [
        ("start", 0, ""), ("create", 0, "the sandbox ended unexpectedly"),
        ("kill", 0, "its guest did not end it within 5 s of SIGKILL; its machine is killed"),
    ];

    // The control socket.
    a_silent_machine_is_given_up: "silent" => [("run", -15, "interrupted by signal 15")];
    last_words_are_cleaned: "quits" => [("run", 1, "rvm-vmm ended with status 7")];
    a_closed_control_socket_ends_the_machine: "hangs-up" => [
        ("run", 1, "rvm-vmm was killed: the other end closed the control socket"),
    ];
    a_control_socket_that_closes_later_ends_the_machine: "hangs-up-later" => [
        ("run", 137, "rvm-vmm was killed: the other end closed the control socket"),
    ];
    a_kept_control_socket_hides_no_end: "keeps-its-ends" => [
        ("run", 137, "the sandbox ended unexpectedly: rvm-vmm ended with status 7"),
        ("kill", 1, "container not running"),
    ];
    a_failure_is_cut_and_cleaned: "fails" => [("run", 1, "rvm run failed: the guest failed")];
    a_reset_ends_a_machine_that_goes_on: "resets" => [
        ("create", 0, "the guest crashed"),
        ("exec", 255, "cannot exec in a stopped container"),
    ];
    a_machine_that_is_switched_off_is_told: "powers-off" => [
        ("run", 1, "the guest switched its machine off"),
    ];
    another_version_is_named: "other-version" => [("run", 1, "of the control protocol and its peer version")];
    a_malformed_packet_ends_the_machine: "malformed" => [
        ("run", 1, "rvm-vmm was killed: malformed message on the control socket"),
    ];
    a_packet_that_is_too_long_ends_the_machine: "oversize" => [
        ("run", 1, "rvm-vmm was killed: a packet on the control socket was cut short"),
    ];
    a_nested_message_ends_the_machine: "nested" => [
        ("run", 1, "rvm-vmm was killed: malformed message on the control socket"),
    ];
    descriptors_that_come_with_events_are_closed: "descriptors" => [("run", 0, "")];
    a_flood_of_events_of_a_machine_is_slowed: "event-flood" => [("run", 0, ""), ("exec", 0, "")];
    a_flood_of_log_lines_is_cut: "log-flood" => [("create", 0, "machine: "), ("exec", 0, "")];
    a_flood_of_the_console_is_cut: "console-flood" => [("run", 0, ""), ("exec", 0, "")];

    // The agent's answers.
    another_version_of_the_agent_is_named: "other-agent" => [
        ("run", 1, "agent speaks protocol version 2"),
    ];
    an_agent_that_hangs_up_is_told: "agent-hangs-up" => [
        ("run", 1, "agent did not answer create container"),
    ];
    bytes_that_are_no_frames_end_the_connection: "garbage" => [
        ("run", 1, "the sandbox's agent does not speak ttrpc"),
    ];
    frames_longer_than_any_message_end_the_connection: "oversize-frames" => [
        ("run", 1, "the sandbox's agent does not speak ttrpc"),
    ];
    a_frame_that_is_cut_short_is_told: "truncated-frame" => [
        ("run", 1, "agent did not answer create container"),
    ];
    nested_answers_are_refused: "nested-answers" => [
        ("ps", 1, "rvm ps failed: the sandbox's agent has answered with a malformed message"),
        ("events", 1, "malformed message"), ("exec", 0, ""),
    ];
    long_answers_are_refused: "long-answers" => [
        ("ps", 1, "more than the 393216 that are read"),
        ("events", 1, "more than the 393216 that are read"), ("exec", 0, ""),
    ];
    unknown_fields_are_counted: "unknown-fields" => [
        ("ps", 1, "more than the 8192 elements that are read"),
        ("events", 1, "more than the 8192 elements that are read"), ("exec", 0, ""),
    ];
    as_many_processes_as_are_read_are_listed: "many-processes" => [("ps", 0, ""), ("exec", 0, "")];
    escape_sequences_in_lists_are_cleaned: "escapes" => [("ps", 0, ""), ("events", 0, "")];
    escape_sequences_in_refusals_are_cleaned: "refusals" => [("run", 1, "rvm run failed: ")];
    a_flood_of_answers_is_slowed: "answer-flood" => [("run", 0, ""), ("kill", 0, "")];
    a_flood_of_events_of_an_agent_is_slowed: "agent-event-flood" => [("run", 0, ""), ("kill", 0, "")];

    // Calls that are never answered.
    an_agent_that_answers_once_is_given_up: "mute-once-ready" => [
        ("run", -15, "interrupted by signal 15"),
    ];
    a_machine_whose_agent_falls_silent_is_killed: "mute-once-started" => [
        ("create", 0, "the sandbox ended unexpectedly"),
        ("kill", 0, "its guest did not end it within 5 s of SIGKILL; its machine is killed"),
    ];
    a_start_that_is_never_done_is_given_up: "never-done" => [
        ("run", -15, "interrupted by signal 15"),
        ("kill", 0, "its guest did not end it within 5 s of SIGKILL"),
    ];
    what_no_signal_ends_is_killed_with_its_machine: "immortal" => [
        ("kill", 0, "its guest did not end it within 5 s of SIGKILL"),
    ];
    a_container_that_is_denied_is_killed_with_its_machine: "denies" => [
        ("run", 137, ""),
        ("kill", 0, "its guest did not end it within 5 s of SIGKILL"),
    ];

    // Streams and ends.
    a_flood_of_output_goes_to_its_reader_alone: "output-flood" => [("ps", 0, ""), ("kill", 0, "")];
    streams_that_outlive_their_process_are_cut: "keeps-streams" => [
        ("run", 0, ""), ("kill", 0, ""),
    ];
    closed_streams_are_no_end: "closed-streams" => [("run", 0, ""), ("kill", 0, "")];
    an_end_before_the_start_is_an_end: "ends-early" => [("run", 3, ""), ("start", 0, "")];
    a_second_end_is_not_heard: "ends-twice" => [("run", 3, "")];
    ends_of_others_are_not_heard: "ends-of-others" => [("run", 0, ""), ("kill", 0, "")];
    odd_exit_codes_are_255: "odd-exit-codes" => [("run", 255, ""), ("exec", 255, "")];
}
