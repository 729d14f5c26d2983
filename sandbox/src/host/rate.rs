//! How many messages a second are taken from a guest, or from a process that a guest may have taken
//! over.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The period of a [`Rate`]'s limit.
const PERIOD: Duration = Duration::from_secs(1);

/// Admits so many messages in each [`PERIOD`]. The sender of more waits.
pub(crate) struct Rate {
    limit: u32,
    since: Option<Instant>,
    count: u32,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Rate {
    /// Admits `limit` messages a second.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            since: None,
            count: 0,
            pause: None,
        }
    }

    /// Returns when the next message may be taken.
    pub(crate) async fn admit(&mut self) {
        poll_fn(|cx| self.poll_admit(cx)).await;
    }

    /// Ready once, when the next message may be taken.
    pub(crate) fn poll_admit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
            } else if self.count == self.limit {
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

    #[tokio::test]
    async fn a_flood_waits_for_the_next_period() {
        let mut rate = Rate::new(100);
        let start = Instant::now();
        for _ in 0..100 {
            rate.admit().await;
        }
        assert!(start.elapsed() < PERIOD);
        rate.admit().await;
        assert!(start.elapsed() >= PERIOD);
        assert_eq!(rate.count, 1);
    }
}
