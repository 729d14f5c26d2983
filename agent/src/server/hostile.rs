//! Requests of a host that keeps no rule. They are read and checked as the agent does, and carried
//! out where that changes nothing but a directory of the fuzzer's.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use protobuf::Message as _;
use rvm_fuzz_input::Decisions;
use rvm_protocol::agent::{self, Agent};
use rvm_protocol::{ContainerId, ExecId, ProcessId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;
use ttrpc::proto::MessageHeader;

use crate::{disks, network, streams, volumes};

/// How long answers are read. ttrpc itself waits for seconds until it closes a connection.
const PATIENCE: Duration = Duration::from_millis(20);

/// Takes bytes as the host's: frames of ttrpc, or one of the requests whose content the agent reads
/// itself.
pub fn requests(input: &[u8]) {
    let mut decisions = Decisions(input);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    match decisions.choose(6) {
        0 => runtime.block_on(serve(decisions.0.to_vec())),
        1 => runtime.block_on(serve(frames(&mut decisions))),
        2 => parsed(decisions.0, |request| disks::check_request(&request)),
        3 => parsed(decisions.0, |request| network::check_request(&request)),
        4 => runtime.block_on(volumes::hostile::updates(&mut decisions)),
        _ => runtime.block_on(streams::hostile::connections(&mut decisions)),
    }
    let text = String::from_utf8_lossy(decisions.0).into_owned();
    if let Ok(id) = ContainerId::new(text.clone()) {
        assert!(!id.as_str().contains('/') && !id.as_str().starts_with(".."));
    }
    let _ = (
        ExecId::new(text.clone()),
        ProcessId::from_wire("web".to_owned(), text),
    );
}

fn parsed<T: protobuf::Message>(bytes: &[u8], check: impl FnOnce(T)) {
    if let Ok(request) = T::parse_from_bytes(bytes) {
        check(request);
    }
}

/// The service without any of its methods: what reads and answers requests is ttrpc's and
/// generated.
struct Refusing;

impl Agent for Refusing {}

/// One connection.
struct Once(Option<UnixStream>);

impl Stream for Once {
    type Item = std::io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.take() {
            None => Poll::Pending,
            connection => Poll::Ready(connection.map(Ok)),
        }
    }
}

/// Sends bytes to the agent's server and hangs up, then reads what it answers for a while.
async fn serve(sent: Vec<u8>) {
    let (mut host, guest) = UnixStream::pair().unwrap();
    let service = agent::create_agent(std::sync::Arc::new(Refusing));
    let listener = Listener::new(Once(Some(guest)));
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(service);
    server.start().await.unwrap();
    let mut answers = Vec::new();
    // Fails once the server has hung up.
    let _ = host.write_all(&sent).await;
    let _ = host.shutdown().await;
    let _ = tokio::time::timeout(PATIENCE, host.read_to_end(&mut answers)).await;
}

/// Frames with requests of some of the agent's methods, or of none.
fn frames(decisions: &mut Decisions<'_>) -> Vec<u8> {
    let mut sent = Vec::new();
    let mut stream = 1;
    while !decisions.are_over() {
        let mut request = ttrpc::Request::new();
        request.set_service("rvm.agent.Agent".to_owned());
        let methods = [
            "Check",
            "CreateContainer",
            "Events",
            "WaitProcess",
            "MountDisks",
            "No",
        ];
        request.set_method(decisions.pick(&methods).to_owned());
        request.set_timeout_nano(decisions.pick(&[0, 1, -1, i64::MAX, i64::MIN]));
        let payload = decisions.bytes().repeat(decisions.choose(4).into());
        request.set_payload(payload);
        let message = match decisions.choose(8) {
            0 => decisions.bytes(),
            _ => request.write_to_bytes().unwrap(),
        };
        let length = message.len() as u32;
        let mut header = match decisions.choose(8) {
            0 => MessageHeader::new_data(stream, length),
            _ => MessageHeader::new_request(stream, length),
        };
        if decisions.choose(16) == 0 {
            (header.type_, header.flags) = (decisions.u8(), decisions.u8());
        }
        sent.extend(Vec::from(header));
        sent.extend(message);
        stream += u32::from(decisions.choose(4));
    }
    sent
}
