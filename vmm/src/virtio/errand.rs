//! Saving or restoring a device on the thread that it works on, for another thread that waits: what
//! a device does may take calls that the other thread's filter does not allow. Until the guest's
//! memory is saved, too, or a picture of it is taken, the thread does nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A result that one thread wants and another one makes.
#[derive(Debug)]
pub(super) struct Errand<T> {
    is_wanted: AtomicBool,
    result: Mutex<Option<T>>,
    done: Condvar,
}

impl<T> Default for Errand<T> {
    fn default() -> Self {
        Self {
            is_wanted: AtomicBool::new(false),
            result: Mutex::new(None),
            done: Condvar::new(),
        }
    }
}

impl<T> Errand<T> {
    /// Asks for the result by `ring` and waits for it; `None` if it does not come in time.
    pub(super) fn ask(&self, ring: impl FnOnce(), patience: Duration) -> Option<T> {
        let mut result = self.lock();
        // What comes too late for one who asked before is not for this one.
        *result = None;
        self.is_wanted.store(true, Ordering::Release);
        ring();
        let is_missing = |result: &mut Option<T>| result.is_none();
        let waited = (self.done).wait_timeout_while(result, patience, is_missing);
        let (mut result, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.is_wanted.store(false, Ordering::Release);
        result.take()
    }

    /// Makes the result if one is wanted.
    pub(super) fn run(&self, make: impl FnOnce() -> T) {
        if self.is_wanted.swap(false, Ordering::AcqRel) {
            let made = make();
            *self.lock() = Some(made);
            self.done.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often a thread that is held looks for errands.
const LOOK: Duration = Duration::from_millis(1);

/// Keeps a thread from its work, errands excepted.
#[derive(Debug, Default)]
pub struct Hold {
    /// By how many it is held.
    holders: Mutex<usize>,
    changed: Condvar,
}

/// A thread that is held, until this is dropped.
pub struct Held<'a>(&'a Hold);

impl Hold {
    pub(super) fn hold(&self) -> Held<'_> {
        *self.lock() += 1;
        Held(self)
    }

    /// Returns when nobody holds the calling thread, which meanwhile runs errands.
    pub(super) fn wait(&self, run_errands: impl Fn()) {
        let mut holders = self.lock();
        while *holders > 0 {
            drop(holders);
            run_errands();
            let waited = self.changed.wait_timeout(self.lock(), LOOK);
            (holders, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_makes_is_not_waited_for_for_ever() {
        let errand = Errand::<u32>::default();
        assert_eq!(errand.ask(|| {}, Duration::from_millis(10)), None);
        errand.run(|| panic!("nobody wants it any more"));
    }

    #[test]
    fn a_thread_that_is_held_runs_errands_and_nothing_else() {
        let (hold, errand) = (Hold::default(), Errand::default());
        let has_worked = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (first, second) = (hold.hold(), hold.hold());
            scope.spawn(|| {
                hold.wait(|| errand.run(|| 7));
                has_worked.store(true, Ordering::Release);
            });
            assert_eq!(errand.ask(|| {}, Duration::from_secs(20)), Some(7));
            drop(first);
            assert_eq!(errand.ask(|| {}, Duration::from_secs(20)), Some(7));
            assert!(!has_worked.load(Ordering::Acquire));
            drop(second);
        });
        assert!(has_worked.into_inner());
    }

    #[test]
    fn what_another_thread_makes_is_handed_over() {
        let errand = Errand::default();
        let asked = std::thread::scope(|scope| {
            let make = || {
                scope.spawn(|| errand.run(|| 7));
            };
            errand.ask(make, Duration::from_secs(20))
        });
        assert_eq!(asked, Some(7));
    }
}
