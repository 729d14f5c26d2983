//! Rate limiters: token buckets for the bytes and the operations of a device.
//!
//! A request may begin while there are tokens, and takes those that it costs afterwards, if need be
//! as a debt. A bucket that owes tokens admits nothing until it has some again, so a request of any
//! size passes, and the rate holds over time. A timer among the device's host descriptors tells
//! when to go on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use rvm_protocol::vmm::{Rate, TokenBucket};

use super::device::{HostFds, Readiness};

/// The limiter of one direction of a device. Without limits it costs nothing.
#[derive(Debug, Default)]
pub struct Limiter(Option<Limits>);

#[derive(Debug)]
struct Limits {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    timer: OwnedFd,
}

impl Limiter {
    pub fn new(rate: &Rate) -> io::Result<Self> {
        if *rate == Rate::default() {
            return Ok(Self::default());
        }
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let now = Instant::now();
        let bucket = |bucket: TokenBucket| Bucket::new(&bucket, now);
        Ok(Self(Some(Limits {
            bytes: rate.bytes.map(bucket),
            operations: rate.operations.map(bucket),
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
        })))
    }

    /// Watches the timer, whose events have this token.
    pub fn watch(&self, host: &mut dyn HostFds, token: u32) -> io::Result<()> {
        match &self.0 {
            Some(limits) => host.watch(limits.timer.as_fd(), token, Readiness::READABLE),
            None => Ok(()),
        }
    }

    pub fn unwatch(&self, host: &mut dyn HostFds) {
        if let Some(limits) = &self.0 {
            host.unwatch(limits.timer.as_fd());
        }
    }

    /// Whether a request may begin now. If not, the timer tells when one may.
    pub fn admits(&mut self) -> io::Result<bool> {
        let Some(limits) = &mut self.0 else {
            return Ok(true);
        };
        let now = Instant::now();
        let buckets = [&mut limits.bytes, &mut limits.operations];
        let waits = buckets.into_iter().flatten().map(|bucket| bucket.wait(now));
        let wait = waits.max().unwrap_or_default();
        if wait.is_zero() {
            return Ok(true);
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(wait).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            }),
        };
        timerfd_settime(&limits.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(false)
    }

    /// Takes the tokens of one operation that has moved `bytes`.
    pub fn count(&mut self, bytes: usize) {
        if let Some(limits) = &mut self.0 {
            if let Some(bucket) = &mut limits.bytes {
                bucket.take(bytes as u64);
            }
            if let Some(bucket) = &mut limits.operations {
                bucket.take(1);
            }
        }
    }
}

/// A day. The host asks for less.
const MAX_REFILL_MS: u64 = 24 * 60 * 60 * 1000;

/// Tokens that are spent, and come back at an even rate until the bucket is full.
#[derive(Debug)]
struct Bucket {
    /// At least 1.
    size: u64,
    /// The time in which an empty bucket becomes full, at least a nanosecond.
    refill: Duration,
    /// Tokens beside the bucket, which are spent first and do not come back.
    burst: u64,
    /// Negative for a debt.
    tokens: i128,
    /// The time up to which tokens have come back.
    refilled: Instant,
}

impl Bucket {
    fn new(bucket: &TokenBucket, now: Instant) -> Self {
        let size = bucket.size.max(1);
        Self {
            size,
            refill: Duration::from_millis(bucket.refill_ms.clamp(1, MAX_REFILL_MS)),
            burst: bucket.burst,
            tokens: size.into(),
            refilled: now,
        }
    }

    fn take(&mut self, tokens: u64) {
        let of_burst = tokens.min(self.burst);
        self.burst -= of_burst;
        self.tokens -= i128::from(tokens - of_burst);
    }

