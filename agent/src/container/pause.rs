//! PauseContainer and ResumeContainer.

use super::Container;
use super::state::{self, Operation, State, StateError};
use crate::error::AgentError;

impl Container {
    /// Makes every process stand still, and returns when they do.
    pub async fn pause(&self) -> Result<(), AgentError> {
        state::permit(*self.lock_state(), Operation::Pause)?;
        self.cgroup.freeze().await?;
        // It may have been killed meanwhile.
        self.step(Operation::Pause, State::Paused)?;
        Ok(())
    }

    /// Lets the processes go on.
    pub async fn resume(&self) -> Result<(), AgentError> {
        self.step(Operation::Resume, State::Running)?;
        Ok(self.cgroup.thaw().await?)
    }

    fn step(&self, operation: Operation, to: State) -> Result<(), StateError> {
        let mut state = self.lock_state();
        state::permit(*state, operation)?;
        *state = to;
        Ok(())
    }
}
