//! Accepting the host's connections, and no others.
//!
//! A process in the guest can open a vsock too. Where the kernel loops such connections back, it
//! could command the agent. So the agent closes a connection from any other context id than the
//! host's before it reads from it.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio_vsock::{Incoming, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::transport::Listener;

use crate::sys::vsock::HOST_CID;

/// Connections of the host.
struct HostOnly(Incoming);

impl Stream for HostOnly {
    type Item = std::io::Result<VsockStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match Pin::new(&mut self.0).poll_next(context) {
                Poll::Ready(Some(Ok(stream))) if !is_host(&stream) => {
                    log::warn!("a connection to the agent from inside the guest, refused");
                }
                other => return other,
            }
        }
    }
}

fn is_host(stream: &VsockStream) -> bool {
    stream
        .peer_addr()
        .is_ok_and(|address| address.cid() == HOST_CID)
}

/// A listener for ttrpc on a vsock port.
pub fn listen(port: u32) -> std::io::Result<Listener> {
    let listener = VsockListener::bind(VsockAddr::new(tokio_vsock::VMADDR_CID_ANY, port))?;
    Ok(Listener::new(HostOnly(listener.incoming())))
}
