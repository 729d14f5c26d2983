//! Publishes events to containerd in order, and each again until containerd has accepted it. While
//! containerd restarts, events wait in the queue.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task as tasks;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::MessageFull;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use ttrpc::context;

/// The environment variable that holds the address of containerd's ttrpc socket.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// How long containerd may take to accept one event.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// The delay before an event is sent again: at first, and after doubling at most.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const MAX_DELAY: Duration = Duration::from_secs(2);

/// How often an event is sent that containerd answers with an error: unlike a lost connection, an
/// error may never go away.
const MAX_REFUSALS: u32 = 5;

/// An event with the topic under which it is published.
pub trait Event: MessageFull {
    const TOPIC: &'static str;
}

macro_rules! topics {
    ($($event:ident: $topic:ident,)*) => {
        $(impl Event for tasks::$event {
            const TOPIC: &'static str = topics::$topic;
        })*
    };
}

topics! {
    TaskCreate: TASK_CREATE_EVENT_TOPIC,
    TaskStart: TASK_START_EVENT_TOPIC,
    TaskDelete: TASK_DELETE_EVENT_TOPIC,
    TaskExit: TASK_EXIT_EVENT_TOPIC,
    TaskOOM: TASK_OOM_EVENT_TOPIC,
    TaskExecAdded: TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted: TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused: TASK_PAUSED_EVENT_TOPIC,
    TaskResumed: TASK_RESUMED_EVENT_TOPIC,
    TaskCheckpointed: TASK_CHECKPOINTED_EVENT_TOPIC,
}

/// A queue of events and the task that sends them.
pub struct Publisher {
    namespace: String,
    queue: mpsc::UnboundedSender<Envelope>,
    /// The number of events that containerd has not accepted yet.
    pending: watch::Sender<usize>,
}

impl Publisher {
    /// Starts the task, which sends to the ttrpc socket at `address`.
    pub fn new(namespace: String, address: String) -> Self {
        let (queue, events) = mpsc::unbounded_channel();
        let (pending, _) = watch::channel(0);
        tokio::spawn(forward_all(address, events, pending.clone()));
        Self {
            namespace,
            queue,
            pending,
        }
    }

