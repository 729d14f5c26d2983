//! The shim's calls.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use containerd_shim_protos::api;
use protobuf::well_known_types::any::Any;
use rustix::fs::{CWD, FileType, Mode};
use rvm_tests::shim::Shim;
use rvm_tests::{Bundle, Rvm};
use serde_json::{Value, json};
use ttrpc::context::{self, Context};

use super::{Outcome, check, expect, freeze, patience, world};

/// A code for a call that was given up.
const GIVEN_UP: i32 = -1;

/// The life of a container, call after call.
struct Life<'a> {
    mode: &'a str,
    shim: Shim,
    bundle: &'a Bundle,
    outcomes: Vec<Outcome>,
}

impl Life<'_> {
    fn call<T>(
        &mut self,
        verb: &'static str,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Option<T> {
        let start = Instant::now();
        let answer = self.shim.call(call);
        let took = start.elapsed();
        let (answer, code, error) = match answer {
            Ok(answer) => (Some(answer), 0, String::new()),
            // The client's own limit has a status, too.
            Err(error) if took >= patience(self.mode, verb) => (None, GIVEN_UP, error.to_string()),
            Err(ttrpc::Error::RpcStatus(status)) => (None, 1, status.message().to_owned()),
            Err(error) => panic!("{verb}: {error}"),
        };
        self.outcomes.push(Outcome {
            verb,
            code,
            took,
            error,
        });
        answer
    }

    fn limit(&self, verb: &str) -> Context {
        context::with_duration(patience(self.mode, verb))
    }

    fn create(&mut self) {
        let tasks = self.shim.tasks.clone();
        let fifo = |name| self.bundle.path().join(name).display().to_string();
        let request = api::CreateTaskRequest {
            id: "box".to_owned(),
            bundle: self.bundle.path().display().to_string(),
            stdin: fifo("stdin"),
            stdout: fifo("stdout"),
            stderr: fifo("stderr"),
            ..Default::default()
        };
        self.call("create", tasks.create(self.limit("create"), &request));
    }

    fn start(&mut self, verb: &'static str, exec_id: &str) {
        let tasks = self.shim.tasks.clone();
        let request = api::StartRequest {
            id: "box".to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.call(verb, tasks.start(self.limit(verb), &request));
    }

    fn exec(&mut self) {
        let tasks = self.shim.tasks.clone();
        let process = json!({ "args": ["echo"], "cwd": "/" });
        let request = api::ExecProcessRequest {
            id: "box".to_owned(),
            exec_id: "one".to_owned(),
            spec: Some(json_any(&process)).into(),
            ..Default::default()
        };
        self.call("add", tasks.exec(self.limit("add"), &request));
        self.start("exec", "one");
    }

    /// The calls for a container that runs, or should.
    fn live(&mut self) {
        let tasks = self.shim.tasks.clone();
        let id = || "box".to_owned();
        let (mut pids, mut stats) = (api::PidsRequest::new(), api::StatsRequest::new());
        let (mut pause, mut resume) = (api::PauseRequest::new(), api::ResumeRequest::new());
        let mut update = api::UpdateTaskRequest::new();
        (pids.id, stats.id, update.id) = (id(), id(), id());
        (pause.id, resume.id) = (id(), id());
        let resources = json!({ "memory": { "limit": 300_000_000 } });
        update.resources = Some(json_any(&resources)).into();
        self.call("ps", tasks.pids(self.limit("ps"), &pids));
        self.call("stats", tasks.stats(self.limit("stats"), &stats));
        self.exec();
        self.call("update", tasks.update(self.limit("update"), &update));
        self.call("pause", tasks.pause(self.limit("pause"), &pause));
        self.call("resume", tasks.resume(self.limit("resume"), &resume));
    }

    /// The end of the container, as containerd sees to it.
    fn end(&mut self) {
        let tasks = self.shim.tasks.clone();
        let (mut kill, mut wait) = (api::KillRequest::new(), api::WaitRequest::new());
        let mut delete = api::DeleteRequest::new();
        (kill.id, wait.id, delete.id) = ("box".to_owned(), "box".to_owned(), "box".to_owned());
        kill.signal = libc::SIGKILL.unsigned_abs();
        self.call("kill", tasks.kill(self.limit("kill"), &kill));
        if let Some(exit) = self.call("wait", tasks.wait(self.limit("wait"), &wait)) {
            // As of `rvm run`.
            self.outcomes.last_mut().unwrap().code = exit.exit_status.cast_signed();
        }
        self.call("delete", tasks.delete(self.limit("delete"), &delete));
        if self.outcomes.last().is_some_and(|delete| delete.code == 0) {
            self.call(
                "shutdown",
                tasks.shutdown(self.limit("shutdown"), &api::ShutdownRequest::new()),
            );
            return;
        }
        let start = Instant::now();
        let given_up = self.shim.give_up(self.bundle.path());
        self.outcomes.push(Outcome {
            verb: "cleanup",
            code: given_up.code,
            took: start.elapsed(),
            error: given_up.stderr,
        });
        expect(&self.outcomes, &[("cleanup", 0, "")]);
    }
}

