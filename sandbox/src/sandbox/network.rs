//! A sandbox's network while its machine runs: what changes in the namespace on the host changes in
//! the guest.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use rvm_protocol::agent::ConfigureNetworkRequest;
use tokio::sync::Mutex;

use super::loopback::Loopback;
use super::names;
use super::{Life, Sandbox, SandboxError};
use crate::dir::SandboxDir;
use crate::engine::Machine;
use crate::guest::agent::Agent;
use crate::guest::stdio::open_stream;
use crate::host::error_chain::chain;
use crate::host::timings::Timings;
use crate::network::{Changes, Found, Link, NetCard, Network, NetworkError, Room, add_defaults};

/// The network, and what the guest knows of it.
pub(super) struct Live {
    network: Network,
    /// None while the guest has cards that it was told nothing of.
    told: Option<ConfigureNetworkRequest>,
    /// The guest's network is what was found at the last look.
    is_settled: bool,
    /// What was logged already.
    left: HashSet<String>,
    /// The files in which containers look for name servers, until one is found to be Docker's.
    resolv_confs: Vec<PathBuf>,
}

impl Live {
    /// Gives the interfaces that are there cards in a machine that is about to start.
    pub(super) fn first(
        mut network: Network,
        room: Room,
    ) -> Result<(Self, Vec<NetCard>), NetworkError> {
        let found = network.look()?;
        if found.links.is_empty() {
            tracing::info!("the network namespace has no interfaces: the guest has loopback only");
        }
        let cards = network.first_cards(&found, room)?;
        let mut live = Self {
            network,
            told: cards.is_empty().then(ConfigureNetworkRequest::default),
            is_settled: cards.is_empty(),
            left: HashSet::new(),
            resolv_confs: Vec::new(),
        };
        live.mention_left(&found);
        Ok((live, cards))
    }

    /// Makes the guest's network what is found on the host.
    async fn sync(&mut self, machine: &dyn Machine, agent: &Agent) -> Result<(), SandboxError> {
        if !self.network.has_changed()? && self.is_settled {
            return Ok(());
        }
        // Until everything is done.
        self.is_settled = false;
        let found = self.network.look()?;
        self.mention_left(&found);
        self.network.follow(&found)?;
        let mut plugged = Ok(());
        for link in self.network.unserved(&found) {
            if let Err(error) = self.plug(link, machine).await {
                // The others need not suffer.
                plugged = Err(error);
            }
        }
        let request = found.request(|index| self.network.card_of(index));
        if self.told.as_ref() != Some(&request) {
            let mut whole = request.clone();
            if let Some(told) = &self.told {
                add_defaults(&mut whole, told);
            }
            agent.configure_network(&whole).await?;
            tracing::debug!("the guest has {} interfaces", request.interfaces.len());
            self.told = Some(request);
        }
        for mac in self.network.idle_cards() {
            if machine
                .unplug_net(mac)
                .await
                .map_err(SandboxError::Unplug)?
            {
                self.network.remove_card(mac);
            }
        }
        self.is_settled = plugged.is_ok();
        plugged
    }

    /// Relays what containers ask Docker's name server, once they are told to ask it. Docker may
    /// tell them late.
    async fn relay_names(&mut self, dir: &SandboxDir, agent: &Agent) -> Result<(), SandboxError> {
        if !names::are_asked_of_docker(&self.resolv_confs) {
            return Ok(());
        }
        // Docker's name server asks others over the container's interface.
        self.network.let_host_ask()?;
        let namespace = self.network.namespace()?;
        let (id, stream) = open_stream(dir).map_err(SandboxError::Names)?;
        names::relay(stream, move || namespace.enter()).map_err(SandboxError::Names)?;
        agent.relay_names(id).await?;
        tracing::debug!("the names that Docker serves are relayed");
        self.resolv_confs.clear();
        Ok(())
    }

    async fn plug(&mut self, link: &Link, machine: &dyn Machine) -> Result<(), SandboxError> {
        tracing::info!(
            "the interface {} has come into the network namespace",
            link.name
        );
        if self.network.reuse_card(link)? {
            return Ok(());
        }
        let card = self.network.add_card(link)?;
        let mac = card.mac;
        let plugged = machine.plug_net(card).await;
        if plugged.is_err() {
            self.network.remove_card(mac);
        }
        plugged.map_err(|source| SandboxError::Plug {
            link: link.name.clone(),
            source,
        })
    }

    fn mention_left(&mut self, found: &Found) {
        for (name, reason) in &found.left {
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
                let how = end.to_string();
                return Err(self.watch.failure(stage, timings.elapsed(), how).into());
            }
            other => other?,
        }
        timings.lap("set the network up");
        Ok(())
    }

    /// Makes the guest's network what is found in the namespace now.
    pub async fn sync_network(&self) -> Result<(), SandboxError> {
        let Life::Owned {
            machine, network, ..
        } = &self.life
        else {
            return Ok(());
        };
        let mut network = network.lock().await;
        let sync = async {
            network.sync(machine.as_ref(), &self.agent).await?;
            network.relay_names(&self.dir, &self.agent).await
        };
        tokio::select! {
            biased;
            // Answers of the machine arrive only while somebody waits for its end.
            end = self.ended() => Err(SandboxError::Ended(end.clone())),
            done = sync => done,
        }
    }

    /// Sees to it that a container finds the names that it is told to ask Docker for, now or later.
    pub async fn find_names_for(&self, spec: &Spec) -> Result<(), SandboxError> {
        let Life::Owned { network, .. } = &self.life else {
            return Ok(());
        };
        let mut network = network.lock().await;
        network.resolv_confs.extend(names::resolv_confs(spec));
        let relay = network.relay_names(&self.dir, &self.agent);
        tokio::select! {
            biased;
            end = self.ended() => Err(SandboxError::Ended(end.clone())),
            done = relay => done,
        }
    }

    /// Lets the host reach the guest's ports, as it reaches those of a pod whose programs run on it:
    /// at 127.0.0.1 in the pod's network namespace.
    pub async fn serve_ports(self: Arc<Self>) -> Result<(), SandboxError> {
        let Life::Owned { network, .. } = &self.life else {
            return Ok(());
        };
        let namespace = network.lock().await.network.namespace()?;
        let loopback = Loopback::listen(&namespace).map_err(SandboxError::Ports)?;
        drop(namespace);
        let ended = self.clone();
        tokio::select! {
            () = loopback.serve(self.clone()) => {}
            _ = ended.ended() => {}
        }
        Ok(())
    }

    /// Follows the changes in the namespace.
    pub(crate) async fn follow_network(&self) -> Result<Infallible, SandboxError> {
        let Life::Owned { network, .. } = &self.life else {
            return std::future::pending().await;
        };
        let changes = changes(network).await?;
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

async fn changes(network: &Mutex<Live>) -> Result<Changes, NetworkError> {
    network.lock().await.network.changes()
}
