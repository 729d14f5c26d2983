//! How much one call of a device may take of its queues.
//!
//! A guest can make requests available as fast as a device executes them. A device that went on
//! until a queue is empty would keep its thread for ever: the other devices of the thread would
//! wait, and on the main thread the host's control socket. So a call ends when its budget is spent,
//! and the transport calls the device again for what is left, after all other events.

use smallvec::SmallVec;

/// The most requests of one queue. No queue of our devices is larger, so all that a driver had made
/// available before the call is served by it, if it is not too long, and a network packet that
/// takes a whole queue of small buffers is delivered.
pub const MAX_REQUESTS: usize = 256;

/// The bytes of requests and of room for their answers after which no further request is taken. The
/// largest request of Linux' drivers is about as long.
pub const MAX_BYTES: usize = 1 << 20;

/// What is left to one call, for each of the queues.
#[derive(Debug, Default)]
pub struct Budget {
    queues: SmallVec<[Left; 4]>,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    requests: usize,
    bytes: usize,
    /// There are requests that must wait for the next call.
    is_postponed: bool,
}

impl Default for Left {
    fn default() -> Self {
        Self {
            requests: MAX_REQUESTS,
            bytes: MAX_BYTES,
            is_postponed: false,
        }
    }
}

impl Budget {
    /// Whether this call must not take another request of a queue.
    pub fn is_spent(&mut self, queue: usize) -> bool {
        let left = self.of(queue);
        left.requests == 0 || left.bytes == 0
    }

    /// Counts a request of a queue.
    pub fn count_request(&mut self, queue: usize, bytes: usize) {
        let left = self.of(queue);
        left.requests = left.requests.saturating_sub(1);
        left.bytes = left.bytes.saturating_sub(bytes);
    }

    /// Counts work that a request's length does not tell.
    pub fn count_bytes(&mut self, queue: usize, bytes: usize) {
        let left = self.of(queue);
        left.bytes = left.bytes.saturating_sub(bytes);
    }

    /// Leaves what a queue has to the next call.
    pub fn postpone(&mut self, queue: usize) {
        self.of(queue).is_postponed = true;
    }

    pub fn is_postponed(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(|left| left.is_postponed)
    }

    /// The queues of which the device must be notified again.
    pub fn postponed(&self) -> impl Iterator<Item = usize> {
        let queues = self.queues.iter().enumerate();
        queues.filter_map(|(queue, left)| left.is_postponed.then_some(queue))
    }

    fn of(&mut self, queue: usize) -> &mut Left {
        if self.queues.len() <= queue {
            self.queues.resize(queue + 1, Left::default());
        }
        &mut self.queues[queue]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_took_too_much_leaves_the_others_their_part() {
        let mut budget = Budget::default();
        for _ in 0..MAX_REQUESTS {
            assert!(!budget.is_spent(2));
            budget.count_request(2, 10);
        }
        assert!(budget.is_spent(2));
        budget.count_request(0, MAX_BYTES - 1);
        assert!(!budget.is_spent(0));
        budget.count_bytes(0, usize::MAX);
        assert!(budget.is_spent(0));
        assert!(!budget.is_spent(1));
        budget.postpone(2);
        assert!(budget.is_postponed(2) && !budget.is_postponed(7));
        assert_eq!(budget.postponed().collect::<Vec<_>>(), [2]);
    }
}
