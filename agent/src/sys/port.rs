//! Writing to an I/O port.
#![allow(unsafe_code)]

use rustix::io;

use super::check;

/// Writes one byte to an I/O port, which needs CAP_SYS_RAWIO.
pub fn write_byte(port: u16, byte: u8) -> io::Result<()> {
    // SAFETY: ioperm(2) takes integers.
    check(libc::c_long::from(unsafe {
        libc::ioperm(libc::c_ulong::from(port), 1, 1)
    }))?;
    // SAFETY: the port may be accessed by the call above, and an OUT touches no memory.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") port, in("al") byte,
            options(nomem, nostack, preserves_flags));
    }
    Ok(())
}