    /// How long there is no token yet.
    fn wait(&mut self, now: Instant) -> Duration {
        self.refill(now);
        if self.burst > 0 || self.tokens > 0 {
            return Duration::ZERO;
        }
        let missing = self.tokens.unsigned_abs() + 1;
        let nanoseconds = (missing * self.refill.as_nanos()).div_ceil(self.size.into());
        let wait = u64::try_from(nanoseconds).map_or(Duration::MAX, Duration::from_nanos);
        wait.max(Duration::from_nanos(1))
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled).as_nanos();
        let period = self.refill.as_nanos();
        let back = elapsed.saturating_mul(self.size.into()) / period;
        let full = i128::from(self.size);
        let back = i128::try_from(back).unwrap_or(i128::MAX);
        if back >= full - self.tokens {
            self.tokens = full;
            self.refilled = now;
        } else if back > 0 {
            self.tokens += back;
            // The part of a token that is left over counts next time.
            let used = back.unsigned_abs() * period / u128::from(self.size);
            self.refilled += Duration::from_nanos(u64::try_from(used).unwrap_or(u64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn bucket(size: u64, refill_ms: u64, burst: u64) -> (Bucket, Instant) {
        let now = Instant::now();
        let bucket = TokenBucket {
            size,
            refill_ms,
            burst,
        };
        (Bucket::new(&bucket, now), now)
    }

    #[test]
    fn tokens_come_back_at_an_even_rate_until_the_bucket_is_full() {
        let (mut bucket, start) = bucket(1000, 100, 0);
        bucket.take(1000);
        assert!(!bucket.wait(start).is_zero());
        assert!(bucket.wait(start + MS).is_zero());
        assert_eq!(bucket.tokens, 10);
        bucket.wait(start + MS * 1000);
        assert_eq!(bucket.tokens, 1000);
    }

    #[test]
    fn a_debt_is_waited_for() {
        let (mut bucket, start) = bucket(1000, 100, 0);
        bucket.take(6000);
        let wait = bucket.wait(start);
        assert!(wait > MS * 500 && wait < MS * 501, "{wait:?}");
        assert!(!bucket.wait(start + MS * 500).is_zero());
        assert!(bucket.wait(start + wait).is_zero());
    }

    #[test]
    fn a_burst_is_spent_first_and_once() {
        let (mut bucket, start) = bucket(10, 1000, 100);
        bucket.take(105);
        assert_eq!((bucket.burst, bucket.tokens), (0, 5));
        bucket.wait(start + MS * 100_000);
        assert_eq!((bucket.burst, bucket.tokens), (0, 10));
    }

    #[test]
    fn a_limiter_without_limits_admits_all() {
        let mut limiter = Limiter::new(&Rate::default()).unwrap();
        limiter.count(usize::MAX);
        assert!(limiter.admits().unwrap());
    }

    proptest! {
        /// Whoever spends as soon as he may gets the rate, the bucket and the burst, and no more
        /// than one request beyond.
        #[test]
        fn the_rate_holds(
            size in 1..100_000_u64,
            refill_ms in 1..5000_u64,
            burst in 0..1000_u64,
            costs in proptest::collection::vec(1..10_000_u64, 1..50),
        ) {
            let (mut bucket, start) = bucket(size, refill_ms, burst);
            let mut now = start;
            let mut spent = 0_u128;
            for cost in costs {
                now += bucket.wait(now);
                prop_assert!(bucket.wait(now) <= Duration::from_nanos(1));
                let elapsed = (now - start).as_nanos();
                let came = elapsed * u128::from(size) / (u128::from(refill_ms) * 1_000_000);
                prop_assert!(spent <= came + u128::from(size + burst));
                bucket.take(cost);
                spent += u128::from(cost);
            }
        }

        #[test]
        fn no_numbers_overflow(size: u64, refill_ms: u64, burst: u64, cost: u64, later: u32) {
            let (mut bucket, start) = bucket(size, refill_ms, burst);
            for _ in 0..3 {
                bucket.take(cost);
                bucket.wait(start + Duration::from_secs(later.into()));
            }
        }
    }
}
