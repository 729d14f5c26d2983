//! The MP table, from which a guest without ACPI learns its CPUs and the I/O APIC: "MultiProcessor
//! Specification", version 1.4.

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

use super::{DEVICE_INTERRUPTS, layout};
use crate::memory::GuestMemory;

/// The pin of the timer's interrupt, without which a kernel complains.
const TIMER_PIN: u8 = 0;
/// An integrated APIC, as in every CPU since the Pentium.
const APIC_VERSION: u8 = 0x14;

/// Entry types, section 4.3.
mod entry {
    pub const PROCESSOR: u8 = 0;
    pub const BUS: u8 = 1;
    pub const IO_APIC: u8 = 2;
    pub const IO_INTERRUPT: u8 = 3;
    pub const LOCAL_INTERRUPT: u8 = 4;
}

/// Interrupt types, section 4.3.4.
mod interrupt {
    pub const INT: u8 = 0;
    pub const NMI: u8 = 1;
    pub const EXT_INT: u8 = 3;
}

/// Writes the table for `vcpus` CPUs and `slots` devices to the address at which the guest looks
/// for it.
pub fn write(memory: &GuestMemory, vcpus: u8, slots: usize) -> Result<(), GuestMemoryError> {
    let pointer = GuestAddress(layout::MP_TABLE);
    let table = GuestAddress(layout::MP_TABLE + 16);
    memory.write_slice(&floating_pointer(table.0 as u32), pointer)?;
    memory.write_slice(&configuration(vcpus, slots), table)
}

/// The MP floating pointer structure, section 4.1.
fn floating_pointer(table: u32) -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(table.as_slice());
    // Length in paragraphs, version, checksum, and no default configuration.
    bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

/// The MP configuration table, sections 4.2 and 4.3. It has no pin that nothing uses: a kernel sets
/// up each one, by four exits and more.
fn configuration(vcpus: u8, slots: usize) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries: Vec<u8> = Vec::new();
    let mut count: u16 = 0;
    let mut add = |bytes: &[u8]| {
        entries.extend(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        const ENABLED: u8 = 1;
        const BOOT: u8 = 2;
        let flags = if id == 0 { ENABLED | BOOT } else { ENABLED };
        let mut processor = vec![entry::PROCESSOR, id, APIC_VERSION, flags];
        // Signature and features; kernels use CPUID instead.
        processor.extend([0; 16]);
        add(&processor);
    }
    add(&[&[entry::BUS, 0], b"ISA   ".as_slice()].concat());
    add(&[
        &[entry::IO_APIC, io_apic_id, APIC_VERSION, 1],
        layout::IO_APIC.as_slice(),
    ]
    .concat());
    let devices = DEVICE_INTERRUPTS.map(|pin| pin as u8).take(slots);
    for pin in std::iter::once(TIMER_PIN).chain(devices) {
        add(&[
            entry::IO_INTERRUPT,
            interrupt::INT,
            0,
            0,
            0,
            pin,
            io_apic_id,
            pin,
        ]);
    }
    add(&[entry::LOCAL_INTERRUPT, interrupt::EXT_INT, 0, 0, 0, 0, 0, 0]);
    add(&[entry::LOCAL_INTERRUPT, interrupt::NMI, 0, 0, 0, 0, 0xff, 1]);

    let mut table = b"PCMP".to_vec();
    table.extend(((44 + entries.len()) as u16).as_slice());
    table.extend([4, 0]);
    table.extend(b"RVM     SANDBOX     ");
    // No OEM table.
    table.extend([0; 6]);
    table.extend(count.as_slice());
    table.extend(layout::LOCAL_APIC.as_slice());
    // No extended table.
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_structures_sum_to_zero() {
        assert_eq!(checksum(&floating_pointer(0x9fc10)), 0);
        assert_eq!(checksum(&configuration(3, 5)), 0);
    }

    #[test]
    fn the_header_has_the_length_and_the_number_of_entries() {
        let table = configuration(2, 7);
        assert_eq!(
            u16::from_le_bytes([table[4], table[5]]) as usize,
            table.len()
        );
        assert_eq!(
            u16::from_le_bytes([table[34], table[35]]),
            2 + 1 + 1 + (1 + 7) + 2
        );
        assert_eq!(table.len(), 44 + 2 * 20 + 12 * 8);
    }

    #[test]
    fn the_largest_table_ends_below_the_kernel() {
        let largest = configuration(super::super::MAX_VCPUS, DEVICE_INTERRUPTS.count());
        let end = layout::MP_TABLE + 16 + largest.len() as u64;
        assert!(end <= layout::HIGH_MEMORY);
    }
}
