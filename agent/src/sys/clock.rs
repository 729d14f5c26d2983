//! Corrections of CLOCK_REALTIME.
#![allow(unsafe_code)]

use rustix::io;

use super::check;

/// Nanoseconds in a second.
const SECOND: i64 = 1_000_000_000;

/// Adds nanoseconds to the clock at once. The clocks that count from the boot go on as they were.
/// The kernel refuses a time before the boot.
pub fn step(offset_ns: i64) -> io::Result<()> {
    let mut change = unchanged();
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    // The second part is never negative: a microsecond back is a second back and 999,999 forth.
    change.time.tv_sec = offset_ns.div_euclid(SECOND);
    change.time.tv_usec = offset_ns.rem_euclid(SECOND);
    adjust(&mut change)
}

/// Has the clock make up for an offset in microseconds, at 500 µs a second. It replaces what is
/// left of an earlier one.
pub fn slew(offset_us: i64) -> io::Result<()> {
    let mut change = unchanged();
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = offset_us;
    adjust(&mut change)
}

fn unchanged() -> libc::timex {
    // SAFETY: the structure is of integers.
    unsafe { std::mem::zeroed() }
}

fn adjust(change: &mut libc::timex) -> io::Result<()> {
    // SAFETY: the structure lives across the call.
    let state = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, change) };
    // The state is that of a clock without a time server, TIME_ERROR.
    check(libc::c_long::from(state)).map(drop)
}
