//! Capabilities by number. rustix's typed sets end at the highest capability it knows; a container
//! is to get or lose also those that a newer kernel has.
#![allow(unsafe_code)]

use rustix::io;

use super::check;

/// The highest capability number that a 64-bit set can hold.
pub const HIGHEST: u32 = 63;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the calling thread's three sets with capset(2); bits the kernel does not know are ignored.
pub fn set(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 of the call takes this header and two of these structures.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Removes every capability that is not in `keep` from the bounding set.
pub fn limit_bounding_set(keep: u64) -> io::Result<()> {
    for number in 0..=HIGHEST {
        if keep & (1 << number) != 0 {
            continue;
        }
        // SAFETY: this prctl takes integers.
        match check(unsafe { prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0) }) {
            Ok(_) => {}
            // The kernel's last capability has been passed.
            Err(io::Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Makes the ambient set `wanted`. A capability that is not both permitted and inheritable is left
/// out, as runc does.
pub fn set_ambient(wanted: u64) -> io::Result<()> {
    // SAFETY: these prctls take integers.
    unsafe {
        check(prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
            0,
        ))?;
    }
    for number in (0..=HIGHEST).filter(|number| wanted & (1 << number) != 0) {
        let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
        // SAFETY: as above.
        match check(unsafe { prctl(libc::PR_CAP_AMBIENT, raise, number as libc::c_ulong) }) {
            Ok(_) | Err(io::Errno::PERM | io::Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

unsafe fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> libc::c_long {
    // SAFETY: the caller names an option that takes integers.
    libc::c_long::from(unsafe { libc::prctl(option, first, second, 0, 0) })
}
