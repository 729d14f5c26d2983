//! PauseContainer and ResumeContainer.

use super::state::{self, Operation, State, StateError};
use super::{Container, ContainerError};

impl Container {
    /// Freezes every process, and returns when all are frozen.
    pub async fn pause(&self) -> Result<(), ContainerError> {
        state::permit(*self.lock_state(), Operation::Pause)?;
        self.cgroup.freeze().await?;
        // The container may have been killed meanwhile.
        self.transition(Operation::Pause, State::Paused)?;
        Ok(())
    }

    /// Thaws the processes.
    pub async fn resume(&self) -> Result<(), ContainerError> {
        self.transition(Operation::Resume, State::Running)?;
        Ok(self.cgroup.thaw().await?)
    }

    fn transition(&self, operation: Operation, to: State) -> Result<(), StateError> {
        let mut state = self.lock_state();
        state::permit(*state, operation)?;
        *state = to;
        Ok(())
    }
}
