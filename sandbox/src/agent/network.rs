//! Calls about the guest's network.

use rvm_protocol::agent::ConfigureNetworkRequest;

use super::{Agent, AgentError, failed, limited};

impl Agent {
    /// Makes the guest's network what the request says.
    pub async fn configure_network(
        &self,
        request: &ConfigureNetworkRequest,
    ) -> Result<(), AgentError> {
        let answer = self.0.configure_network(limited(), request).await;
        answer.map(|_| ()).map_err(failed("configure network"))
    }
}
