//! The table of virtio-mmio slots: which device is in which slot, and each slot's address.
//!
//! | slot | device |
//! |---|---|
//! | 0 to 4 | [`FixedSlot`] |
//! | 5 | the shared files |
//! | from [`DISK_SLOT`] | empty slots for disks |
//! | then | network cards, in the order of the configuration |
//! | last | empty slots for network cards that are plugged in later |

use rvm_protocol::{DISK_SLOT, MEMORY_SLOT};

use crate::arch::x86_64::{DEVICE_INTERRUPTS, layout};
use crate::virtio::mmio::WINDOW;

/// The slots of the devices that every machine has on its main thread. The value is the slot's
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixedSlot {
    Console = 0,
    Vsock = 1,
    Rng = 2,
    Balloon = 3,
    /// Empty until the machine grows. The agent binds the driver to this slot by its number.
    Memory = MEMORY_SLOT as isize,
}

impl FixedSlot {
    /// All fixed slots in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Console,
        Self::Vsock,
        Self::Rng,
        Self::Balloon,
        Self::Memory,
    ];
}

// The numbers are the places in ALL, so devices that are created in its order are in their slots.
const _: () = {
    let mut number = 0;
    while number < FixedSlot::ALL.len() {
        assert!(FixedSlot::ALL[number] as usize == number);
        number += 1;
    }
};

/// The address of a slot's register window and its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotAddress {
    pub window: u64,
    pub interrupt: u32,
}

impl SlotAddress {
    /// The address of a slot by its number. None past the last interrupt for devices.
    pub fn of(number: usize) -> Option<Self> {
        let interrupt = DEVICE_INTERRUPTS.clone().nth(number)?;
        Some(Self {
            window: layout::MMIO_START + number as u64 * WINDOW,
            interrupt,
        })
    }

    /// The number of the slot whose window contains `address`, and the offset in the window.
    pub fn find(address: u64) -> Option<(usize, u64)> {
        let offset = address.checked_sub(layout::MMIO_START)?;
        Some(((offset / WINDOW) as usize, offset % WINDOW))
    }

    /// The kernel parameter that declares the slot to the guest.
    pub fn kernel_parameter(self) -> String {
        let Self { window, interrupt } = self;
        format!("virtio_mmio.device={WINDOW:#x}@{window:#x}:{interrupt}")
    }
}

// The shared files are between the fixed slots and the disks.
const _: () = assert!(DISK_SLOT == FixedSlot::ALL.len() + 1);

#[cfg(test)]
mod tests {
    use rvm_protocol::vmm::MAX_SLOTS;

    use super::*;

    #[test]
    fn there_are_as_many_slots_as_the_host_counts_on() {
        assert_eq!(DEVICE_INTERRUPTS.count(), MAX_SLOTS);
    }

    #[test]
    fn every_slot_is_found_by_the_addresses_of_its_window() {
        let slots = DEVICE_INTERRUPTS.count();
        for number in 0..slots {
            let address = SlotAddress::of(number).unwrap();
            assert_eq!(SlotAddress::find(address.window), Some((number, 0)));
            assert_eq!(
                SlotAddress::find(address.window + WINDOW - 1),
                Some((number, WINDOW - 1))
            );
        }
        assert_eq!(SlotAddress::of(slots), None);
    }
}
