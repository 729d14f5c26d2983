//! A peer on the bus that answers anything.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rvm_fuzz_input::Decisions;

use super::bus::Bus;
use super::wire::{self, Body, FIXED_HEADER, Message, kind};

/// Talks to a peer that has said all of this and then hung up.
pub fn replies(input: &[u8]) {
    let mut decisions = Decisions(input);
    let is_right = decisions.choose(4) > 0;
    let mut said = Vec::new();
    if is_right {
        // What a peer says that knows the protocol, up to its last message.
        said.extend(b"OK 0123456789abcdef0123456789abcdef\r\n");
        for serial in 1..=u32::from(decisions.choose(5)) {
            said.extend(reply(serial, &mut decisions));
        }
    }
    said.extend(decisions.0);
    if let Some(fixed) = said.first_chunk::<FIXED_HEADER>() {
        let _ = wire::message_len(fixed);
    }
    let _ = Message::parse(decisions.0).map(|message| message.texts("uoss"));
    let (own, peer) = UnixStream::pair().unwrap();
    // Fails for more than the socket holds, of which the rest is not sent.
    peer.set_nonblocking(true).unwrap();
    let _ = (&peer).write_all(&said);
    let _ = peer.shutdown(Shutdown::Write);
    let Ok(mut bus) = Bus::over(own, false) else {
        return;
    };
    let body = Body::default().text("rvm-web.scope").flag(false);
    let _ = super::job(&mut bus, "StopUnit", &body);
    while let Ok(signal) = bus.signal() {
        let _ = signal.texts("uoss");
    }
}

/// A message to the answer of a call, or a signal that a job is done.
fn reply(serial: u32, decisions: &mut Decisions<'_>) -> Vec<u8> {
    let kind = 1 + decisions.choose(5);
    let result = decisions.pick(&["done", "failed", "", "/job/1"]);
    let mut fields = vec![5, 1, b'u', 0];
    fields.extend((serial ^ u32::from(decisions.choose(2))).to_le_bytes());
    fields.extend([3, 1, b's', 0, 10, 0, 0, 0]);
    fields.extend(b"JobRemoved\0");
    // JobRemoved of systemd has a number, the job, the unit and its result.
    let mut body = Vec::new();
    if kind == kind::SIGNAL {
        body.extend(1_u32.to_le_bytes());
    }
    for text in ["/job/1", "rvm-web.scope", result] {
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend((text.len() as u32).to_le_bytes());
        body.extend(text.as_bytes());
        body.push(0);
    }
    let mut message = vec![b'l', kind, 0, 1];
    for number in [body.len(), serial as usize, fields.len()] {
        message.extend((number as u32).to_le_bytes());
    }
    message.extend(fields);
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend(body);
    if decisions.choose(4) == 0 {
        let at = usize::from(decisions.u8()) % message.len();
        message[at] = decisions.u8();
    }
    message
}