fn json_any(value: &Value) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: value.to_string().into_bytes(),
        ..Default::default()
    }
}

/// A FIFO, open for reading and writing, so that it blocks neither side; nobody reads it.
fn fifo(path: &Path) -> File {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

/// Leads a container through its life in this mode.
fn live(mode: &str, once_started: fn(&Rvm)) -> Option<Vec<Outcome>> {
    let world = world(mode)?;
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.write();
    let _streams = ["stdin", "stdout", "stderr"].map(|name| fifo(&bundle.path().join(name)));
    let memory = world.watch_memory();
    let shim = Shim::start_in(world, "box", bundle.path());
    let mut life = Life {
        mode,
        shim,
        bundle: &bundle,
        outcomes: Vec::new(),
    };
    life.create();
    life.start("start", "");
    once_started(life.shim.world());
    life.live();
    life.end();
    check(mode, "shim", &life.outcomes, &memory);
    Some(life.outcomes)
}

cases! {
    a_machine_as_it_should_be_works: "honest" => [
        ("create", 0, ""), ("start", 0, ""), ("ps", 0, ""), ("stats", 0, ""), ("add", 0, ""),
        ("exec", 0, ""), ("update", 0, ""), ("pause", 0, ""), ("resume", 0, ""), ("kill", 0, ""),
        ("wait", 137, ""), ("delete", 0, ""), ("shutdown", 0, ""),
    ];
    a_frozen_machine_is_killed: "honest" after freeze => [
        ("start", 0, ""), ("kill", 0, ""), ("wait", 137, ""), ("delete", 0, ""),
    ];

    // The control socket.
    a_silent_machine_is_cleaned_up: "silent" => [("create", GIVEN_UP, "")];
    last_words_are_cleaned: "quits" => [("create", 1, "rvm-vmm ended with status 7")];
    a_closed_control_socket_ends_the_machine: "hangs-up" => [
        ("create", 1, "rvm-vmm was killed: the other end closed the control socket"),
    ];
    a_control_socket_that_closes_later_ends_the_machine: "hangs-up-later" => [
        ("wait", 137, ""), ("delete", 0, ""),
    ];
    a_kept_control_socket_hides_no_end: "keeps-its-ends" => [("wait", 137, ""), ("delete", 0, "")];
    a_failure_is_cut_and_cleaned: "fails" => [("create", 1, "the guest failed during")];
    a_reset_ends_a_machine_that_goes_on: "resets" => [("wait", 137, ""), ("delete", 0, "")];
    a_machine_that_is_switched_off_is_told: "powers-off" => [
        ("create", 1, "the guest switched its machine off"),
    ];
    another_version_is_named: "other-version" => [("create", 1, "of the control protocol and its peer version")];
    a_malformed_packet_ends_the_machine: "malformed" => [
        ("create", 1, "rvm-vmm was killed: malformed message on the control socket"),
    ];
    a_packet_that_is_too_long_ends_the_machine: "oversize" => [
        ("create", 1, "rvm-vmm was killed: a packet on the control socket was cut short"),
    ];
    a_nested_message_ends_the_machine: "nested" => [
        ("create", 1, "rvm-vmm was killed: malformed message on the control socket"),
    ];
    descriptors_that_come_with_events_are_closed: "descriptors" => [
        ("exec", 0, ""), ("delete", 0, ""),
    ];
    a_flood_of_events_of_a_machine_is_slowed: "event-flood" => [("exec", 0, ""), ("delete", 0, "")];
    a_flood_of_log_lines_is_cut: "log-flood" => [("exec", 0, ""), ("delete", 0, "")];
    a_flood_of_the_console_is_cut: "console-flood" => [("exec", 0, ""), ("delete", 0, "")];

    // The agent's answers.
    another_version_of_the_agent_is_named: "other-agent" => [
        ("create", 1, "agent speaks protocol version 2"),
    ];
    an_agent_that_hangs_up_is_told: "agent-hangs-up" => [
        ("create", 1, "agent did not answer create container"),
    ];
    bytes_that_are_no_frames_end_the_connection: "garbage" => [
        ("create", 1, "the sandbox's agent does not speak ttrpc"),
    ];
    frames_longer_than_any_message_end_the_connection: "oversize-frames" => [
        ("create", 1, "the sandbox's agent does not speak ttrpc"),
    ];
    a_frame_that_is_cut_short_is_told: "truncated-frame" => [
        ("create", 1, "agent did not answer create container"),
    ];
    nested_answers_are_refused: "nested-answers" => [
        ("ps", 1, "the sandbox's agent has answered with a malformed message"),
        ("stats", 1, "malformed message"), ("exec", 0, ""), ("delete", 0, ""),
    ];
    long_answers_are_refused: "long-answers" => [
        ("ps", 1, "more than the 393216 that are read"),
        ("stats", 1, "more than the 393216 that are read"), ("exec", 0, ""), ("delete", 0, ""),
    ];
    unknown_fields_are_counted: "unknown-fields" => [
        ("ps", 1, "more than the 8192 elements that are read"),
        ("stats", 1, "more than the 8192 elements that are read"), ("delete", 0, ""),
    ];
    as_many_processes_as_are_read_are_listed: "many-processes" => [("ps", 0, ""), ("delete", 0, "")];
    escape_sequences_in_lists_are_cleaned: "escapes" => [
        ("ps", 0, ""), ("stats", 0, ""), ("delete", 0, ""),
    ];
    escape_sequences_in_refusals_are_cleaned: "refusals" => [("create", 1, "owned")];
    a_flood_of_answers_is_slowed: "answer-flood" => [("exec", 0, ""), ("delete", 0, "")];
    a_flood_of_events_of_an_agent_is_slowed: "agent-event-flood" => [
        ("exec", 0, ""), ("delete", 0, ""),
    ];

    // Calls that are never answered.
    an_agent_that_answers_once_is_cleaned_up: "mute-once-ready" => [("create", GIVEN_UP, "")];
    a_machine_whose_agent_falls_silent_is_killed: "mute-once-started" => [
        ("kill", 0, ""), ("wait", 137, ""), ("delete", 0, ""),
    ];
    a_start_that_is_never_done_is_killed: "never-done" => [
        ("start", GIVEN_UP, ""), ("kill", 0, ""), ("wait", 137, ""), ("delete", 0, ""),
    ];
    what_no_signal_ends_is_killed_with_its_machine: "immortal" => [
        ("kill", 0, ""), ("wait", 137, ""), ("delete", 0, ""),
    ];
    a_container_that_is_denied_is_killed_with_its_machine: "denies" => [
        ("kill", 0, ""), ("wait", 137, ""), ("delete", 0, ""),
    ];

    // Streams and ends.
    a_flood_of_output_waits_for_its_reader: "output-flood" => [("exec", 0, ""), ("delete", 0, "")];
    streams_that_outlive_their_process_are_cut: "keeps-streams" => [
        ("exec", 0, ""), ("wait", 137, ""), ("delete", 0, ""),
    ];
    closed_streams_are_no_end: "closed-streams" => [("exec", 0, ""), ("delete", 0, "")];
    an_end_before_the_start_is_an_end: "ends-early" => [("wait", 3, ""), ("delete", 0, "")];
    a_second_end_is_not_heard: "ends-twice" => [("wait", 3, ""), ("delete", 0, "")];
    ends_of_others_are_not_heard: "ends-of-others" => [("exec", 0, ""), ("delete", 0, "")];
    odd_exit_codes_are_255: "odd-exit-codes" => [("wait", 255, ""), ("delete", 0, "")];
}
