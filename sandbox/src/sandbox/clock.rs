//! The guest's clock, which the owner of its machine sets to the host's and keeps there: before the
//! guest has a container, when somebody sets the host's clock, after the host was suspended, and
//! every [`PERIOD`], because the clocks drift apart.
//!
//! The guest's clock is read over the agent's connection. An answer took some time, of which the
//! part before the guest read its clock is not known: half of it is how wrong the reading may be.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use super::{Sandbox, SandboxError};
use crate::guest::agent::{Agent, AgentError};
use crate::host::timings::Timings;
use rvm_sys::error_chain::chain;
use rvm_sys::readiness::Readable;

/// How often the clocks are compared, for which the guest wakes for some 100,000 instructions.
/// Within it, the clock of a host that follows a time server goes some milliseconds apart from one
/// that follows the CPU's counter alone.
const PERIOD: Duration = Duration::from_secs(20);

/// A difference up to which the guest's clock goes faster or slower for a while; beyond it jumps.
const MAX_GRADUAL: i64 = 100_000_000;

/// A reading that is as exact as this, in nanoseconds, is not repeated.
const EXACT: i64 = 1_000_000;

/// How often the clock is read to find a reading that took a short time.
const READINGS: u32 = 3;

/// How far the guest's clock was from the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// Nanoseconds to add to the guest's clock.
    offset: i64,
    /// By how many nanoseconds `offset` may be wrong.
    error: i64,
}

/// A change of the guest's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Correction {
    None,
    Gradual(i64),
    Step(i64),
}

/// What the clocks are compared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    /// The first time, or the host's clock has jumped.
    Jump,
    Drift,
}

impl Reading {
    /// From the guest's clock, the host's clock and the host's monotonic clock. `sent` is the
    /// latter at the request; the host's are read at the answer. All are in nanoseconds.
    fn new(guest: i64, host: i64, sent: i64, received: i64) -> Self {
        let error = received.saturating_sub(sent).max(0) / 2;
        Self {
            offset: host.saturating_sub(error).saturating_sub(guest),
            error,
        }
    }

    fn correction(self, occasion: Occasion) -> Correction {
        let Self { offset, error } = self;
        match occasion {
            _ if offset.saturating_abs() <= error.max(EXACT / 2) => Correction::None,
            Occasion::Drift if offset.saturating_abs() <= MAX_GRADUAL => {
                Correction::Gradual(offset)
            }
            Occasion::Drift | Occasion::Jump => Correction::Step(offset),
        }
    }
}

/// Compares the host's clock with what a guest says. It is corrected to the host's, as far as an
/// offset has room.
#[cfg(any(test, feature = "fuzzing"))]
pub fn compare(guest: i64) {
    let host = now(ClockId::Realtime);
    for occasion in [Occasion::Jump, Occasion::Drift] {
        let (Correction::Gradual(offset) | Correction::Step(offset)) =
            Reading::new(guest, host, 0, EXACT).correction(occasion)
        else {
            continue;
        };
        let corrected = guest.saturating_add(offset);
        assert!(corrected.abs_diff(host) <= EXACT.unsigned_abs() || offset.abs() == i64::MAX);
    }
}

impl Sandbox {
    /// Sets the clock of a guest that has just booted, or has the time at which its template was
    /// made.
    pub(super) async fn set_clock(&self, timings: &mut Timings) -> Result<(), SandboxError> {
        let agent = self.guest().agent();
        let stage = "the set-up of its clock";
        match self
            .guest()
            .guarded(stage, timings, sync(agent, Occasion::Jump))
            .await
        {
            // A host whose own clock is before the guest's boot.
            Err(SandboxError::Agent(error @ AgentError::Refused(_))) => warn(&error),
            other => other?,
        }
        timings.lap("set the clock");
        Ok(())
    }

    /// Keeps the guest's clock right for as long as it is awaited, and notices by that when the
    /// guest does not answer.
    pub async fn keep_clock(&self) -> Infallible {
        let error = match Timer::new() {
            Ok(timer) => self.keep_clock_by(&timer).await,
            Err(error) => error,
        };
        tracing::warn!("the guest's clock is left to itself: cannot watch the host's: {error}");
        std::future::pending().await
    }

    async fn keep_clock_by(&self, timer: &Timer) -> io::Error {
        loop {
            let occasion = match timer.next().await {
                Ok(occasion) => occasion,
                Err(error) => return error,
            };
            let synced = sync(self.guest().agent(), occasion);
            match self.notice_silence(synced).await {
                Ok(()) => {}
                Err(error @ AgentError::Refused(_)) => warn(&error),
                // The machine has ended, or its agent has hung up: whoever waits for a container
                // learns that by itself.
                Err(AgentError::Lost { .. }) => return std::future::pending().await,
                Err(error) => tracing::debug!("the guest's clock: {}", chain(&error)),
            }
        }
    }
}

