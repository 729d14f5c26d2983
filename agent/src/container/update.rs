//! UpdateContainer.

use oci_spec::runtime::LinuxResources;

use super::Container;
use super::cgroup::{CgroupError, parent};
use super::spec::SpecError;
use super::state::{self, Operation};
use crate::error::AgentError;

impl Container {
    /// Sets the limits that the JSON of a `linux.resources` object names.
    pub fn update(&self, resources: &[u8]) -> Result<(), AgentError> {
        state::permit(*self.lock_state(), Operation::Update)?;
        let resources: LinuxResources = serde_json::from_slice(resources)
            .map_err(|error| SpecError::Malformed(format!("linux.resources: {error}")))?;
        // The machine grows before what is in it.
        parent::limit_memory().map_err(CgroupError::from)?;
        Ok(self.cgroup.set_limits(&resources)?)
    }
}
