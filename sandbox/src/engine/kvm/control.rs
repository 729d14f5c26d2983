//! The host's end of the control socket of a running rvm-vmm.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rvm_protocol::vmm::{Channel, ChannelError, Event, Request, StopReason};
use rvm_sys::readiness::Readable;

use crate::engine::spawn::Vmm;
use crate::engine::{EngineError, MachineEnd, io_failed};
use crate::host::untrusted_text::{clean, clean_failure};

/// How long rvm-vmm may take to end after it has closed its end of the control socket.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The control socket, to wait on and to talk over.
pub(super) struct Control {
    socket: Readable,
    channel: Channel,
    /// Readable when rvm-vmm has ended.
    ended: Readable,
}

impl Control {
    /// Called within a tokio runtime.
    pub(super) fn of(vmm: &Vmm) -> Result<Self, EngineError> {
        let fd = vmm.channel().as_fd();
        rustix::io::ioctl_fionbio(fd, true)
            .map_err(|e| io_failed("prepare the control socket")(e.into()))?;
        let own = fd.try_clone_to_owned().map_err(io_failed("dup"))?;
        let socket = Readable::new(fd).map_err(io_failed("watch the control socket"))?;
        Ok(Self {
            socket,
            channel: Channel::new(own),
            ended: Readable::new(vmm.pidfd()).map_err(io_failed("watch rvm-vmm"))?,
        })
    }

    /// The next event of rvm-vmm. None once it has ended and all that it has said is known.
    pub(super) async fn event(&self) -> Result<Option<Event>, ChannelError> {
        let received = self.socket.read(|_| match self.channel.receive() {
            Err(ChannelError::Socket(error)) => Err(error),
            other => Ok(other),
        });
        let (event, _) = tokio::select! {
            biased;
            received = received => received.map_err(ChannelError::Socket)??,
            // The control socket alone would not tell: rvm-vmm can send its end of it to the other
            // end of a guest's stream, where it stays open.
            () = self.ended() => match self.channel.receive() {
                Err(ChannelError::Socket(_)) => return Ok(None),
                other => other?,
            },
        };
        Ok(Some(clean_event(event)))
    }

    /// Whether rvm-vmm ends in a moment: a process that ends closes its sockets shortly before.
    pub(super) async fn ends_soon(&self) -> bool {
        tokio::time::timeout(END_TIMEOUT, self.ended())
            .await
            .is_ok()
    }

    /// Returns when rvm-vmm has ended.
    async fn ended(&self) {
        // Waiting fails only if the runtime is being shut down.
        let _ = self.ended.read(|_| Ok(())).await;
    }

    pub(super) fn send(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        self.channel.send(request, fds)
    }
}

/// What it means that a machine has stopped.
pub(super) fn machine_end(reason: StopReason) -> MachineEnd {
    match reason {
        StopReason::PowerOff => MachineEnd::PowerOff,
        StopReason::Saved => MachineEnd::Saved,
        StopReason::GuestReset { place } => MachineEnd::GuestReset(Some(place)),
        StopReason::Failed(failure) => MachineEnd::Failed(failure.to_string()),
    }
}

/// Makes the texts of an event safe to show: a guest may have taken rvm-vmm over.
fn clean_event(event: Event) -> Event {
    match event {
        Event::Refused(failure) => Event::Refused(clean_failure(&failure)),
        Event::TemplateRefused(failure) => Event::TemplateRefused(clean_failure(&failure)),
        Event::Written(Some(failure)) => Event::Written(Some(clean_failure(&failure))),
        Event::Stopped(StopReason::GuestReset { place }) => {
            let place = clean(&place);
            Event::Stopped(StopReason::GuestReset { place })
        }
        Event::Stopped(StopReason::Failed(failure)) => {
            Event::Stopped(StopReason::Failed(clean_failure(&failure)))
        }
        other @ (Event::Started(_)
        | Event::Done
        | Event::Resized { .. }
        | Event::Written(None)
        | Event::TemplateSaved
        | Event::Stopped(StopReason::PowerOff | StopReason::Saved)) => other,
    }
}

/// Receives a packet as rvm-vmm's. What it says is short and moves no cursor.
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub fn receive_any_event(packet: &[u8]) {
    use crate::host::untrusted_text::is_clean;

    let (vmm, host) = Channel::pair().unwrap();
    rustix::io::write(&vmm, packet).unwrap();
    let event = match host.receive() {
        Ok((event, _)) => clean_event(event),
        // The source is shown, too.
        Err(error) => return assert!(is_clean(&clean(&error.to_string()))),
    };
    match &event {
        Event::Refused(failure) | Event::TemplateRefused(failure) => {
            assert!(is_clean(&failure.to_string()));
        }
        Event::Stopped(StopReason::GuestReset { place }) => assert!(is_clean(place)),
        _ => {}
    }
    if let Event::Stopped(reason) = event {
        match machine_end(reason) {
            MachineEnd::Failed(text) | MachineEnd::GuestReset(Some(text)) => {
                assert!(is_clean(&text));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::untrusted_text::MAX_TEXT;
    use rvm_protocol::failure::{Code, Failure};

    #[test]
    fn what_rvm_vmm_says_cannot_move_the_cursor_or_fill_the_log() {
        let said = format!("\u{1b}[2Jno\nmemory {}", "x".repeat(20_000));
        let failure = || Failure::new(Code::Unavailable, said.as_str());
        let place = || StopReason::GuestReset {
            place: said.clone(),
        };
        let (vmm, host) = Channel::pair().unwrap();
        for event in [
            Event::Refused(failure()),
            Event::Written(Some(failure())),
            Event::Stopped(StopReason::Failed(failure())),
            Event::Stopped(place()),
        ] {
            vmm.send(&event, &[]).unwrap();
            let shown = match clean_event(host.receive().unwrap().0) {
                Event::Refused(failure)
                | Event::Written(Some(failure))
                | Event::Stopped(StopReason::Failed(failure)) => {
                    assert_eq!(failure.code(), Code::Unavailable);
                    failure.to_string()
                }
                Event::Stopped(StopReason::GuestReset { place }) => place,
                other => panic!("{other:?}"),
            };
            assert!(shown.starts_with(" [2Jno memory x"), "{shown}");
            assert_eq!(shown.len(), MAX_TEXT);
        }
    }
}
