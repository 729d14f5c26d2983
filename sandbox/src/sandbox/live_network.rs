//! The network of a running machine: what changes in the namespace on the host changes in the
//! guest.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use rvm_protocol::agent::ConfigureNetworkRequest;

use super::dns;
use super::port_forward::PortForward;
use super::{Sandbox, SandboxError};
use crate::dir::SandboxDir;
use crate::engine::{EngineError, Machine};
use crate::guest::agent::Agent;
use crate::guest::stdio::open_stream;
use crate::host::timings::Timings;
use crate::network::{
    Inventory, Link, Network, NetworkError, NicBackend, NicLimits, SavedCard, add_defaults,
};
use rvm_sys::error_chain::chain;

/// The network, and the guest's configuration of it.
pub(super) struct LiveNetwork {
    network: Network,
    /// The configuration that the guest has; None before it has one for the cards of the start.
    configured: Option<ConfigureNetworkRequest>,
    /// The guest's network equals what the last look at the namespace found.
    is_settled: bool,
    /// Interfaces that the guest does not get, and that were logged.
    left: HashSet<String>,
    /// The containers' resolv.conf files, until one names Docker's name server.
    resolv_confs: Vec<PathBuf>,
}

impl LiveNetwork {
    /// Makes network cards for the interfaces that are there, or those that were `saved`, for a
    /// machine that is about to start.
    pub(super) fn first(
        mut network: Network,
        room: NicLimits,
        saved: Option<&[SavedCard]>,
    ) -> Result<(Self, Vec<NicBackend>), NetworkError> {
        let found = network.scan()?;
        if found.links.is_empty() {
            tracing::info!("the network namespace has no interfaces: the guest has loopback only");
        }
        let cards = match saved {
            Some(saved) => network.saved_nics(&found, saved)?,
            None => network.initial_nics(&found, room)?,
        };
        let mut live = Self {
            network,
            configured: cards.is_empty().then(ConfigureNetworkRequest::default),
            is_settled: cards.is_empty(),
            left: HashSet::new(),
            resolv_confs: Vec::new(),
        };
        live.mention_left(&found);
        Ok((live, cards))
    }

    /// Makes the guest's network equal to that of the host's namespace.
    async fn sync(&mut self, machine: &Machine, agent: &Agent) -> Result<(), SandboxError> {
        if !self.network.has_changed()? && self.is_settled {
            return Ok(());
        }
        // Until everything is done.
        self.is_settled = false;
        let found = self.network.scan()?;
        self.mention_left(&found);
        self.network.sync(&found)?;
        let mut plugged = Ok(());
        for link in self.network.unserved(&found) {
            if let Err(error) = self.plug(link, machine).await {
                // The others need not suffer.
                plugged = Err(error);
            }
        }
        let is_full = machine.engine().net_hotplug.is_err() && self.network.idle_nics().is_empty();
        self.network.reserve_names(is_full);
        let request = found.request(|index| self.network.nic_of(index));
        if self.configured.as_ref() != Some(&request) {
            let mut whole = request.clone();
            if let Some(before) = &self.configured {
                add_defaults(&mut whole, before);
            }
            agent.configure_network(&whole).await?;
            tracing::debug!("the guest has {} interfaces", request.interfaces.len());
            self.configured = Some(request);
        }
        for mac in self.network.idle_nics() {
            // Where it cannot be unplugged, the machine keeps it for the next interface.
            if machine.engine().net_hotplug.is_ok() {
                machine
                    .unplug_net(mac)
                    .await
                    .map_err(SandboxError::Unplug)?;
                self.network.remove_nic(mac);
            }
        }
        self.is_settled = plugged.is_ok();
        plugged
    }

    /// Relays DNS requests to Docker's name server, once a container's resolv.conf names it. Docker
    /// may write that file late.
    async fn relay_dns(&mut self, dir: &SandboxDir, agent: &Agent) -> Result<(), SandboxError> {
        if !dns::name_docker(&self.resolv_confs) {
            return Ok(());
        }
        // Docker's name server asks others over the container's interface.
        self.network.pass_host_dns()?;
        let namespace = self.network.namespace()?;
        let (id, stream) = open_stream(dir).map_err(SandboxError::Names)?;
        dns::relay(stream, move || namespace.enter()).map_err(SandboxError::Names)?;
        agent.relay_names(id).await?;
        tracing::debug!("DNS requests are relayed to Docker's name server");
        self.resolv_confs.clear();
        Ok(())
    }

