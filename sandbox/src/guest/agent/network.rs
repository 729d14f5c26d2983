//! Calls about the guest's network.

use rvm_protocol::agent::{ConfigureNetworkRequest, ForwardRequest, RelayNamesRequest};

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

    /// Connects a stream that was opened to a port of the guest's.
    pub async fn forward(&self, port: u16, stream: u64) -> Result<(), AgentError> {
        let request = ForwardRequest {
            port: port.into(),
            stream,
            ..Default::default()
        };
        let answer = self.0.forward(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("forward"))
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
