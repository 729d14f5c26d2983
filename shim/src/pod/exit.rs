//! How a process ended.

use std::time::SystemTime;

use protobuf::well_known_types::timestamp::Timestamp;
use rvm_sandbox::monitor::EXIT_MACHINE_GONE;

/// How and when a process ended. The time is the host's: the guest's clock may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 plus the number of the signal.
    pub status: u8,
    pub at: SystemTime,
}

impl Exit {
    /// An exit at the present time.
    pub fn now(status: u8) -> Self {
        Self {
            status,
            at: SystemTime::now(),
        }
    }

    /// The exit of a process whose machine has ended.
    pub fn with_machine() -> Self {
        Self::now(EXIT_MACHINE_GONE)
    }

    /// The time in containerd's messages.
    pub fn timestamp(self) -> Timestamp {
        Timestamp::from(self.at)
    }
}
