//! Calls about the guest's network.

use rvm_protocol::agent::{ConfigureNetworkRequest, RelayNamesRequest};

use super::{Agent, AgentError, failed, limited};

impl Agent {
    /// Lets what is asked of Docker's name server come on a stream that was opened.
    pub async fn relay_names(&self, stream: u64) -> Result<(), AgentError> {
        let request = RelayNamesRequest {
            stream,
            ..Default::default()
        };
        let answer = self.0.relay_names(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("relay names"))
    }

    /// Makes the guest's network what the request says.
    pub async fn configure_network(
        &self,
        request: &ConfigureNetworkRequest,
    ) -> Result<(), AgentError> {
        let answer = self.0.configure_network(limited(), request).await;
        answer.map(|_| ()).map_err(failed("configure network"))
    }
}
