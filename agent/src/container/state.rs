//! The states of a container, and what may be done in each.
//!
//! ```text
//!   CreateContainer      first process is ready        StartContainer
//!  ───────────────► Creating ───────────────► Created ───────────────► Running
//!                      │                         │                        │
//!                      │ failed                  │ first process ended    │ first process ended
//!                      ▼                         ▼                        ▼
//!                   (nothing) ◄─────────────── Stopped ◄──────────────────┘
//!                               RemoveContainer
//! ```
//!
//! RemoveContainer is also taken in Created and Running: it kills first.

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its first process is being prepared.
    Creating,
    /// Its first process waits for the word to start.
    Created,
    /// Its program runs.
    Running,
    /// Its first process has ended.
    Stopped,
}

/// What is asked of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// StartContainer
    Start,
    /// ExecProcess
    Exec,
    /// SignalProcess
    Signal,
    /// RemoveContainer
    Remove,
}

/// An operation that the state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It is not there yet.
    #[error("container is still being created")]
    Creating,
    /// It runs.
    #[error("cannot start an already running container")]
    AlreadyRunning,
    /// It is over.
    #[error("cannot start a container that has stopped")]
    StartStopped,
    /// It is over.
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    /// It is over.
    #[error("container not running")]
    NotRunning,
}

/// Says whether an operation is allowed; the words are runc's.
pub fn permit(state: State, operation: Operation) -> Result<(), StateError> {
    match (state, operation) {
        (State::Creating, _) => Err(StateError::Creating),
        (State::Running, Operation::Start) => Err(StateError::AlreadyRunning),
        (State::Stopped, Operation::Start) => Err(StateError::StartStopped),
        (State::Stopped, Operation::Exec) => Err(StateError::ExecStopped),
        (State::Stopped, Operation::Signal) => Err(StateError::NotRunning),
        (State::Created, _)
        | (State::Running, Operation::Exec | Operation::Signal | Operation::Remove)
        | (State::Stopped, Operation::Remove) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_starts_once() {
        assert_eq!(permit(State::Created, Operation::Start), Ok(()));
        assert_eq!(
            permit(State::Running, Operation::Start),
            Err(StateError::AlreadyRunning)
        );
        assert_eq!(
            permit(State::Stopped, Operation::Start),
            Err(StateError::StartStopped)
        );
    }

    #[test]
    fn a_stopped_container_can_only_be_removed() {
        for operation in [Operation::Start, Operation::Exec, Operation::Signal] {
            assert!(permit(State::Stopped, operation).is_err());
        }
        assert_eq!(permit(State::Stopped, Operation::Remove), Ok(()));
    }
}
