//! Events for containerd: told in order, one after the other, each until containerd has taken it. It
//! may be restarted in between; what happens meanwhile waits.

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

/// The environment's name for containerd's ttrpc socket.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// How long containerd may take for one event.
const LIMIT: Duration = Duration::from_secs(5);

/// How long to wait before trying again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// How often an event is offered that containerd refuses, which no restart of it mends.
const REFUSALS: u32 = 5;

/// An event with the topic that it is told under.
pub trait Event: MessageFull {
    /// The topic.
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

/// Takes events and passes them on.
pub struct Publisher {
    namespace: String,
    queue: mpsc::UnboundedSender<Envelope>,
    /// How many containerd has not taken yet.
    waiting: watch::Sender<usize>,
}

impl Publisher {
    /// Starts to pass events on to the socket at `address`.
    pub fn new(namespace: String, address: String) -> Self {
        let (queue, events) = mpsc::unbounded_channel();
        let (waiting, _) = watch::channel(0);
        tokio::spawn(pass_on(address, events, waiting.clone()));
        Self {
            namespace,
            queue,
            waiting,
        }
    }

    /// Tells containerd of an event, after those before it.
    pub fn publish<E: Event>(&self, event: &E) {
        // An event is small and complete; encoding it cannot fail.
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
        self.waiting.send_modify(|count| *count += 1);
        // The task ends with this.
        let _ = self.queue.send(envelope);
    }

    /// Returns when containerd has taken every event, or after `limit`.
    pub async fn drained(&self, limit: Duration) {
        let mut waiting = self.waiting.subscribe();
        let drained = waiting.wait_for(|count| *count == 0);
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!("{} events are lost", *self.waiting.borrow());
        }
    }
}

async fn pass_on(
    address: String,
    mut events: mpsc::UnboundedReceiver<Envelope>,
    waiting: watch::Sender<usize>,
) {
    let mut connection = None;
    while let Some(envelope) = events.recv().await {
        let request = ForwardRequest {
            envelope: Some(envelope).into(),
            ..Default::default()
        };
        until_taken(&address, &mut connection, &request).await;
        waiting.send_modify(|count| *count -= 1);
    }
}

async fn until_taken(
    address: &str,
    connection: &mut Option<EventsClient>,
    request: &ForwardRequest,
) {
    let (mut pause, mut refusals) = (FIRST_PAUSE, 0);
    loop {
        let error = match forward(address, connection, request).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if let ttrpc::Error::RpcStatus(_) = &error {
            refusals += 1;
        }
        let topic = &request.envelope.topic;
        if refusals == REFUSALS {
            tracing::warn!("event {topic} is dropped, containerd refuses it: {error}");
            return;
        }
        tracing::debug!("event {topic} waits: {error}");
        *connection = None;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn forward(
    address: &str,
    connection: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let client = match connection {
        Some(client) => client,
        None => connection.insert(connect(address).await?),
    };
    let limit = context::with_duration(LIMIT);
    client.forward(limit, request).await.map(|_| ())
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

    /// Takes events, after having refused some.
    #[derive(Default)]
    struct Containerd {
        refusals: Mutex<u32>,
        taken: Mutex<Vec<Envelope>>,
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
            self.taken.lock().unwrap().push(request.envelope.unwrap());
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
        let taken = containerd.taken.lock().unwrap();
        let parse = |envelope: &Envelope| {
            tasks::TaskExit::parse_from_bytes(&envelope.event.value)
                .unwrap()
                .exit_status
        };
        taken.iter().map(parse).collect()
    }

    #[tokio::test]
    async fn events_arrive_in_order_with_their_types_and_topics() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ttrpc");
        let containerd = Arc::new(Containerd::default());
        let _server = serve(&path, containerd.clone()).await;
        let publisher = Publisher::new("space".to_owned(), path.display().to_string());
        (0..10).for_each(|status| publisher.publish(&exit(status)));
        publisher.drained(Duration::from_secs(10)).await;
        assert_eq!(statuses(&containerd), (0..10).collect::<Vec<_>>());
        let first = containerd.taken.lock().unwrap()[0].clone();
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
        publisher.drained(Duration::from_millis(100)).await;
        assert!(statuses(&containerd).is_empty());
        let mut server = serve(&path, containerd.clone()).await;
        publisher.publish(&exit(2));
        publisher.drained(Duration::from_secs(10)).await;
        server.shutdown().await.unwrap();
        drop(server);
        publisher.publish(&exit(3));
        publisher.drained(Duration::from_millis(100)).await;
        let _server = serve(&path, containerd.clone()).await;
        publisher.drained(Duration::from_secs(10)).await;
        assert_eq!(statuses(&containerd), [1, 2, 3]);
    }

    #[tokio::test]
    async fn an_event_that_is_refused_is_offered_again_but_not_forever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ttrpc");
        let containerd = Arc::new(Containerd {
            refusals: Mutex::new(REFUSALS + 1),
            ..Default::default()
        });
        let _server = serve(&path, containerd.clone()).await;
        let publisher = Publisher::new("space".to_owned(), path.display().to_string());
        publisher.publish(&exit(1));
        publisher.publish(&exit(2));
        publisher.drained(Duration::from_secs(30)).await;
        assert_eq!(statuses(&containerd), [2], "the second was refused once");
    }
}
