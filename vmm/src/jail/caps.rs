//! The capabilities a jailed process keeps, all of them only within its user namespace.

use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
};

use super::{JailError, step};

/// Which capabilities are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caps {
    /// What it takes to serve files as root serves them. CAP_MKNOD is among them for completeness:
    /// the kernel grants device nodes to no user namespace.
    FileServer,
    /// None.
    None,
}

impl Caps {
    fn set(self) -> CapabilitySet {
        match self {
            Self::FileServer => {
                CapabilitySet::CHOWN
                    | CapabilitySet::DAC_OVERRIDE
                    | CapabilitySet::DAC_READ_SEARCH
                    | CapabilitySet::FOWNER
                    | CapabilitySet::FSETID
                    | CapabilitySet::SETGID
                    | CapabilitySet::SETUID
                    | CapabilitySet::MKNOD
                    | CapabilitySet::SETFCAP
            }
            Self::None => CapabilitySet::empty(),
        }
    }

    /// Gives up all others, for good.
    pub(super) fn keep(self) -> Result<(), JailError> {
        let kept = self.set();
        // SETPCAP is needed until the others are gone.
        for capability in CapabilitySet::all() - kept - CapabilitySet::SETPCAP {
            drop_from_bounding_set(capability)?;
        }
        drop_from_bounding_set(CapabilitySet::SETPCAP)?;
        set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilitySet::empty(),
            },
        )
        .map_err(step("give up capabilities"))
    }
}

fn drop_from_bounding_set(capability: CapabilitySet) -> Result<(), JailError> {
    match remove_capability_from_bounding_set(capability) {
        // A capability that is newer than the kernel.
        Err(rustix::io::Errno::INVAL) => Ok(()),
        other => other.map_err(step("drop a capability from the bounding set")),
    }
}
