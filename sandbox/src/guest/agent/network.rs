//! Calls for the guest's network.

use rvm_protocol::agent::{ConfigureNetworkRequest, ForwardRequest, RelayNamesRequest};

use super::{Agent, AgentError, CALL_TIMEOUT, limited, within};

impl Agent {
    /// Makes the guest relay queries for Docker's DNS server over an open stream.
    pub async fn relay_names(&self, stream: u64) -> Result<(), AgentError> {
        let request = RelayNamesRequest {
            stream,
            ..Default::default()
        };
        let call = self.client.relay_names(limited(), &request);
        within(CALL_TIMEOUT, "relay names", call).await.map(|_| ())
    }

    /// Connects an open stream to a TCP port of the guest.
    pub async fn forward(&self, port: u16, stream: u64) -> Result<(), AgentError> {
        let request = ForwardRequest {
            port: port.into(),
            stream,
            ..Default::default()
        };
        let call = self.client.forward(limited(), &request);
        within(CALL_TIMEOUT, "forward", call).await.map(|_| ())
    }

    /// Replaces the configuration of the guest's network.
    pub async fn configure_network(
        &self,
        request: &ConfigureNetworkRequest,
    ) -> Result<(), AgentError> {
        let call = self.client.configure_network(limited(), request);
        within(CALL_TIMEOUT, "configure network", call)
            .await
            .map(|_| ())
    }
}
