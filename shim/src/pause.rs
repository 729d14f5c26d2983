//! The first process of a pod whose sandbox has no container of its own: it holds the namespaces
//! that the pod's containers share, takes in their orphans, and does nothing else.
//!
//! It is a program of its own, a few system calls long, so that it costs a page of memory and needs
//! no image.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// What the program is called in the root that it has to itself.
pub const PROGRAM: &str = "pause";

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;

/// The sizes of elf(5)'s file header and of one program header.
const FILE_HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// `rt_sigaction(SIGCHLD, {SIG_IGN, SA_NOCLDWAIT}, NULL, 8)`, then `pause()` forever: the kernel
/// reaps children whose end nobody wants to hear of.
const CODE: [u8; 72] = [
    0xb8, 13, 0, 0, 0, // mov eax, SYS_rt_sigaction
    0xbf, 17, 0, 0, 0, // mov edi, SIGCHLD
    0x48, 0x8d, 0x35, 23, 0, 0, 0, // lea rsi, [rip + 23]: the action below
    0x31, 0xd2, // xor edx, edx
    0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8: the size of a signal set
    0x0f, 0x05, // syscall
    0xb8, 34, 0, 0, 0, // mov eax, SYS_pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp to the second mov
    0, 0, 0, 0, // so that what follows is aligned
    1, 0, 0, 0, 0, 0, 0, 0, // handler: SIG_IGN
    2, 0, 0, 0, 0, 0, 0, 0, // flags: SA_NOCLDWAIT
    0, 0, 0, 0, 0, 0, 0, 0, // restorer
    0, 0, 0, 0, 0, 0, 0, 0, // mask
];

/// Writes the program into a directory.
pub fn install(dir: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o555);
    options.open(dir.join(PROGRAM))?.write_all(&program())
}

/// An ELF file with one segment, see elf(5).
fn program() -> Vec<u8> {
    let headers = FILE_HEADER + PROGRAM_HEADER;
    let entry = BASE + u64::from(headers);
    let size = u64::from(headers) + CODE.len() as u64;
    let mut file = Vec::new();
    // 64 bits, little-endian, version 1.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, EM_X86_64, version 1.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(entry.to_le_bytes());
    file.extend(u64::from(FILE_HEADER).to_le_bytes());
    // No sections, no flags.
    file.extend([0; 12]);
    for half in [FILE_HEADER, PROGRAM_HEADER, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, to be read and executed, from the beginning of the file.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for long in [0, BASE, BASE, size, size, 4096] {
        file.extend(long.to_le_bytes());
    }
    file.extend(CODE);
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn the_program_waits_until_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path()).unwrap();
        let mut child = Command::new(dir.path().join(PROGRAM)).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(child.try_wait().unwrap().is_none());
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let ignored = status.lines().find(|line| line.starts_with("SigIgn:"));
        let ignored = u64::from_str_radix(ignored.unwrap()[7..].trim(), 16).unwrap();
        assert_ne!(ignored & 1 << (17 - 1), 0, "SIGCHLD is ignored");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
