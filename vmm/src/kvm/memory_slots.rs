//! The table of KVM's memory slots (KVM_SET_USER_MEMORY_REGION): which slot maps which memory.
//!
//! | slot | memory |
//! |---|---|
//! | 0 | memory of the boot below the device hole |
//! | 1 | memory of the boot above it |
//! | 2 to 9 | images that are mapped, by the index of their disk |
//! | 10 and up | hotplug memory, one slot for each time it grew |

use rvm_protocol::vmm::MAX_DISKS;

/// The number of a memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySlot(u32);

impl MemorySlot {
    /// The slots of the memory of the boot, lowest address first.
    pub const BOOT: [Self; 2] = [Self(0), Self(1)];

    const FIRST_IMAGE: u32 = Self::BOOT.len() as u32;

    const FIRST_HOTPLUG: u32 = Self::FIRST_IMAGE + MAX_DISKS as u32;

    /// The slot of the piece of hotplug memory with this index. KVM refuses a number past its
    /// limit.
    pub fn hotplug(index: usize) -> Self {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Self(Self::FIRST_HOTPLUG.saturating_add(index))
    }

    /// The slot of the image that is the disk with this index, of at most [`MAX_DISKS`].
    pub fn image(disk: usize) -> Option<Self> {
        let index = u32::try_from(disk).ok().filter(|_| disk < MAX_DISKS)?;
        Some(Self(Self::FIRST_IMAGE + index))
    }

    pub(super) fn number(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_slot_is_of_two_kinds() {
        let images: Vec<_> = (0..MAX_DISKS).filter_map(MemorySlot::image).collect();
        assert_eq!(images.len(), MAX_DISKS);
        assert_eq!(MemorySlot::image(MAX_DISKS), None);
        for index in [0, 1, usize::MAX] {
            let slot = MemorySlot::hotplug(index);
            assert!(!MemorySlot::BOOT.contains(&slot) && !images.contains(&slot));
        }
        assert!(images.iter().all(|slot| !MemorySlot::BOOT.contains(slot)));
    }
}
