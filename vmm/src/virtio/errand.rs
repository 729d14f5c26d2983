//! Saving a device on the thread that it works on, for another thread that waits: what a device
//! does may take calls that the other thread's filter does not allow.

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
