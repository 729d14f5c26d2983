//! Events, pushed to every subscriber in order.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::reaper::Exit;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process ended.
    Exit {
        /// Whose.
        container_id: String,
        /// Empty for the first process.
        exec_id: String,
        /// As the guest numbers it.
        pid: u32,
        /// How.
        exit: Exit,
    },
    /// The kernel killed a process for memory.
    Oom {
        /// Whose.
        container_id: String,
    },
}

/// Passes events on.
#[derive(Clone, Default)]
pub struct Events {
    subscribers: Arc<Mutex<Vec<mpsc::UnboundedSender<Event>>>>,
}

impl Events {
    /// Everything from now on. The queue has no bound, but what fills it is bounded: processes
    /// that the host made, and OOM kills, of which a container has one in the queue for each time
    /// its counter was looked at.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Event> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(sender);
        receiver
    }

    /// Tells every subscriber that still listens.
    pub fn publish(&self, event: &Event) {
        let mut subscribers = self
            .subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn subscribers_hear_everything_from_then_on_and_can_leave() {
        let events = Events::default();
        let event = |id: &str| Event::Oom {
            container_id: id.to_owned(),
        };
        events.publish(&event("early"));
        let mut first = events.subscribe();
        drop(events.subscribe());
        events.publish(&event("a"));
        events.publish(&event("b"));
        assert_eq!(first.recv().await, Some(event("a")));
        assert_eq!(first.recv().await, Some(event("b")));
        assert_eq!(events.subscribers.lock().unwrap().len(), 1);
    }
}
