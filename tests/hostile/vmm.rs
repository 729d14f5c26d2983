//! The control socket: what `rvm-vmm` says to the process that has started it.

use std::fs::File;
use std::io::{IoSlice, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rvm_protocol::failure::{Code, Failure};
use rvm_protocol::vmm::{Channel, Event, PROTOCOL_VERSION, Request, StartTimes, StopReason};

use crate::lies::{escapes, flood};
use crate::mode::Mode;

/// The machine's end of the control socket.
pub struct Vmm {
    pub mode: Mode,
    pub channel: Arc<Channel>,
}

impl Vmm {
    pub fn power_off(&self) {
        // The host may have gone.
        let _ = self
            .channel
            .send(&Event::Stopped(StopReason::PowerOff), &[]);
        std::process::exit(0);
    }

    /// Says that the machine runs, or something else.
    pub fn start(&self, console: File) {
        match self.mode {
            Mode::Silent => return,
            Mode::Quits => {
                eprintln!("ERROR {}", escapes());
                std::process::exit(7);
            }
            Mode::HangsUp => return self.hang_up(),
            Mode::Fails => {
                let failure = Failure::new(Code::Internal, escapes());
                return self.say(&Event::Stopped(StopReason::Failed(failure)));
            }
            Mode::OtherVersion => {
                let version = PROTOCOL_VERSION + 1;
                return self.packet(format!("rvm/{version} {{}}").as_bytes());
            }
            Mode::Malformed => {
                return self.packet(format!("rvm/{PROTOCOL_VERSION} {{\"started\":").as_bytes());
            }
            Mode::Oversize => return self.packet(&[b'x'; 100 * 1024]),
            Mode::Nested => {
                let nested = "[".repeat(60 * 1024);
                return self.packet(format!("rvm/{PROTOCOL_VERSION} {nested}").as_bytes());
            }
            _ => {}
        }
        self.say(&Event::Started(Box::<StartTimes>::default()));
        match self.mode {
            Mode::EventFlood => self.flood_of_events(),
            Mode::LogFlood => flood_of_lines(),
            Mode::ConsoleFlood => flood_of_console(console),
            Mode::Descriptors => self.descriptors(),
            _ => {}
        }
    }

    /// Answers requests until the host closes the socket.
    pub fn answer(&self) {
        while let Ok((request, _)) = self.channel.receive::<Request>() {
            match (self.mode, request) {
                (Mode::Silent | Mode::MuteOnceReady | Mode::NeverDone, _) => {}
                (Mode::Refusals, _) => {
                    self.say(&Event::Refused(Failure::new(Code::Internal, escapes())));
                }
                (_, Request::Resize { memory_mib, .. }) => {
                    self.say(&Event::Done);
                    self.say(&Event::Resized { memory_mib });
                }
                (_, Request::Save { go_on: false, .. }) => {
                    self.say(&Event::Stopped(StopReason::Saved));
                    std::process::exit(0);
                }
                (_, Request::Save { go_on: true, .. }) => {
                    self.say(&Event::Done);
                    self.say(&Event::Written(None));
                }
                _ => self.say(&Event::Done),
            }
        }
        if self.mode == Mode::HangsUpLater {
            stay();
        }
    }

    pub fn say(&self, event: &Event) {
        let _ = self.channel.send(event, &[]);
    }

    /// Closes the socket for both sides, and stays.
    pub fn hang_up(&self) {
        let both = rustix::net::Shutdown::Both;
        rustix::net::shutdown(self.channel.as_fd(), both).unwrap();
        stay();
    }

    /// Sends the ends of control socket and log over a stream, where they stay, and ends.
    pub fn keep_ends(&self, stream: &UnixStream) {
        let log = std::io::stderr();
        let ends = [self.channel.as_fd(), log.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&ends)));
        let data = [IoSlice::new(b"x")];
        sendmsg(stream, &data, &mut ancillary, SendFlags::empty()).unwrap();
        std::process::exit(7);
    }

    fn packet(&self, bytes: &[u8]) {
        let _ = rustix::net::send(self.channel.as_fd(), bytes, SendFlags::NOSIGNAL);
    }

    fn flood_of_events(&self) {
        let channel = Arc::clone(&self.channel);
        flood(move || {
            let events = [
                Event::Started(Box::default()),
                Event::Resized { memory_mib: 0 },
                Event::Done,
                Event::Refused(Failure::new(Code::Internal, escapes())),
            ];
            events.iter().all(|event| channel.send(event, &[]).is_ok())
        });
    }

    fn descriptors(&self) {
        let channel = Arc::clone(&self.channel);
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        flood(move || {
            let fds = [file.as_fd(); rvm_protocol::vmm::MAX_FDS];
            channel.send(&Event::Done, &fds).is_ok()
        });
    }
}

fn stay() -> ! {
    loop {
        thread::park();
    }
}

fn flood_of_lines() {
    flood(|| {
        let text = escapes();
        let lines = format!("ERROR {}\nWARN \n\n\0\n{text}", &text[..100]);
        std::io::stderr().write_all(lines.as_bytes()).is_ok()
    });
}

fn flood_of_console(mut console: File) {
    // As much as the host's log may hold, again and again: an attacker can write more, which costs
    // the container's own memory limit.
    flood(move || {
        let text = escapes().repeat(16);
        console.rewind().is_ok() && console.write_all(text.as_bytes()).is_ok()
    });
}
