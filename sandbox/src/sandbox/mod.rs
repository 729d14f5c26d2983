//! A sandbox: one machine, its guest, and whatever containers run in it.
//!
//! One process owns it: the machine's processes are its children and end with it. What only the
//! owner can do with the machine is [`Sandbox`]. What every process can ask of the guest, which it
//! finds by the sandbox's directory, is [`Guest`].

mod checkpoint;
mod clock;
pub mod disks;
mod dns;
mod failure;
mod guest;
mod live_network;
mod owner;
mod plan;
mod port_forward;
mod resize;
mod silence;
mod volumes;

use std::io;

use crate::config::EngineKind;
use crate::engine::choice::NoEngine;
use crate::engine::{Engine, EngineError, MachineEnd};
use crate::guest::agent::AgentError;
use crate::guest::stdio::StdioError;
use crate::network::NetworkError;

pub use checkpoint::{CheckpointError, ContainerToSave, ToSave};
#[cfg(any(test, feature = "fuzzing"))]
pub use clock::compare as compare_clocks;
pub use disks::DiskError;
pub use failure::GuestFailure;
pub use guest::Guest;
pub(crate) use guest::HANGUP_TIMEOUT;
pub use owner::{Requirements, Sandbox};
pub(crate) use plan::PlanError;
pub use plan::{CreateTemplateError, MachinePlan, create_template};
pub use resize::{MemoryResult, ResizeError};
pub use volumes::{VolumeError, Volumes};

/// A sandbox did not come up, or failed a request.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No engine works here.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// Binding or serving the sockets in the sandbox's directory failed.
    #[error("cannot make the sandbox's sockets")]
    Sockets(#[source] io::Error),
    /// The machine's processes did not start.
    #[error("cannot start the machine on the {engine} engine")]
    Engine {
        /// The engine that was to run it.
        engine: EngineKind,
        /// From the engine.
        #[source]
        source: EngineError,
    },
    /// The id by which the guest knows its container could not be written down.
    #[error("cannot write the sandbox's record")]
    Record(#[source] io::Error),
    /// The record of the machine's processes could not be read or written, or a process not opened.
    #[error("cannot find the machine's processes")]
    Processes(#[source] io::Error),
    /// The machine that was to be joined has ended. With the sandbox's directory.
    #[error("the sandbox {0} does not run")]
    Gone(String),
    /// Reading or changing the network namespace failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// An interface that came into the namespace got no network card.
    #[error("cannot plug the interface {link} in")]
    Plug {
        /// The interface's name.
        link: String,
        /// From the engine.
        #[source]
        source: EngineError,
    },
    /// The network card of an interface that has left the namespace stays.
    #[error("cannot unplug an interface")]
    Unplug(#[source] EngineError),
    /// Reading the namespace's netlink notifications failed.
    #[error("cannot watch the sandbox's network namespace")]
    Watch(#[source] io::Error),
    /// The socket that forwards connections to the guest's ports could not be made.
    #[error("cannot take connections to the guest's ports in its network namespace")]
    Ports(#[source] io::Error),
    /// The DNS relay did not start.
    #[error("cannot relay names between the guest and its network namespace")]
    Names(#[source] io::Error),
    /// The machine ended meanwhile.
    #[error("{0}")]
    Ended(MachineEnd),
    /// A container's streams could not be connected.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The agent refused a call, or its connection was lost.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The guest ended or did not answer during a stage of a start.
    #[error(transparent)]
    Guest(#[from] Box<GuestFailure>),
}

impl SandboxError {
    fn of_engine(engine: &Engine, source: EngineError) -> Self {
        Self::Engine {
            engine: engine.kind,
            source,
        }
    }
}
