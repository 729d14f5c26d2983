//! The statuses of a container, and the steps between them.
//!
//! ```text
//!   create          the guest has made it     start           resume
//!  ────────> Creating ───────────────> Created ─────> Running <────── Paused
//!               │                         │            │  └──────────────^
//!               │                         │            │      pause      │
//!               └─────────> Stopped <─────┴────────────┴─────────────────┘
//!                              its init process, its machine or its monitor has ended
//! ```
//!
//! A container that has stopped stays so until it is deleted.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A container's status, in the terms of the runtime specification; `Paused` is runc's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The machine is being started.
    Creating,
    /// The init process waits to execute the program.
    Created,
    /// The init process has executed the program.
    Running,
    /// The processes of the container are frozen.
    Paused,
    /// The init process has ended.
    Stopped,
}

/// A step that is not in the diagram of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the container is {from}, it cannot become {to}")]
pub struct IllegalStep {
    /// The status that the container has.
    pub from: Status,
    /// The status that it was to get.
    pub to: Status,
}

impl Status {
    /// Checks a step; returns the status after it.
    pub fn step(self, to: Self) -> Result<Self, IllegalStep> {
        use Status::{Created, Creating, Paused, Running, Stopped};
        match (self, to) {
            (Creating, Created)
            | (Created, Running)
            | (Running, Paused)
            | (Paused, Running)
            | (Creating | Created | Running | Paused, Stopped) => Ok(to),
            (from, to) => Err(IllegalStep { from, to }),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Status; 5] = [
        Status::Creating,
        Status::Created,
        Status::Running,
        Status::Paused,
        Status::Stopped,
    ];

    #[test]
    fn a_stopped_container_stays_stopped() {
        for to in ALL {
            assert!(Status::Stopped.step(to).is_err());
        }
    }

    #[test]
    fn every_other_status_can_become_stopped() {
        for from in ALL.into_iter().filter(|from| *from != Status::Stopped) {
            assert_eq!(from.step(Status::Stopped), Ok(Status::Stopped));
        }
    }

    #[test]
    fn a_container_is_started_once() {
        assert!(Status::Created.step(Status::Running).is_ok());
        assert!(Status::Running.step(Status::Running).is_err());
        assert!(Status::Creating.step(Status::Running).is_err());
    }
}
