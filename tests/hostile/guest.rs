//! The containers of the guest that this program plays: a table of processes which run no code, but
//! end when they are signalled, and write a line.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};

use rvm_protocol::agent::{Event, Exit, Stdio};

use crate::frames::{self, Connection};

/// What a process without a signal writes before it ends.
const OUTPUT: &[u8] = b"hello\n";

/// The name of a process: those of its container and its exec; the init process has no other.
pub type Name = (String, String);

/// A process of a container.
#[derive(Clone, Default)]
pub struct Process {
    pub pid: u32,
    pub stdio: Stdio,
    /// Whether it waits for a signal, or ends as soon as it runs.
    pub waits: bool,
    pub exit: Option<u32>,
}

/// The guest.
#[derive(Default)]
pub struct Guest {
    /// Whether the streams of a process that has ended stay open.
    keeps_streams: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    processes: BTreeMap<Name, Process>,
    /// Connections by the id that the host has sent over them.
    streams: BTreeMap<u64, Arc<UnixStream>>,
    /// Where events go: a connection, and the call that asked for them.
    subscribers: Vec<(Arc<Connection>, u32)>,
}

impl Guest {
    /// Without containers.
    pub fn new(keeps_streams: bool) -> Self {
        Self {
            keeps_streams,
            ..Self::default()
        }
    }

    /// Keeps a stream, whose id comes first.
    pub fn connect(&self, mut stream: UnixStream, is_closed: bool) {
        let mut id = [0; 8];
        if stream.read_exact(&mut id).is_err() {
            return;
        }
        if is_closed {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let (id, stream) = (u64::from_be_bytes(id), Arc::new(stream));
        self.state.lock().unwrap().streams.insert(id, stream);
        self.changed.notify_all();
    }

    /// Adds a process that runs `arguments`; returns its pid.
    pub fn add(&self, name: Name, stdio: Stdio, arguments: &[String]) -> u32 {
        let mut state = self.state.lock().unwrap();
        let pid = 100 + u32::try_from(state.processes.len()).unwrap();
        let waits = arguments
            .first()
            .is_none_or(|program| !program.ends_with("echo"));
        let process = Process {
            pid,
            stdio,
            waits,
            exit: None,
        };
        state.processes.insert(name, process);
        pid
    }

    /// Runs a process, which is there.
    pub fn run(&self, name: &Name) {
        let process = self.find(name).unwrap();
        let stdio = process.stdio;
        let streams = [stdio.stdin, stdio.stdout, stdio.stderr].map(|id| self.stream(id));
        if !process.waits {
            if let [_, Some(stdout), _] = streams {
                // The host may have gone.
                let _ = (&*stdout).write_all(OUTPUT);
            }
            self.end(name, 0);
        }
    }

    /// Ends a process, which closes its streams and is told to those who wait.
    pub fn end(&self, name: &Name, status: u32) {
        let mut state = self.state.lock().unwrap();
        let Some(process) = state.processes.get_mut(name) else {
            return;
        };
        process.exit.get_or_insert(status);
        let (pid, stdio) = (process.pid, process.stdio.clone());
        let streams = [stdio.stdin, stdio.stdout, stdio.stderr];
        for id in streams.into_iter().filter(|_| !self.keeps_streams) {
            if let Some(stream) = state.streams.remove(&id) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        drop(state);
        self.tell(name, pid, status);
        self.changed.notify_all();
    }

    /// Tells subscribers of an end, true or not.
    pub fn tell(&self, name: &Name, pid: u32, status: u32) {
        let exit = Exit {
            container_id: name.0.clone(),
            exec_id: name.1.clone(),
            pid,
            exit_status: status,
            ..Default::default()
        };
        let mut event = Event::new();
        event.set_exit(exit);
        for (connection, call) in &self.state.lock().unwrap().subscribers {
            connection.write(&frames::event(*call, &event));
        }
    }

    /// Waits until a process has ended; None if there is no such process.
    pub fn wait(&self, name: &Name) -> Option<u32> {
        let state = self.state.lock().unwrap();
        let running = |state: &mut State| {
            let process = state.processes.get(name);
            process.is_some_and(|process| process.exit.is_none())
        };
        let state = self.changed.wait_while(state, running).unwrap();
        state.processes.get(name)?.exit
    }

    pub fn find(&self, name: &Name) -> Option<Process> {
        self.state.lock().unwrap().processes.get(name).cloned()
    }

    /// The processes of a container that run.
    pub fn running(&self, container: &str) -> Vec<(Name, Process)> {
        let state = self.state.lock().unwrap();
        let of = state
            .processes
            .iter()
            .filter(|((id, _), process)| id == container && process.exit.is_none());
        of.map(|(name, process)| (name.clone(), process.clone()))
            .collect()
    }

    pub fn remove(&self, name: &Name) {
        self.state.lock().unwrap().processes.remove(name);
    }

    /// Sends events over this connection from now on.
    pub fn subscribe(&self, connection: &Arc<Connection>, call: u32) {
        let subscriber = (Arc::clone(connection), call);
        self.state.lock().unwrap().subscribers.push(subscriber);
    }

    /// Waits for the stream of this id; None for the stream that is /dev/null.
    pub fn stream(&self, id: u64) -> Option<Arc<UnixStream>> {
        if id == 0 {
            return None;
        }
        let state = self.state.lock().unwrap();
        let missing = |state: &mut State| !state.streams.contains_key(&id);
        let state = self.changed.wait_while(state, missing).unwrap();
        state.streams.get(&id).cloned()
    }
}
