//! UpdateContainer.

use oci_spec::runtime::LinuxResources;

use super::spec::SpecError;
use super::state::{self, Operation};
use super::{Container, ContainerError};
use crate::cgroup::{CgroupError, parent};

impl Container {
    /// Sets the limits that the JSON of a `linux.resources` object names.
    pub fn update(&self, resources: &[u8]) -> Result<(), ContainerError> {
        state::permit(*self.lock_state(), Operation::Update)?;
        let mut resources: LinuxResources = serde_json::from_slice(resources)
            .map_err(|error| SpecError::Malformed(format!("linux.resources: {error}")))?;
        self.disks.translate(&mut resources);
        // The host has made the machine larger before it raises a container's limit.
        parent::limit_memory().map_err(CgroupError::from)?;
        Ok(self.cgroup.set_limits(&resources)?)
    }
}