fn warn(error: &AgentError) {
    tracing::warn!("the guest's clock is wrong: {}", chain(error));
}

/// Compares the clocks, and corrects the guest's.
async fn sync(agent: &Agent, occasion: Occasion) -> Result<(), AgentError> {
    let mut best = read(agent).await?;
    for _ in 1..READINGS {
        if best.error <= EXACT {
            break;
        }
        let next = read(agent).await?;
        if next.error < best.error {
            best = next;
        }
    }
    let correction = best.correction(occasion);
    tracing::debug!("the guest's clock: {best:?}, {correction:?}");
    match correction {
        Correction::None => return Ok(()),
        Correction::Gradual(offset) => agent.adjust_clock(offset, true).await?,
        Correction::Step(offset) => agent.adjust_clock(offset, false).await?,
    };
    Ok(())
}

async fn read(agent: &Agent) -> Result<Reading, AgentError> {
    let sent = now(ClockId::Monotonic);
    let guest = agent.adjust_clock(0, false).await?;
    let received = now(ClockId::Monotonic);
    Ok(Reading::new(guest, now(ClockId::Realtime), sent, received))
}

/// A clock, in nanoseconds.
fn now(clock: ClockId) -> i64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    tv_sec.saturating_mul(1_000_000_000).saturating_add(tv_nsec)
}

/// Expires every [`PERIOD`], and when the host's clock jumps.
struct Timer {
    fd: OwnedFd,
    expired: Readable,
}

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let fd = timerfd_create(TimerfdClockId::Realtime, flags)?;
        let timer = Self {
            expired: Readable::new(fd.as_fd())?,
            fd,
        };
        timer.arm()?;
        Ok(timer)
    }

    /// Waits for the next occasion.
    async fn next(&self) -> io::Result<Occasion> {
        let occasion = self.expired.read(expiry).await?;
        // Before the clocks are compared, so that a jump after that is another occasion.
        self.arm()?;
        Ok(occasion)
    }

    fn arm(&self) -> io::Result<()> {
        let mut at = clock_gettime(ClockId::Realtime);
        at.tv_sec = at.tv_sec.saturating_add(PERIOD.as_secs() as i64);
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: at,
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(&self.fd, flags, &once) {
            // It is armed; the clock jumped since it was armed last.
            Err(Errno::CANCELED) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

/// Reads a timer that has expired.
fn expiry(timer: BorrowedFd<'_>) -> io::Result<Occasion> {
    match rustix::io::read(timer, &mut [0; 8]) {
        Ok(_) => Ok(Occasion::Drift),
        // Of a suspended host, too.
        Err(Errno::CANCELED) => Ok(Occasion::Jump),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    #[test]
    fn the_guest_read_its_clock_half_way_between_request_and_answer() {
        let reading = Reading::new(900 * MS, 1004 * MS, 50 * MS, 58 * MS);
        assert_eq!(
            reading,
            Reading {
                offset: 100 * MS,
                error: 4 * MS
            }
        );
    }

    #[test]
    fn a_lying_guest_overflows_nothing() {
        for guest in [i64::MIN, i64::MAX] {
            let reading = Reading::new(guest, MS, 0, i64::MAX);
            assert_eq!(
                reading.correction(Occasion::Drift),
                reading.correction(Occasion::Jump)
            );
        }
    }

    #[test]
    fn a_small_drift_is_made_up_for_gradually_and_a_jump_at_once() {
        let reading = |offset| Reading {
            offset,
            error: 2 * MS,
        };
        for offset in [-2 * MS, 0, 2 * MS] {
            assert_eq!(reading(offset).correction(Occasion::Jump), Correction::None);
            assert_eq!(
                reading(offset).correction(Occasion::Drift),
                Correction::None
            );
        }
        for offset in [-90 * MS, 3 * MS] {
            assert_eq!(
                reading(offset).correction(Occasion::Drift),
                Correction::Gradual(offset)
            );
            assert_eq!(
                reading(offset).correction(Occasion::Jump),
                Correction::Step(offset)
            );
        }
    }

    #[test]
    fn a_clock_that_is_hours_or_years_behind_is_right_at_once() {
        // A guest from a template has the time at which the template was made.
        let hour = 3600 * 1000 * MS;
        for offset in [hour, -hour, 24 * 365 * hour, -24 * 365 * hour] {
            let reading = Reading {
                offset,
                error: 2 * MS,
            };
            for occasion in [Occasion::Jump, Occasion::Drift] {
                assert_eq!(reading.correction(occasion), Correction::Step(offset));
            }
        }
    }
}
