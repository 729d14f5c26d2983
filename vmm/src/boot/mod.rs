//! Loads a Linux kernel into guest memory, by the 64-bit boot protocol of the kernel's
//! Documentation/arch/x86/boot.rst.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory as _, GuestMemoryError};
use vm_memory::{GuestMemoryRegion, VolatileMemoryError};

use crate::arch::x86_64::layout;
use crate::memory::{GuestMemory, LOW_MEMORY_END};

/// The kernel or what goes with it could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("the guest kernel is not a 64-bit ELF kernel for x86-64, or is cut short")]
    Kernel(#[source] LoaderError),
    #[error("cannot read the initramfs")]
    ReadInitramfs(#[source] io::Error),
    #[error("the initramfs of {0} bytes does not fit the guest's memory beside the kernel")]
    InitramfsTooLarge(u64),
    #[error("cannot copy the initramfs")]
    CopyInitramfs(#[source] GuestMemoryError),
    #[error("the kernel command line of {0} bytes is longer than {max}", max = layout::CMDLINE_MAX - 1)]
    CmdlineTooLong(usize),
    #[error("cannot write the boot parameters")]
    Memory(#[from] GuestMemoryError),
}

impl From<VolatileMemoryError> for BootError {
    fn from(error: VolatileMemoryError) -> Self {
        Self::Memory(error.into())
    }
}

/// Loads kernel, initramfs, command line and boot parameters; returns the kernel's entry point.
pub fn load(
    memory: &GuestMemory,
    kernel: &mut File,
    initramfs: &mut File,
    cmdline: &str,
) -> Result<GuestAddress, BootError> {
    let high_memory = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded = Elf::load(memory, None, kernel, high_memory).map_err(BootError::Kernel)?;
    let initramfs = load_initramfs(memory, initramfs, loaded.kernel_end)?;
    write_cmdline(memory, cmdline)?;
    write_boot_params(memory, cmdline, initramfs)?;
    Ok(loaded.kernel_load)
}

/// Copies the initramfs to the end of low memory, as far from the kernel as possible; returns its
/// address and size.
fn load_initramfs(
    memory: &GuestMemory,
    file: &mut File,
    kernel_end: u64,
) -> Result<(u64, u64), BootError> {
    let bytes = file
        .seek(SeekFrom::End(0))
        .map_err(BootError::ReadInitramfs)?;
    file.rewind().map_err(BootError::ReadInitramfs)?;
    let low_end = (memory.last_addr().0 + 1).min(LOW_MEMORY_END);
    let start = low_end.checked_sub(bytes).map(|start| start & !0xfff);
    let start = start
        .filter(|&start| start >= kernel_end)
        .ok_or(BootError::InitramfsTooLarge(bytes))?;
    memory
        .read_exact_volatile_from(GuestAddress(start), file, bytes as usize)
        .map_err(BootError::CopyInitramfs)?;
    Ok((start, bytes))
}

fn write_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() >= layout::CMDLINE_MAX {
        return Err(BootError::CmdlineTooLong(cmdline.len()));
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    memory.write_obj(0_u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))?;
    Ok(())
}

fn write_boot_params(
    memory: &GuestMemory,
    cmdline: &str,
    (initramfs, initramfs_bytes): (u64, u64),
) -> Result<(), BootError> {
    const BOOT_FLAG: u16 = 0xaa55;
    const HEADER: u32 = 0x5372_6448;
    const UNDEFINED_LOADER: u8 = 0xff;
    const KERNEL_ALIGNMENT: u32 = 0x100_0000;
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER;
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    params.hdr.ramdisk_image = initramfs as u32;
    params.hdr.ramdisk_size = initramfs_bytes as u32;
    for (entry, (start, end)) in params.e820_table.iter_mut().zip(usable(memory)) {
        const RAM: u32 = 1;
        *entry = boot_e820_entry {
            addr: start,
            size: end - start,
            type_: RAM,
        };
        params.e820_entries += 1;
    }
    memory.write_slice(params.as_slice(), GuestAddress(layout::BOOT_PARAMS))?;
    Ok(())
}

/// The ranges of memory that the kernel may use, as (start, end).
fn usable(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let mut ranges = vec![(0, layout::MP_TABLE)];
    for region in memory.iter() {
        let start = region.start_addr().0.max(layout::HIGH_MEMORY);
        let end = region.start_addr().0 + region.len();
        if start < end {
            ranges.push((start, end));
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(contents: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(contents).unwrap();
        file
    }

    /// An ELF file with one segment of code that is loaded at 1 MiB and starts there.
    fn kernel() -> File {
        let mut elf = vec![0; 0x1000];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[4..7].copy_from_slice(&[2, 1, 1]);
        let mut put = |offset: usize, value: u64, bytes: usize| {
            elf[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        };
        put(16, 2, 2); // ET_EXEC
        put(18, 62, 2); // EM_X86_64
        put(20, 1, 4);
        put(24, layout::HIGH_MEMORY, 8); // e_entry
        put(32, 64, 8); // e_phoff
        put(52, 64, 2);
        put(54, 56, 2);
        put(56, 1, 2);
        put(64, 1, 4); // PT_LOAD
        put(72, 0x800, 8); // p_offset
        put(88, layout::HIGH_MEMORY, 8); // p_paddr
        put(96, 4, 8); // p_filesz
        put(104, 4, 8);
        elf[0x800..0x804].copy_from_slice(b"code");
        file(&elf)
    }

    #[test]
    fn kernel_initramfs_and_command_line_are_where_the_boot_parameters_point() {
        let memory = crate::memory::map(16).unwrap();
        let entry = load(&memory, &mut kernel(), &mut file(b"initramfs"), "quiet").unwrap();
        assert_eq!(entry, GuestAddress(layout::HIGH_MEMORY));
        assert_eq!(memory.read_obj::<[u8; 4]>(entry).unwrap(), *b"code");
        let params: boot_params = memory.read_obj(GuestAddress(layout::BOOT_PARAMS)).unwrap();
        let header = params.hdr;
        let read = |address: u32, bytes| {
            let mut text = vec![0; bytes];
            memory
                .read_slice(&mut text, GuestAddress(address.into()))
                .unwrap();
            text
        };
        assert_eq!(read(header.cmd_line_ptr, 6), b"quiet\0");
        assert_eq!(read(header.ramdisk_image, 9), b"initramfs");
        assert_eq!({ header.ramdisk_size }, 9);
        assert_eq!(params.e820_entries, 2);
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let memory = crate::memory::map(16).unwrap();
        for contents in [b"".as_slice(), b"#!/bin/sh\n", &[0x7f; 100]] {
            let result = load(&memory, &mut file(contents), &mut file(b""), "");
            assert!(matches!(result, Err(BootError::Kernel(_))));
        }
    }

    #[test]
    fn an_initramfs_that_does_not_fit_is_refused() {
        let memory = crate::memory::map(2).unwrap();
        let large = file(&vec![0; 2 << 20]);
        let result = load(&memory, &mut kernel(), &mut large.try_clone().unwrap(), "");
        assert!(matches!(result, Err(BootError::InitramfsTooLarge(_))));
    }

    #[test]
    fn an_overlong_command_line_is_refused() {
        let memory = crate::memory::map(16).unwrap();
        let result = load(&memory, &mut kernel(), &mut file(b""), &"x".repeat(2048));
        assert!(matches!(result, Err(BootError::CmdlineTooLong(2048))));
    }
}
