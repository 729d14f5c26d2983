//! The agent: answers the calls of the host, unless its mode does something else.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use protobuf::Message;
use rvm_protocol::AGENT_PROTOCOL_VERSION;
use rvm_protocol::agent::{
    AdoptContainerRequest, CheckResponse, CpuStats, CreateContainerRequest,
    CreateContainerResponse, Empty, ExecProcessRequest, ExecProcessResponse, ListProcessesRequest,
    ListProcessesResponse, MemoryStats, PidsStats, ProcessInfo, RemoveContainerRequest,
    RemoveProcessRequest, SignalProcessRequest, StartContainerRequest, StatsResponse, Stdio,
    WaitProcessRequest, WaitProcessResponse,
};
use serde_json::Value;
use ttrpc::Code;

use crate::frames::{self, Call, Connection};
use crate::guest::{Guest, Name};
use crate::lies;
use crate::mode::Mode;
use crate::vmm::Vmm;

/// The agent of the guest.
pub struct Agent {
    pub mode: Mode,
    pub guest: Guest,
    pub vmm: Vmm,
    /// Whether a container has been started.
    pub is_started: AtomicBool,
}

impl Agent {
    /// Serves each connection in a thread of its own.
    pub fn serve(self: &Arc<Self>, listener: UnixListener) {
        let agent = Arc::clone(self);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let connection = Arc::new(Connection::new(connection.unwrap()));
                let agent = Arc::clone(&agent);
                thread::spawn(move || agent.serve_connection(&connection));
            }
        });
    }

    /// Takes the streams of processes.
    pub fn serve_streams(self: &Arc<Self>, listener: UnixListener) {
        let agent = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let is_closed = agent.mode == Mode::ClosedStreams;
                agent.guest.connect(stream.unwrap(), is_closed);
            }
        });
    }

    fn serve_connection(self: &Arc<Self>, connection: &Arc<Connection>) {
        while let Some(call) = connection.read() {
            if lies::is_never_answered(self, &call) {
                continue;
            }
            match lies::instead(self, connection, &call) {
                lies::Instead::Truth => self.carry_out(connection, call),
                lies::Instead::Frames(bytes) => _ = connection.write(&bytes),
                lies::Instead::HangUp => return connection.close(),
            }
        }
    }

    fn carry_out(self: &Arc<Self>, connection: &Arc<Connection>, call: Call) {
        let (agent, connection) = (Arc::clone(self), Arc::clone(connection));
        match call.method.as_str() {
            "Events" => agent.guest.subscribe(&connection, call.stream),
            // Takes as long as the process.
            "WaitProcess" => {
                thread::spawn(move || agent.answer(&connection, &call));
            }
            _ => agent.answer(&connection, &call),
        }
    }

    fn answer(self: &Arc<Self>, connection: &Connection, call: &Call) {
        let answer = match self.result(call) {
            Some(payload) => frames::answer(call.stream, payload),
            None => frames::refusal(call.stream, Code::NOT_FOUND, "there is no such process"),
        };
        connection.write(&answer);
        self.follow(call);
    }

    /// The answer; None if what the call names is not there.
    fn result(&self, call: &Call) -> Option<Vec<u8>> {
        let payload = match call.method.as_str() {
            "Check" => self.check().write_to_bytes(),
            "CreateContainer" => self.create(&call.decode()).write_to_bytes(),
            "AdoptContainer" => {
                let request: AdoptContainerRequest = call.decode();
                let name = (request.container_id, String::new());
                self.guest
                    .add(name, Stdio::default(), &["sleep".to_owned()]);
                Empty::new().write_to_bytes()
            }
            "ExecProcess" => self.exec(&call.decode()).write_to_bytes(),
            "SignalProcess" => {
                self.signalled(&call.decode())?;
                Empty::new().write_to_bytes()
            }
            "WaitProcess" => self.wait(&call.decode())?.write_to_bytes(),
            "ListProcesses" => self.list(&call.decode()).write_to_bytes(),
            "Stats" => stats().write_to_bytes(),
            "RemoveProcess" => {
                let request: RemoveProcessRequest = call.decode();
                self.guest.remove(&(request.container_id, request.exec_id));
                Empty::new().write_to_bytes()
            }
            "RemoveContainer" => {
                let request: RemoveContainerRequest = call.decode();
                for (name, _) in self.guest.running(&request.container_id) {
                    self.guest.end(&name, 137);
                }
                Empty::new().write_to_bytes()
            }
            _ => Empty::new().write_to_bytes(),
        };
        Some(payload.unwrap())
    }

    /// What happens in the guest after the answer.
    fn follow(self: &Arc<Self>, call: &Call) {
        match call.method.as_str() {
            "StartContainer" => {
                let request: StartContainerRequest = call.decode();
                self.run(&(request.container_id, String::new()));
            }
            "ExecProcess" => {
                let request: ExecProcessRequest = call.decode();
                self.run(&(request.container_id, request.exec_id));
            }
            "SignalProcess" => {
                let request: SignalProcessRequest = call.decode();
                let signalled = self.signalled(&request).unwrap_or_default();
                for name in signalled.iter().filter(|_| request.signal > 0) {
                    self.guest.end(name, 128 + request.signal);
                }
            }
            "Shutdown" => self.vmm.power_off(),
            _ => {}
        }
    }

    fn run(self: &Arc<Self>, name: &Name) {
        let (agent, name) = (Arc::clone(self), name.clone());
        self.is_started.store(true, Ordering::Relaxed);
        // It may wait for its streams.
        thread::spawn(move || {
            lies::on_run(&agent, &name);
            agent.guest.run(&name);
        });
    }

    fn check(&self) -> CheckResponse {
        CheckResponse {
            agent_version: "0.1.0".to_owned(),
            kernel_release: "6.12.0".to_owned(),
            protocol_version: match self.mode {
                Mode::OtherAgent => AGENT_PROTOCOL_VERSION + 1,
                _ => AGENT_PROTOCOL_VERSION,
            },
            ..Default::default()
        }
    }

    fn create(&self, request: &CreateContainerRequest) -> CreateContainerResponse {
        let spec: Value = serde_json::from_slice(&request.spec).unwrap();
        let name = (request.container_id.clone(), String::new());
        let stdio = request.stdio.clone().unwrap_or_default();
        let pid = self.guest.add(name, stdio, &arguments(&spec["process"]));
        CreateContainerResponse {
            pid,
            ..Default::default()
        }
    }

    fn exec(&self, request: &ExecProcessRequest) -> ExecProcessResponse {
        let process: Value = serde_json::from_slice(&request.process).unwrap();
        let name = (request.container_id.clone(), request.exec_id.clone());
        let stdio = request.stdio.clone().unwrap_or_default();
        let pid = self.guest.add(name, stdio, &arguments(&process));
        ExecProcessResponse {
            pid,
            ..Default::default()
        }
    }

    /// The processes that a signal is for; None if there is none.
    fn signalled(&self, request: &SignalProcessRequest) -> Option<Vec<Name>> {
        let container = &request.container_id;
        if request.all {
            let running = self.guest.running(container).into_iter();
            return Some(running.map(|(name, _)| name).collect());
        }
        let name = (container.clone(), request.exec_id.clone());
        let process = self.guest.find(&name)?;
        process.exit.is_none().then(|| vec![name])
    }

    fn wait(&self, request: &WaitProcessRequest) -> Option<WaitProcessResponse> {
        let name = (request.container_id.clone(), request.exec_id.clone());
        Some(WaitProcessResponse {
            exit_status: lies::exit_code(self, self.guest.wait(&name)?),
            exited_at_ns: u64::MAX,
            ..Default::default()
        })
    }

    fn list(&self, request: &ListProcessesRequest) -> ListProcessesResponse {
        let running = self.guest.running(&request.container_id).into_iter();
        ListProcessesResponse {
            processes: running.map(|(_, process)| info(process.pid)).collect(),
            ..Default::default()
        }
    }
}

fn arguments(process: &Value) -> Vec<String> {
    serde_json::from_value(process["args"].clone()).unwrap()
}

fn info(pid: u32) -> ProcessInfo {
    ProcessInfo {
        pid,
        command: "sleep 1000".to_owned(),
        name: "sleep".to_owned(),
        state: "S".to_owned(),
        ..Default::default()
    }
}

fn stats() -> StatsResponse {
    StatsResponse {
        cpu: Some(CpuStats::new()).into(),
        memory: Some(MemoryStats::new()).into(),
        pids: Some(PidsStats::new()).into(),
        ..Default::default()
    }
}
