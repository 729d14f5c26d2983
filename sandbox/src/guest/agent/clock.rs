//! The call for the guest's clock.

use rvm_protocol::agent::AdjustClockRequest;

use super::{Agent, AgentError, CALL_TIMEOUT, limited, within};

impl Agent {
    /// Adds nanoseconds to the guest's clock, at once or gradually; 0 only reads the clock. Returns
    /// what the clock says, in nanoseconds since the epoch.
    pub async fn adjust_clock(&self, offset_ns: i64, gradual: bool) -> Result<i64, AgentError> {
        let request = AdjustClockRequest {
            offset_ns,
            gradual,
            ..Default::default()
        };
        let call = self.client.adjust_clock(limited(), &request);
        let answer = within(CALL_TIMEOUT, "adjust clock", call).await?;
        Ok(answer.now_ns)
    }
}
