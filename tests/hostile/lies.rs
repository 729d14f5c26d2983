//! What each mode does in place of the truth.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use protobuf::Message;
use rvm_protocol::agent::{
    CreateContainerRequest, Event, Exit, ListProcessesResponse, MemoryStats, Oom, ProcessInfo,
    StatsResponse,
};
use ttrpc::Code;
use ttrpc::proto::MessageHeader;

use crate::agent::Agent;
use crate::frames::{self, Call, Connection};
use crate::guest::Name;
use crate::mode::Mode;

/// The longest message of ttrpc, in bytes, less room for its envelope.
const LONGEST: usize = (4 << 20) - 64;

/// The longest list or statistics that rvm reads, likewise.
const LONGEST_READ: usize = 384 * 1024 - 64;

/// A text of 60 KiB with sequences that clear a screen, set its title and write a forged line.
pub fn escapes() -> String {
    const HARMFUL: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nlevel=info msg=forged\u{202e}\u{9b}1A ";
    HARMFUL.repeat(60 * 1024 / HARMFUL.len())
}

/// Repeats something in a thread until it answers false.
pub fn flood(mut wave: impl FnMut() -> bool + Send + 'static) {
    thread::spawn(move || while wave() {});
}

/// What comes instead of an answer.
pub enum Instead {
    /// The answer.
    Truth,
    Frames(Vec<u8>),
    HangUp,
}

/// Whether a call is one of those that a mute agent does not answer.
pub fn is_never_answered(agent: &Agent, call: &Call) -> bool {
    let method = call.method.as_str();
    match agent.mode {
        Mode::Silent => true,
        Mode::MuteOnceReady => method != "Check",
        Mode::MuteOnceStarted => agent.is_started.load(Ordering::Relaxed),
        Mode::NeverDone => matches!(method, "StartContainer" | "ExecProcess" | "SignalProcess"),
        _ => false,
    }
}

/// What a mode does with a call, if it does not answer it as it should.
pub fn instead(agent: &Arc<Agent>, connection: &Arc<Connection>, call: &Call) -> Instead {
    let stream = call.stream;
    let is_list = matches!(call.method.as_str(), "ListProcesses" | "Stats");
    let long = |payload| Instead::Frames(frames::answer(stream, payload));
    match (agent.mode, call.method.as_str()) {
        (Mode::Garbage, _) => Instead::Frames(vec![0xff; 1 << 20]),
        (Mode::OversizeFrames, method) if method != "Check" => {
            let mut header = MessageHeader::new_response(stream, u32::MAX);
            header.length = u32::MAX;
            Instead::Frames(frames::frame(header, &vec![0; 1 << 20]))
        }
        (Mode::TruncatedFrame, "CreateContainer") => {
            let header = MessageHeader::new_response(stream, 1000);
            connection.write(&frames::frame(header, &[0; 10]));
            Instead::HangUp
        }
        (Mode::AgentHangsUp, "CreateContainer") => Instead::HangUp,
        (Mode::Refusals, method) if method != "Check" => {
            Instead::Frames(frames::refusal(stream, Code::INTERNAL, &escapes()))
        }
        (Mode::Denies, "SignalProcess" | "WaitProcess" | "ListProcesses" | "Stats")
            if agent.is_started.load(Ordering::Relaxed) =>
        {
            Instead::Frames(frames::refusal(stream, Code::NOT_FOUND, "no container"))
        }
        (Mode::Immortal, "SignalProcess") => Instead::Frames(frames::answer(stream, Vec::new())),
        (Mode::NestedAnswers, _) if is_list => long(nested(LONGEST_READ)),
        (Mode::LongAnswers, "ListProcesses") => long(processes(LONGEST / 2)),
        (Mode::LongAnswers, "Stats") => long(statistics(LONGEST / 8)),
        (Mode::UnknownFields, _) if is_list => long(unknown_fields(LONGEST_READ)),
        (Mode::ManyProcesses, "ListProcesses") => long(processes(8000)),
        (Mode::Escapes, "ListProcesses") => long(escaped_list()),
        (Mode::Escapes, "Stats") => long(escaped_statistics()),
        (Mode::AgentEventFlood, "Events") => {
            flood_of_events(connection, stream);
            Instead::Truth
        }
        (Mode::AnswerFlood, "Check") => {
            flood_of_answers(connection);
            Instead::Truth
        }
        (Mode::PowersOff, "CreateContainer") => {
            agent.vmm.power_off();
            Instead::HangUp
        }
        (Mode::EndsEarly, "StartContainer") => {
            let request: CreateContainerRequest = call.decode();
            agent.guest.end(&(request.container_id, String::new()), 3);
            Instead::Truth
        }
        _ => Instead::Truth,
    }
}

