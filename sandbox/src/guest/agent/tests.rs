//! Agents that are silent, hang up, or lie, over a pair of sockets.

use std::io::{Read, Write};
use std::thread;

use protobuf::Message;
use rvm_protocol::agent::{Event, ListProcessesResponse, ProcessInfo};
use ttrpc::proto::MessageHeader;
use ttrpc::{Request, Response};

use super::*;

/// The other end of a client's connection.
struct Peer(UnixStream);

impl Peer {
    /// A client, and what answers it in a thread of its own.
    fn with_client(answer: impl FnOnce(Self) + Send + 'static) -> Agent {
        let (own, peer) = UnixStream::pair().unwrap();
        thread::spawn(|| answer(Self(peer)));
        Agent::over(own).unwrap()
    }

    /// Waits for a call; returns the id of its stream and the request.
    fn request(&mut self) -> (u32, Request) {
        let mut header = [0; 10];
        self.0.read_exact(&mut header).unwrap();
        let header = MessageHeader::from(header);
        let mut message = vec![0; header.length as usize];
        self.0.read_exact(&mut message).unwrap();
        let request = Request::parse_from_bytes(&message).unwrap();
        (header.stream_id, request)
    }

    /// Waits for a call; returns the id of its stream.
    fn called(&mut self) -> u32 {
        self.request().0
    }

    /// Fails once the client has hung up.
    fn send(&mut self, header: MessageHeader, message: &[u8]) -> io::Result<()> {
        let mut frame = Vec::from(header);
        frame.extend(message);
        self.0.write_all(&frame)
    }

    /// Answers the next call; returns its message.
    fn answer(&mut self, payload: Vec<u8>) -> Vec<u8> {
        let (stream, request) = self.request();
        let mut answer = Response::new();
        answer.set_payload(payload);
        let answer = answer.write_to_bytes().unwrap();
        let header = MessageHeader::new_response(stream, answer.len() as u32);
        self.send(header, &answer).unwrap();
        request.payload
    }
}

fn id() -> ContainerId {
    ContainerId::new("web").unwrap()
}

/// A list of a process whose command has this length.
fn list(length: usize) -> Vec<u8> {
    let process = ProcessInfo {
        command: "x".repeat(length),
        ..Default::default()
    };
    let list = ListProcessesResponse {
        processes: vec![process],
        ..Default::default()
    };
    list.write_to_bytes().unwrap()
}

#[tokio::test]
async fn a_silent_agent_is_late_and_a_closed_one_is_lost() {
    let (own, silent) = UnixStream::pair().unwrap();
    let agent = Agent::over(own).unwrap();
    let limit = Duration::from_millis(50);
    let error = agent.check(limit).await.unwrap_err();
    assert!(matches!(error, AgentError::TimedOut { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "the sandbox's agent did not answer check within 50ms"
    );
    drop(silent);
    let error = agent.check(CALL_TIMEOUT).await.unwrap_err();
    assert!(matches!(error, AgentError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn every_check_has_a_seed_of_its_own() {
    let (sender, seeds) = std::sync::mpsc::channel();
    let agent = Peer::with_client(move |mut peer| {
        for _ in 0..2 {
            let message = peer.answer(Vec::new());
            let request = CheckRequest::parse_from_bytes(&message).unwrap();
            sender.send(request.seed).unwrap();
        }
    });
    agent.check(CALL_TIMEOUT).await.unwrap();
    agent.check(CALL_TIMEOUT).await.unwrap();
    let seeds: Vec<_> = seeds.iter().collect();
    assert_eq!(seeds.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32]);
    assert_ne!(seeds[0], seeds[1]);
    assert!(seeds.iter().all(|seed| *seed != [0; 32]));
}

#[tokio::test]
async fn an_answer_that_is_too_long_fails_its_own_call_alone() {
    let agent = Peer::with_client(|mut peer| {
        peer.answer(vec![0; 64 * 1024]);
        peer.answer(list(1 << 20));
        peer.answer(list(100 * 1024));
        peer.answer(Vec::new());
    });
    let error = agent.check(CALL_TIMEOUT).await.unwrap_err().to_string();
    assert!(error.contains("more than the 65536 that"), "{error}");
    let error = agent.processes(&id()).await.unwrap_err().to_string();
    assert!(error.contains("more than the 393216 that"), "{error}");
    let listed = agent.processes(&id()).await.unwrap();
    assert_eq!(listed.processes.len(), 1);
    agent.check(CALL_TIMEOUT).await.unwrap();
}

#[tokio::test]
async fn an_answer_of_very_many_elements_is_not_decoded() {
    let agent = Peer::with_client(|mut peer| {
        // 150,000 empty processes.
        peer.answer([0x0a, 0].repeat(150_000));
        peer.answer(Vec::new());
    });
    let error = agent.processes(&id()).await.unwrap_err().to_string();
    assert!(error.contains("more than the 8192 elements"), "{error}");
    agent.check(CALL_TIMEOUT).await.unwrap();
}

#[tokio::test]
async fn a_flood_of_oom_kills_is_one_event_and_the_others_arrive() {
    let agent = Peer::with_client(|mut peer| {
        let stream = peer.called();
        let mut send = |event: &Event| {
            let message = event.write_to_bytes().unwrap();
            peer.send(
                MessageHeader::new_data(stream, message.len() as u32),
                &message,
            )
        };
        let (mut oom, mut exit) = (Event::new(), Event::new());
        oom.mut_oom().container_id = "web".to_owned();
        exit.mut_exit().container_id = "web".to_owned();
        for _ in 0..100 {
            send(&oom).unwrap();
        }
        send(&exit).unwrap();
        // As many as the socket takes.
        while send(&oom).is_ok() {}
    });
    let mut events = agent.events().await.unwrap();
    assert!(events.next().await.unwrap().unwrap().has_oom());
    assert!(events.next().await.unwrap().unwrap().has_exit());
    let more = tokio::time::timeout(Duration::from_millis(200), events.next());
    assert!(more.await.is_err());
}
