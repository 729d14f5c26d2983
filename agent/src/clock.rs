//! The guest's time of day, which the host compares with its own and corrects.

use rustix::time::{ClockId, clock_gettime};

use crate::sys::{Doing as _, OsError, clock};

/// The clock could not be corrected.
#[derive(Debug, thiserror::Error)]
#[error("correct the guest's clock")]
pub struct ClockError(#[from] OsError);

/// Adds nanoseconds to CLOCK_REALTIME, at once or little by little. Returns what it says then, in
/// nanoseconds since the epoch.
pub fn adjust(offset_ns: i64, gradual: bool) -> Result<i64, ClockError> {
    match (offset_ns, gradual) {
        (0, _) => {}
        (_, true) => clock::slew(offset_ns / 1000).doing(|| format!("by {offset_ns} ns"))?,
        (_, false) => {
            // What is left of an earlier offset would come on top.
            clock::slew(0).doing(|| "end an earlier correction")?;
            clock::step(offset_ns).doing(|| format!("by {offset_ns} ns"))?;
        }
    }
    let now = clock_gettime(ClockId::Realtime);
    Ok(now
        .tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec))
}
