//! The capabilities that a jailed process keeps, which hold only within its user namespace.

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, remove_capability_from_bounding_set,
    set_capabilities, set_capabilities_secure_bits,
};

use super::{JailError, step, user};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caps {
    /// The capabilities of a file server that serves files as root. CAP_MKNOD has no effect: the
    /// kernel lets no user namespace create device nodes.
    FileServer,
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

    /// Drops all other capabilities for good, and keeps these when a thread changes its user.
    ///
    /// A file server takes on the user of the guest's process while it creates a file, so that the
    /// file belongs to that user. Whether the process may create it is for the guest's kernel to
    /// say: root of a user namespace may do so in directories of every user there. The host's
    /// kernel sees only the user, and would refuse.
    ///
    /// In between, while it may, the process takes on its own id, if it has one.
    pub(super) fn keep(self, own_id: Option<u32>) -> Result<(), JailError> {
        let kept = self.set();
        let bits = CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
        set_capabilities_secure_bits(bits).map_err(step("keep capabilities"))?;
        if let Some(id) = own_id {
            user::become_own(id).map_err(step("take on its own user and group"))?;
        }
        // CAP_SETPCAP is needed to drop the others.
        for capability in CapabilitySet::all() - kept - CapabilitySet::SETPCAP {
            drop_from_bounding_set(capability)?;
        }
        drop_from_bounding_set(CapabilitySet::SETPCAP)?;
        keep_only(kept)
    }

    /// Drops those that a thread does not need which works as this.
    pub(super) fn keep_in_thread(self) -> Result<(), JailError> {
        match self {
            Self::FileServer => user::serve_as_root().map_err(step("become root to files")),
            Self::None => keep_only(CapabilitySet::empty()),
        }
    }
}

fn keep_only(kept: CapabilitySet) -> Result<(), JailError> {
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(step("drop capabilities"))
}

fn drop_from_bounding_set(capability: CapabilitySet) -> Result<(), JailError> {
    match remove_capability_from_bounding_set(capability) {
        // The kernel does not know the capability.
        Err(rustix::io::Errno::INVAL) => Ok(()),
        other => other.map_err(step("drop a capability from the bounding set")),
    }
}