/// What a mode does once a process runs.
pub fn on_run(agent: &Arc<Agent>, name: &Name) {
    match agent.mode {
        Mode::HangsUpLater => agent.vmm.hang_up(),
        Mode::Resets => {
            use rvm_protocol::vmm::{Event, StopReason};
            let place = escapes()[..8000].to_owned();
            agent
                .vmm
                .say(&Event::Stopped(StopReason::GuestReset { place }));
        }
        Mode::KeepsItsEnds => {
            let stdin = agent.guest.find(name).unwrap().stdio.stdin;
            if let Some(stream) = agent.guest.stream(stdin) {
                agent.vmm.keep_ends(&stream);
            }
        }
        Mode::OutputFlood => flood_of_output(agent, name),
        Mode::EndsTwice => {
            agent.guest.end(name, 3);
            agent.guest.end(name, 4);
        }
        Mode::EndsOfOthers => {
            for other in ["other", "../../etc", "", "\u{1b}[2J"] {
                agent.guest.tell(&(other.to_owned(), String::new()), 0, 3);
                agent.guest.tell(&(name.0.clone(), other.to_owned()), 0, 3);
            }
        }
        _ => {}
    }
}

/// The exit code that the host is told.
pub fn exit_code(agent: &Agent, code: u32) -> u32 {
    match agent.mode {
        Mode::OddExitCodes => u32::MAX - code,
        _ => code,
    }
}

/// Groups, one in another (the wire type 3 of field 1), without an end.
fn nested(length: usize) -> Vec<u8> {
    vec![0x0b; length]
}

/// A list of empty processes, two bytes each.
fn processes(count: usize) -> Vec<u8> {
    [0x0a, 0].repeat(count)
}

/// Empty entries of `memory.stat`, in statistics.
fn statistics(count: usize) -> Vec<u8> {
    let memory = [0x62, 0].repeat(count);
    let mut statistics = vec![0x12];
    let mut length = memory.len();
    while length >= 0x80 {
        statistics.push(0x80 | (length & 0x7f) as u8);
        length >>= 7;
    }
    statistics.push(length as u8);
    [statistics, memory].concat()
}

/// Fields of a number that no message has, three bytes each.
fn unknown_fields(length: usize) -> Vec<u8> {
    [0xf8, 0x7f, 1].repeat(length / 3)
}

fn escaped_list() -> Vec<u8> {
    let text = || escapes()[..8000].to_owned();
    let process = ProcessInfo {
        pid: 100,
        terminal: text(),
        command: text(),
        name: text(),
        state: text(),
        ..Default::default()
    };
    let list = ListProcessesResponse {
        processes: vec![process; 3],
        ..Default::default()
    };
    list.write_to_bytes().unwrap()
}

fn escaped_statistics() -> Vec<u8> {
    let memory = MemoryStats {
        stat: [(escapes(), 1)].into(),
        ..Default::default()
    };
    let statistics = StatsResponse {
        memory: Some(memory).into(),
        net_dev: escapes(),
        ..Default::default()
    };
    statistics.write_to_bytes().unwrap()
}

fn flood_of_events(connection: &Arc<Connection>, call: u32) {
    let connection = Arc::clone(connection);
    let mut oom = Event::new();
    oom.set_oom(Oom {
        container_id: "box".to_owned(),
        ..Default::default()
    });
    let mut exit = Event::new();
    exit.set_exit(Exit {
        container_id: "other".to_owned(),
        exec_id: escapes()[..2000].to_owned(),
        ..Default::default()
    });
    let wave = [frames::event(call, &oom), frames::event(call, &exit)].concat();
    flood(move || {
        // The answers that the host waits for come through, too.
        thread::yield_now();
        connection.write(&wave)
    });
}

fn flood_of_answers(connection: &Arc<Connection>) {
    let connection = Arc::clone(connection);
    let wave: Vec<u8> = (1..200)
        .step_by(2)
        .flat_map(|past: u32| frames::answer(past.wrapping_add(1_000_001), vec![0x0a; 600]))
        .collect();
    flood(move || {
        // The answers that the host waits for come through, too.
        thread::yield_now();
        connection.write(&wave)
    });
}

fn flood_of_output(agent: &Arc<Agent>, name: &Name) {
    let stdio = agent.guest.find(name).unwrap().stdio;
    for id in [stdio.stdout, stdio.stderr] {
        if let Some(stream) = agent.guest.stream(id) {
            // Not more, because the host may keep it in a file.
            let mut left = 256;
            flood(move || {
                left -= 1;
                left > 0 && (&*stream).write_all(&[b'#'; 64 * 1024]).is_ok()
            });
        }
    }
    // Nobody reads what the host writes.
    if let Some(stream) = agent.guest.stream(stdio.stdin) {
        let _ = (&*stream).read(&mut [0; 1]);
    }
}
