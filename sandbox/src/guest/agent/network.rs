//! Calls for the guest's network.

use rvm_protocol::agent::{ConfigureNetworkRequest, ForwardRequest, RelayNamesRequest};

use super::{Agent, AgentError, failed, limited};

impl Agent {
    /// Makes the guest relay queries for Docker's DNS server over an open stream.
    pub async fn relay_names(&self, stream: u64) -> Result<(), AgentError> {
        let request = RelayNamesRequest {
            stream,
            ..Default::default()
        };
        let answer = self.0.relay_names(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("relay names"))
    }

    /// Connects an open stream to a TCP port of the guest.
    pub async fn forward(&self, port: u16, stream: u64) -> Result<(), AgentError> {
        let request = ForwardRequest {
            port: port.into(),
            stream,
            ..Default::default()
        };
        let answer = self.0.forward(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("forward"))
    }

    /// Replaces the configuration of the guest's network.
    pub async fn configure_network(
        &self,
        request: &ConfigureNetworkRequest,
    ) -> Result<(), AgentError> {
        let answer = self.0.configure_network(limited(), request).await;
        answer.map(|_| ()).map_err(failed("configure network"))
    }
}