    /// Puts an event into the queue.
    pub fn publish<E: Event>(&self, event: &E) {
        // Encoding fails only if a required field is missing, and events have none.
        let value = event.write_to_bytes().unwrap_or_default();
        let envelope = Envelope {
            timestamp: Some(Timestamp::from(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(Any {
                type_url: E::descriptor().full_name().to_owned(),
                value,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        tracing::debug!("event {}", E::TOPIC);
        self.pending.send_modify(|count| *count += 1);
        // The task receives until this publisher is dropped.
        let _ = self.queue.send(envelope);
    }

    /// Returns when containerd has accepted every event, or after `timeout`.
    pub async fn drain(&self, timeout: Duration) {
        let mut pending = self.pending.subscribe();
        let drained = pending.wait_for(|count| *count == 0);
        if tokio::time::timeout(timeout, drained).await.is_err() {
            tracing::warn!("{} events are lost", *self.pending.borrow());
        }
    }
}

async fn forward_all(
    address: String,
    mut events: mpsc::UnboundedReceiver<Envelope>,
    pending: watch::Sender<usize>,
) {
    let mut connection = None;
    while let Some(envelope) = events.recv().await {
        let request = ForwardRequest {
            envelope: Some(envelope).into(),
            ..Default::default()
        };
        forward_until_accepted(&address, &mut connection, &request).await;
        pending.send_modify(|count| *count -= 1);
    }
}

async fn forward_until_accepted(
    address: &str,
    connection: &mut Option<EventsClient>,
    request: &ForwardRequest,
) {
    let (mut delay, mut refusals) = (FIRST_DELAY, 0);
    loop {
        let error = match forward_once(address, connection, request).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if let ttrpc::Error::RpcStatus(_) = &error {
            refusals += 1;
        }
        let topic = &request.envelope.topic;
        if refusals == MAX_REFUSALS {
            tracing::warn!("event {topic} is dropped: containerd refuses it: {error}");
            return;
        }
        tracing::debug!("event {topic} waits: {error}");
        *connection = None;
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(MAX_DELAY);
    }
}

async fn forward_once(
    address: &str,
    connection: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let client = match connection {
        Some(client) => client,
        None => connection.insert(connect(address).await?),
    };
    let timeout = context::with_duration(FORWARD_TIMEOUT);
    client.forward(timeout, request).await.map(|_| ())
}

async fn connect(address: &str) -> ttrpc::Result<EventsClient> {
    let path = address.trim_start_matches("unix://");
    let stream = UnixStream::connect(path).await;
    let stream = stream.map_err(|error| ttrpc::Error::Socket(error.to_string()))?;
    let socket = ttrpc::r#async::transport::Socket::new(stream);
    Ok(EventsClient::new(Client::new(socket)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use protobuf::Message as _;
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use ttrpc::r#async::{Server, TtrpcContext};

    /// Accepts events after having refused some.
    #[derive(Default)]
    struct Containerd {
        refusals: Mutex<u32>,
        accepted: Mutex<Vec<Envelope>>,
    }

    #[async_trait::async_trait]
    impl Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let mut refusals = self.refusals.lock().unwrap();
            if *refusals > 0 {
                *refusals -= 1;
                let status = ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "busy");
                return Err(ttrpc::Error::RpcStatus(status));
            }
            self.accepted
                .lock()
                .unwrap()
                .push(request.envelope.unwrap());
            Ok(Empty::default())
        }
    }

    async fn serve(path: &Path, containerd: Arc<Containerd>) -> Server {
        let _ = std::fs::remove_file(path);
        let mut server = Server::new()
            .bind(&format!("unix://{}", path.display()))
            .unwrap()
            .register_service(create_events(containerd));
        server.start().await.unwrap();
        server
    }

    fn exit(status: u32) -> tasks::TaskExit {
        tasks::TaskExit {
            exit_status: status,
            ..Default::default()
        }
    }

    fn statuses(containerd: &Containerd) -> Vec<u32> {
        let accepted = containerd.accepted.lock().unwrap();
        let parse = |envelope: &Envelope| {
            tasks::TaskExit::parse_from_bytes(&envelope.event.value)
                .unwrap()
                .exit_status
        };
        accepted.iter().map(parse).collect()
    }

    #[tokio::test]
    async fn events_arrive_in_order_with_their_types_and_topics() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ttrpc");
        let containerd = Arc::new(Containerd::default());
        let _server = serve(&path, containerd.clone()).await;
        let publisher = Publisher::new("space".to_owned(), path.display().to_string());
        (0..10).for_each(|status| publisher.publish(&exit(status)));
        publisher.drain(Duration::from_secs(10)).await;
        assert_eq!(statuses(&containerd), (0..10).collect::<Vec<_>>());
        let first = containerd.accepted.lock().unwrap()[0].clone();
        assert_eq!(first.event.type_url, "containerd.events.TaskExit");
        assert_eq!((&*first.topic, &*first.namespace), ("/tasks/exit", "space"));
    }

    #[tokio::test]
    async fn events_wait_for_containerd_to_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ttrpc");
        let containerd = Arc::new(Containerd::default());
        let publisher = Publisher::new("space".to_owned(), path.display().to_string());
        publisher.publish(&exit(1));
        publisher.drain(Duration::from_millis(100)).await;
        assert!(statuses(&containerd).is_empty());
        let mut server = serve(&path, containerd.clone()).await;
        publisher.publish(&exit(2));
        publisher.drain(Duration::from_secs(10)).await;
        server.shutdown().await.unwrap();
        drop(server);
        publisher.publish(&exit(3));
        publisher.drain(Duration::from_millis(100)).await;
        let _server = serve(&path, containerd.clone()).await;
        publisher.drain(Duration::from_secs(10)).await;
        assert_eq!(statuses(&containerd), [1, 2, 3]);
    }

    #[tokio::test]
    async fn an_event_that_is_refused_is_offered_again_but_not_forever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ttrpc");
        let containerd = Arc::new(Containerd {
            refusals: Mutex::new(MAX_REFUSALS + 1),
            ..Default::default()
        });
        let _server = serve(&path, containerd.clone()).await;
        let publisher = Publisher::new("space".to_owned(), path.display().to_string());
        publisher.publish(&exit(1));
        publisher.publish(&exit(2));
        publisher.drain(Duration::from_secs(30)).await;
        assert_eq!(statuses(&containerd), [2], "the second was refused once");
    }
}