    async fn plug(&mut self, link: &Link, machine: &Machine) -> Result<(), SandboxError> {
        tracing::info!(
            "the interface {} has come into the network namespace",
            link.name
        );
        if self.network.reuse_idle_nic(link)? {
            return Ok(());
        }
        let plugged = match machine.engine().net_hotplug {
            Ok(()) => {
                let card = self.network.add_nic(link)?;
                let mac = card.mac;
                let plugged = machine.plug_net(card).await;
                if plugged.is_err() {
                    self.network.remove_nic(mac);
                }
                plugged
            }
            Err(words) => Err(EngineError::Unsupported(words)),
        };
        plugged.map_err(|source| {
            self.network.turn_away(link);
            SandboxError::Plug {
                link: link.name.clone(),
                source,
            }
        })
    }

    /// The machine's cards, to be saved.
    pub(super) fn cards(&self) -> Vec<SavedCard> {
        self.network.cards()
    }

    fn mention_left(&mut self, found: &Inventory) {
        for (name, reason) in &found.skipped {
            if self.left.insert(name.clone()) {
                tracing::warn!("the guest does not get the interface {name}: {reason}");
            }
        }
    }
}

impl Sandbox {
    /// Gives the guest its network for the first time.
    pub(super) async fn set_network_up(&self, timings: &mut Timings) -> Result<(), SandboxError> {
        match self.sync_network().await {
            Err(SandboxError::Ended(end)) => {
                let stage = "the set-up of its network";
                let failure = self
                    .guest()
                    .failure(stage, timings.elapsed(), end.to_string());
                return Err(failure.into());
            }
            other => other?,
        }
        timings.lap("set the network up");
        Ok(())
    }

    /// Makes the guest's network equal to the namespace as it is now.
    pub async fn sync_network(&self) -> Result<(), SandboxError> {
        let (machine, guest) = (self.machine(), self.guest());
        let mut network = self.network().lock().await;
        let sync = async {
            network.sync(machine, guest.agent()).await?;
            network.relay_dns(guest.dir(), guest.agent()).await
        };
        tokio::select! {
            biased;
            end = guest.ended() => Err(SandboxError::Ended(end)),
            done = sync => done,
        }
    }

    /// Relays the DNS requests of a container to Docker's name server, if its resolv.conf names
    /// that now or later.
    pub async fn relay_dns_of(&self, spec: &Spec) -> Result<(), SandboxError> {
        let guest = self.guest();
        let mut network = self.network().lock().await;
        network.resolv_confs.extend(dns::resolv_confs(spec));
        tokio::select! {
            biased;
            end = guest.ended() => Err(SandboxError::Ended(end)),
            done = network.relay_dns(guest.dir(), guest.agent()) => done,
        }
    }

    /// Forwards connections to 127.0.0.1 in the pod's network namespace on the host to the guest's
    /// ports, until the machine ends.
    pub async fn forward_ports(&self) -> Result<(), SandboxError> {
        let namespace = self.network().lock().await.network.namespace()?;
        let forward = PortForward::listen(&namespace).map_err(SandboxError::Ports)?;
        drop(namespace);
        let guest = self.guest();
        tokio::select! {
            () = forward.serve(Arc::clone(guest)) => {}
            _ = guest.ended() => {}
        }
        Ok(())
    }

    /// Follows the changes in the namespace. Returns when that has become impossible.
    pub async fn follow_network(&self) -> Result<Infallible, SandboxError> {
        let changes = self.network().lock().await.network.changes()?;
        loop {
            changes.next().await.map_err(SandboxError::Watch)?;
            match self.sync_network().await {
                Ok(()) => {}
                Err(ended @ SandboxError::Ended(_)) => return Err(ended),
                Err(error) => tracing::warn!(
                    "the guest's network is not what it should be: {}",
                    chain(&error)
                ),
            }
        }
    }
}
