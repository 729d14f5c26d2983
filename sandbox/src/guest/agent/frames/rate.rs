//! How many events a second are taken from an agent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The most events in [`PERIOD`]. ttrpc queues events without a bound, faster than they are
/// published: a flood of OOM reports grew root's process by 70 MiB a second. A guest that sends
/// more waits, and its answers with it.
const MAX_EVENTS: u32 = 256;

/// The period of [`MAX_EVENTS`].
const PERIOD: Duration = Duration::from_secs(1);

/// Counts events.
#[derive(Default)]
pub(super) struct EventRate {
    since: Option<Instant>,
    count: u32,
    pause: Option<Pin<Box<Sleep>>>,
}

impl EventRate {
    /// Ready once, when the next event may be taken.
    pub(super) fn poll_admit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let now = Instant::now();
            let since = *self.since.get_or_insert(now);
            if now.duration_since(since) >= PERIOD {
                self.since = Some(now);
                self.count = 0;
            } else if self.count == MAX_EVENTS {
                self.pause = Some(Box::pin(sleep_until(since + PERIOD)));
                continue;
            }
            self.count += 1;
            return Poll::Ready(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn a_flood_of_events_waits_for_the_next_period() {
        let mut rate = EventRate::default();
        let start = Instant::now();
        for _ in 0..MAX_EVENTS {
            poll_fn(|cx| rate.poll_admit(cx)).await;
        }
        assert!(start.elapsed() < PERIOD);
        poll_fn(|cx| rate.poll_admit(cx)).await;
        assert!(start.elapsed() >= PERIOD);
        assert_eq!(rate.count, 1);
    }
}
