//! A hostile program in the place of `rvm-vmm`: a machine and its agent that were taken over.
//!
//! rvm starts it as it starts `rvm-vmm machine`, with a configuration and descriptors. It runs no
//! guest and needs no KVM: it answers the calls of the host like an agent, for containers that are
//! entries of a table. Its name, `hostile-MODE`, says what it does wrong (`mode.rs`).
//!
//! ```text
//!   vmm       the control socket
//!   agent     the calls of the host        guest    containers, streams, events
//!   lies      what comes instead           frames   ttrpc's frames, right and wrong
//! ```

mod agent;
mod frames;
mod guest;
mod lies;
mod mode;
mod vmm;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rvm_protocol::vmm::{Channel, MachineConfig};
use rvm_protocol::{AGENT_PORT, STREAM_PORT};

use agent::Agent;
use guest::Guest;
use mode::Mode;
use vmm::Vmm;

fn main() {
    let program = std::env::args().next().unwrap();
    let mode = Mode::of(Path::new(&program));
    let channel = Channel::new(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let (config, fds) = channel.receive::<MachineConfig>().unwrap();
    let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    let channel = Arc::new(channel);
    let vmm = || Vmm {
        mode,
        channel: Arc::clone(&channel),
    };
    let agent = Arc::new(Agent {
        mode,
        guest: Guest::new(mode == Mode::KeepsStreams),
        vmm: vmm(),
        is_started: AtomicBool::new(false),
    });
    vmm().start(fds[config.console.0].take().unwrap().into());
    for port in &config.vsock {
        let listener = UnixListener::from(fds[port.listener.0].take().unwrap());
        match port.port {
            AGENT_PORT => agent.serve(listener),
            STREAM_PORT => agent.serve_streams(listener),
            other => panic!("a port of no purpose: {other}"),
        }
    }
    vmm().answer();
}
