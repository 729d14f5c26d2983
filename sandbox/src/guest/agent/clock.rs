//! The call for the guest's clock.

use rvm_protocol::agent::AdjustClockRequest;

use super::{Agent, AgentError, failed, unlimited};

impl Agent {
    /// Adds nanoseconds to the guest's clock, at once or gradually; 0 only reads the clock. Returns
    /// what the clock says, in nanoseconds since the epoch, however long the agent takes: callers
    /// have limits of their own.
    pub async fn adjust_clock(&self, offset_ns: i64, gradual: bool) -> Result<i64, AgentError> {
        let request = AdjustClockRequest {
            offset_ns,
            gradual,
            ..Default::default()
        };
        let answer = self.client.adjust_clock(unlimited(), &request).await;
        Ok(answer.map_err(failed("adjust clock"))?.now_ns)
    }
}
