//! Events of containers, pushed to every subscriber in order.

use std::sync::{Arc, Mutex, PoisonError};

use rvm_protocol::{ContainerId, ProcessId};
use tokio::sync::mpsc;

use crate::process::Exit;

/// See the protocol's `Event`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Exit {
        id: ProcessId,
        /// In the guest's root pid namespace.
        pid: u32,
        exit: Exit,
    },
    /// The kernel killed a process of the container for memory.
    Oom(ContainerId),
}

/// The subscribers. A copy is another handle.
#[derive(Clone, Default)]
pub struct Events {
    subscribers: Arc<Mutex<Vec<mpsc::UnboundedSender<Event>>>>,
}

impl Events {
    /// Returns every event from now on. The queue has no bound, but its contents do: one exit for
    /// each process that the host made, and one OOM kill for each time a container's counter was
    /// read.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Event> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(sender);
        receiver
    }

    /// Sends an event to every subscriber that still receives.
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
        let event = |id: &str| Event::Oom(ContainerId::new(id).unwrap());
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
