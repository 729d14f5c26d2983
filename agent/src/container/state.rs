//! The states of a container, and what may be done in each.
//!
//! ```text
//!  CreateContainer       init process is ready      StartContainer
//!  ──────────────► Creating ──────────────► Created ──────────────► Running
//!                     │                        │                     │  ▲   PauseContainer
//!                     │ failed                 │ init process ended  │  └─► Paused
//!                     ▼                        ▼                     ▼        │ ResumeContainer
//!                  (nothing) ◄────────────── Stopped ◄───────────────┴────────┘ or its end
//!                              RemoveContainer
//! ```
//!
//! RemoveContainer is also taken in Created, Running and Paused: it kills first. In Creating there
//! is only a reserved id ([`crate::sandbox`]), and every operation is refused.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The init process waits for StartContainer.
    Created,
    /// The program runs.
    Running,
    /// The processes are frozen.
    Paused,
    /// The init process has ended.
    Stopped,
}

/// Calls of the service that depend on the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Start,
    Exec,
    /// ExecProcess with `ignore_paused`.
    ExecWhenResumed,
    Signal,
    Pause,
    Resume,
    Update,
    Remove,
}

/// An operation that the state does not allow. The messages are runc's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("container is still being created")]
    Creating,
    #[error("cannot start an already running container")]
    AlreadyRunning,
    #[error("cannot start a container that has stopped")]
    StartStopped,
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    #[error("container not running")]
    NotRunning,
    #[error("container not paused")]
    NotPaused,
}

pub fn permit(state: State, operation: Operation) -> Result<(), StateError> {
    use Operation::{Exec, ExecWhenResumed, Pause, Remove, Resume, Signal, Start, Update};
    match (state, operation) {
        (State::Running | State::Paused, Start) => Err(StateError::AlreadyRunning),
        (State::Stopped, Start) => Err(StateError::StartStopped),
        (State::Stopped, Exec | ExecWhenResumed) => Err(StateError::ExecStopped),
        (State::Paused, Exec) => Err(StateError::ExecPaused),
        (State::Created | State::Running, Resume) => Err(StateError::NotPaused),
        (State::Stopped, Signal | Pause | Resume | Update)
        | (State::Created | State::Paused, Pause) => Err(StateError::NotRunning),
        (State::Created, Start | Exec | ExecWhenResumed | Signal | Update)
        | (State::Running, Exec | ExecWhenResumed | Signal | Pause | Update)
        | (State::Paused, ExecWhenResumed | Signal | Resume | Update)
        | (_, Remove) => Ok(()),
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
        for operation in [
            Operation::Start,
            Operation::Exec,
            Operation::ExecWhenResumed,
            Operation::Signal,
            Operation::Pause,
            Operation::Resume,
            Operation::Update,
        ] {
            assert!(permit(State::Stopped, operation).is_err());
        }
        assert_eq!(permit(State::Stopped, Operation::Remove), Ok(()));
    }

    #[test]
    fn a_paused_container_is_joined_only_by_who_can_wait() {
        assert_eq!(
            permit(State::Paused, Operation::Exec),
            Err(StateError::ExecPaused)
        );
        assert_eq!(permit(State::Paused, Operation::ExecWhenResumed), Ok(()));
    }

    #[test]
    fn only_what_runs_is_paused_and_only_what_is_paused_resumes() {
        for (state, pause, resume) in [
            (State::Created, false, false),
            (State::Running, true, false),
            (State::Paused, false, true),
            (State::Stopped, false, false),
        ] {
            assert_eq!(permit(state, Operation::Pause).is_ok(), pause, "{state:?}");
            assert_eq!(
                permit(state, Operation::Resume).is_ok(),
                resume,
                "{state:?}"
            );
        }
    }
}
