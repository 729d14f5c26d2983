//! The state of the device in a file.

use serde::{Deserialize, Serialize};

use super::connection::SavedConnection;
use super::{
    Busy, DROP, DeviceError, DeviceIo, FIRST_HOST_PORT, MAX_CONNECTIONS, MAX_STRAY_RESETS, NAME,
    Readiness, Vsock,
};
use crate::fds::borrow_eventfd;

#[derive(Serialize, Deserialize)]
enum State {
    /// A template's. The guest's request to the ready port came from this port, and has no answer.
    Held(u32),
    /// The guest's listeners are ready.
    Ready(Streams),
}

#[derive(Serialize, Deserialize)]
struct Streams {
    next_host_port: u32,
    /// By host port.
    connections: Vec<(u32, SavedConnection)>,
    /// As in [`Vsock`].
    resets: Vec<(u32, u32)>,
}

impl Vsock {
    /// See [`super::VirtioDevice::save`]. What host programs have written is taken from their
    /// sockets, and is sent to the guest if the device goes on.
    pub(super) fn save_state(&mut self) -> Result<Vec<u8>, Busy> {
        let held = self.hold.as_ref().and_then(|request| request.guest_port());
        let state = match held {
            Some(_) if !self.connections.is_empty() || !self.resets.is_empty() => {
                return Err(Busy("a template has streams".into()));
            }
            Some(guest_port) => State::Held(guest_port),
            None if !self.ready => return Err(Busy("the guest is not up yet".into())),
            None => State::Ready(Streams {
                next_host_port: self.next_host_port,
                connections: self
                    .connections
                    .iter_mut()
                    .filter_map(|(id, connection)| Some((*id, connection.save()?)))
                    .collect(),
                resets: self.resets.iter().copied().collect(),
            }),
        };
        postcard::to_stdvec(&state).map_err(|error| Busy(error.to_string().into()))
    }

    /// See [`super::VirtioDevice::restore`]. The streams have no host programs yet.
    pub(super) fn restore_state(
        &mut self,
        state: &[u8],
        io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        let damaged = || DeviceError::Protocol {
            device: NAME,
            reason: "the state is damaged",
        };
        let streams = match postcard::from_bytes(state).map_err(|_| damaged())? {
            State::Held(guest_port) => return self.answer_ready(guest_port, io),
            State::Ready(streams) => streams,
        };
        let count = streams.connections.len();
        if streams.next_host_port < FIRST_HOST_PORT
            || count > MAX_CONNECTIONS
            || streams.resets.len() > MAX_STRAY_RESETS + count
        {
            return Err(damaged());
        }
        self.next_host_port = streams.next_host_port;
        self.resets = streams.resets.into();
        for (id, saved) in streams.connections {
            let connection = saved.restore().filter(|_| id >= FIRST_HOST_PORT);
            let connection = connection.ok_or_else(damaged)?;
            self.connections.insert(id, connection);
            self.update(id, true);
        }
        if let Some(event) = &self.drop {
            io.host
                .watch(borrow_eventfd(event), DROP, Readiness::READABLE)
                .map_err(DeviceError::host(NAME, "watch"))?;
        }
        self.set_ready(io)
    }
}
