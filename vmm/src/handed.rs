//! Descriptors that came with a configuration.

use std::os::fd::OwnedFd;

use rvm_protocol::vmm::FdIndex;

/// The configuration names a descriptor that did not come with it, or names one twice.
#[derive(Debug, thiserror::Error)]
#[error("the configuration came without its descriptor {0}")]
pub struct MissingFd(usize);

/// The descriptors, each to be taken once.
pub struct HandedFds(Vec<Option<OwnedFd>>);

impl HandedFds {
    /// In the order in which they came.
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// The one that the configuration names.
    pub fn take(&mut self, index: FdIndex) -> Result<OwnedFd, MissingFd> {
        self.0
            .get_mut(index.0)
            .and_then(Option::take)
            .ok_or(MissingFd(index.0))
    }
}
