//! An agent that answers as bytes decide. What the host takes from it is short, moves no cursor and
//! is a number where one is due; what it does not take is an error, and never a wait.

use std::os::unix::net::UnixStream;

use protobuf::{Enum as _, Message as _};
use rvm_fuzz_input::Decisions;
use rvm_protocol::agent::{ListProcessesResponse, StatsResponse};
use rvm_protocol::{ContainerId, ProcessId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MessageHeader};
use ttrpc::{Response, get_status};

use super::*;
use crate::host::untrusted_text::is_clean;

/// The most calls of one input.
const MAX_CALLS: u8 = 6;

/// The most events that are read.
const MAX_EVENTS: usize = 64;

/// What the host has been told and goes on with.
#[derive(Debug, Default)]
pub struct Told {
    /// Lists of processes, which it shows.
    pub processes: Vec<ListProcessesResponse>,
    /// What the guest's clock says.
    pub clocks: Vec<i64>,
}

/// Calls an agent that answers as the bytes decide, and returns what it said.
pub fn answers(input: &[u8]) -> Told {
    let mut decisions = Decisions(input);
    let calls: Vec<u8> = (0..1 + decisions.choose(MAX_CALLS))
        .map(|_| decisions.choose(8))
        .collect();
    let script = decisions.0.to_vec();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(async {
        let (own, peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        let peer = tokio::net::UnixStream::from_std(peer).unwrap();
        let peer = tokio::spawn(play(peer, script));
        let agent = Agent::over(own).unwrap();
        let mut told = Told::default();
        for call in calls {
            // Far less than the limit of any call, and far more than an answer takes.
            let answer = tokio::time::timeout(SIGNAL_TIMEOUT / 2, make(&agent, call, &mut told));
            let answer = answer.await.expect("an answer or a hangup ends every call");
            if let Err(error) = answer {
                assert!(is_clean(&error.to_string()), "{error}");
            }
        }
        drop(agent);
        peer.abort();
        told
    })
}

async fn make(agent: &Agent, call: u8, told: &mut Told) -> Result<(), AgentError> {
    let id = ContainerId::new("web").unwrap();
    match call {
        0 => {
            let answer = agent.check(CALL_TIMEOUT).await?;
            assert!(answer.protocol_version <= AGENT_PROTOCOL_VERSION);
        }
        1 | 2 => {
            let list = agent.processes(&id).await?;
            for process in &list.processes {
                let texts = [&process.terminal, &process.command, &process.name];
                assert!(texts.iter().all(|text| is_clean(text)));
            }
            told.processes.push(list);
        }
        3 => check_stats(&agent.stats(&id).await?),
        4 => _ = agent.wait(&ProcessId::init(id)).await?,
        5 => told.clocks.push(agent.adjust_clock(0, false).await?),
        6 => agent.signal_all(&id, 9).await?,
        _ => {
            let mut events = agent.events().await?;
            for _ in 0..MAX_EVENTS {
                if events.next().await?.is_none() {
                    break;
                }
            }
        }
    }
    Ok(())
}

fn check_stats(stats: &StatsResponse) {
    assert!(stats.net_dev.lines().all(is_clean));
    assert!(stats.hugetlb.iter().all(|pages| is_clean(&pages.page_size)));
    let names = stats.memory.iter().flat_map(|memory| memory.stat.keys());
    assert!(names.into_iter().all(|name| is_clean(name)));
}

/// Answers each call with what the bytes decide next. Hangs up when they are used, or when it has
/// sent what may leave its caller waiting.
async fn play(mut socket: tokio::net::UnixStream, script: Vec<u8>) -> Option<()> {
    let mut decisions = Decisions(&script);
    while !decisions.are_over() {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        socket.read_exact(&mut header).await.ok()?;
        let header = MessageHeader::from(header.as_slice());
        socket
            .read_exact(&mut vec![0; header.length as usize])
            .await
            .ok()?;
        let mut answers = false;
        while !answers && !decisions.are_over() {
            let frame;
            (frame, answers) = self::frame(header.stream_id, &mut decisions);
            socket.write_all(&frame).await.ok()?;
        }
    }
    Some(())
}

/// A frame, and whether it answers the call of a stream.
fn frame(stream: u32, decisions: &mut Decisions<'_>) -> (Vec<u8>, bool) {
    let with =
        |header: MessageHeader, message: &[u8]| [Vec::from(header).as_slice(), message].concat();
    match decisions.choose(10) {
        // A frame of any kind and length, or a part of one.
        0 => (decisions.bytes(), false),
        1 => {
            let message = decisions.bytes();
            let mut header = MessageHeader::new_response(stream, message.len() as u32);
            (header.type_, header.flags) = (decisions.u8(), decisions.u8());
            header.stream_id = header.stream_id.wrapping_add(decisions.choose(4).into());
            (with(header, &message), false)
        }
        2 | 3 => {
            let event = decisions.bytes();
            (
                with(MessageHeader::new_data(stream, event.len() as u32), &event),
                false,
            )
        }
        4 => {
            let text = String::from_utf8_lossy(&decisions.bytes()).repeat(decisions.u8().into());
            let code = ttrpc::Code::from_i32(decisions.choose(18).into()).unwrap_or_default();
            let mut response = Response::new();
            response.set_status(get_status(code, text));
            (answer(stream, &response), true)
        }
        // The same element many times.
        5 => {
            let payload = decisions.bytes().repeat(decisions.u16().into());
            let mut response = Response::new();
            response.set_payload(payload);
            (answer(stream, &response), true)
        }
        _ => {
            let length = usize::from(decisions.u16() % 2048);
            let mut response = Response::new();
            response.set_payload(decisions.take(length).to_vec());
            (answer(stream, &response), true)
        }
    }
}

fn answer(stream: u32, response: &Response) -> Vec<u8> {
    let message = response.write_to_bytes().unwrap();
    let mut frame = Vec::from(MessageHeader::new_response(stream, message.len() as u32));
    frame.extend(message);
    frame
}
