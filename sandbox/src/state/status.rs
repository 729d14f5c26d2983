//! The life of a container.
//!
//! ```text
//!   create          the guest has made it     start           resume
//!  ────────> Creating ───────────────> Created ─────> Running <────── Paused
//!               │                         │            │  └──────────────^
//!               │                         │            │      pause      │
//!               └─────────> Stopped <─────┴────────────┴─────────────────┘
//!                              its first process, its machine or its monitor has ended
//! ```
//!
//! What is stopped stays so until it is deleted.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a container's life stands, in the terms of the runtime specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The machine is being started.
    Creating,
    /// The first process waits to execute the program.
    Created,
    /// The program runs.
    Running,
    /// No process of the container makes progress.
    Paused,
    /// The first process has ended.
    Stopped,
}

/// A step that a container cannot take from where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the container is {from}, it cannot become {to}")]
pub struct IllegalStep {
    /// Where it stands.
    pub from: Status,
    /// Where it should go.
    pub to: Status,
}

impl Status {
    /// Checks a step.
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
    fn nothing_leaves_stopped() {
        for to in ALL {
            assert!(Status::Stopped.step(to).is_err());
        }
    }

    #[test]
    fn everything_else_can_stop() {
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
