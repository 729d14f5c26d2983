//! What a machine is to be, found out before this process enters a container's control groups.

use std::sync::Arc;

use oci_spec::runtime::Spec;
use rvm_protocol::vmm::Rates;

use super::SandboxError;
use crate::checkpoint::Image;

use crate::config::rates::RateLimits;
use crate::config::{Config, TemplateUse};
use crate::engine::choice::{self, Choice};
use crate::engine::{Created, Engine, EngineError, Prepared, TemplateError};
use crate::host::memory::total_memory_mib;
use crate::host::timings::Timings;
use crate::sizing::{Bounds, Hardware, Running, Size, SizeError};

/// A machine that is to be started.
pub struct MachinePlan {
    pub(super) engine: &'static Engine,
    pub(super) running: Running,
    pub(super) bounds: Bounds,
    /// The most disks that its containers can ask for. Each takes a slot, at which the guest's
    /// kernel looks when it boots.
    pub(super) max_disks: usize,
    /// How fast it may use its devices.
    pub(super) rates: Rates,
    pub(super) prepared: Prepared,
    /// What it goes on from.
    pub(super) checkpoint: Option<Arc<Image>>,
}

impl MachinePlan {
    /// The machine for a container's configuration, or for its pod's. Makes its template if there
    /// is to be one.
    ///
    /// Called within a tokio runtime, on a thread that lives as long as this, which is in no
    /// container's control groups: they would have fewer CPUs, and be charged for the template.
    pub(crate) async fn new(
        (spec, rates): (&Spec, RateLimits),
        hardware: Hardware,
        max_disks: usize,
        config: &Config,
        timings: &mut Timings,
    ) -> Result<Self, PlanError> {
        let bounds = Bounds::of(config);
        let size = Size::for_bundle(spec, hardware, &bounds)?;
        let mut plan = Self::boots(size, bounds, max_disks, config)?;
        plan.rates = rates_of(plan.engine, rates, config)?;
        let linux = spec.linux().as_ref();
        let has_memory_policy = linux.is_some_and(|linux| linux.memory_policy().is_some());
        if config.templates == TemplateUse::Auto
            // The memory of a template has been allocated.
            && !has_memory_policy
            && let Ok(templates) = plan.engine.templates(config)
        {
            let Running { now, max, .. } = plan.running;
            let slots = plan.disk_slots(0);
            plan.prepared = templates.prepare(now, max, slots, timings).await;
        }
        Ok(plan)
    }

    /// The machine that was saved to a checkpoint. Fails if the engine that runs machines here
    /// cannot restore any.
    pub(crate) fn of_checkpoint(
        image: Arc<Image>,
        rates: RateLimits,
        config: &Config,
    ) -> Result<Self, PlanError> {
        let saved = image.manifest.machine;
        let bounds = Bounds::of(config);
        let plan = Self::boots(saved.start, bounds, saved.disk_slots, config)?;
        let engine = plan.engine;
        let unsupported = |words| SandboxError::of_engine(engine, EngineError::Unsupported(words));
        engine.checkpoints.map_err(unsupported)?;
        Ok(Self {
            running: Running {
                start: saved.start,
                now: image.manifest.now,
                max: saved.max,
                ..plan.running
            },
            rates: rates_of(engine, rates, config)?,
            checkpoint: Some(image),
            ..plan
        })
    }

    /// A machine without a template.
    fn boots(
        size: Size,
        bounds: Bounds,
        max_disks: usize,
        config: &Config,
    ) -> Result<Self, SandboxError> {
        let Choice { engine, reason } = choice::choose(config)?;
        tracing::info!("engine {}: {reason}", engine.kind);
        tracing::debug!("{} vCPUs and {} MiB", size.vcpus, size.memory_mib);
        let memory_mib = match engine.memory_hotplug {
            true => total_memory_mib().unwrap_or(0),
            false => 0,
        };
        Ok(Self {
            engine,
            running: Running {
                engine: engine.kind,
                start: size,
                now: size,
                max: size.with_room(&bounds, memory_mib),
            },
            bounds,
            max_disks,
            rates: Rates::default(),
            prepared: Prepared::default(),
            checkpoint: None,
        })
    }

    /// The slots for disks beside so many network cards.
    pub(super) fn disk_slots(&self, cards: usize) -> usize {
        if self.checkpoint.is_some() {
            return self.max_disks;
        }
        (self.engine.disk_slots)(cards).min(self.max_disks)
    }
}

/// How fast a machine may use its devices of which annotations say this. Fails if the engine cannot
/// see to that.
fn rates_of(
    engine: &Engine,
    annotated: RateLimits,
    config: &Config,
) -> Result<Rates, SandboxError> {
    match annotated.first(config.rates) {
        Some(field) if !engine.rate_limits => {
            Err(SandboxError::of_engine(engine, EngineError::NoRates(field)))
        }
        _ => Ok(annotated.or(config.rates)),
    }
}

/// It could not be found out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// A template that was asked for could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateTemplateError {
    /// The configuration asks for more than a machine can have.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// No engine works here.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The engine.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Makes the template for containers without limits and disks, unless there is one.
pub async fn create_template(config: &Config) -> Result<Created, CreateTemplateError> {
    let bounds = Bounds::of(config);
    let plan = MachinePlan::boots(Size::of(None, &bounds)?, bounds, 0, config)?;
    let templates = plan.engine.templates(config).map_err(TemplateError::from)?;
    let Running { now, max, .. } = plan.running;
    let slots = plan.disk_slots(0);
    Ok(templates.create(now, max, slots).await?)
}
