//! A guest to try the agent in, and containers in it.
//!
//! The machine is QEMU's microvm with the guest kernel, the agent as its whole initramfs, and
//! `rvm-vmm backend` for the vsock and a shared directory.
#![allow(dead_code)]

mod bundle;
mod machine;

use std::time::Duration;

use rvm_protocol::STREAM_PORT;
use rvm_protocol::agent as api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ttrpc::context::with_timeout;

pub use bundle::Bundle;
pub use machine::Machine;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to a guest's agent.
pub struct Guest {
    pub machine: &'static Machine,
    pub agent: api::AgentClient,
}

/// Connects to the guest that all tests of a binary share; `None` if this machine cannot have one.
pub async fn guest() -> Option<Guest> {
    let guest = unshared_guest(rvm_protocol::SHARED_TAG).await?;
    guest
        .agent
        .check(context(), &Default::default())
        .await
        .unwrap();
    Some(guest)
}

/// The same before Check; a device offers the host's files by this tag.
pub async fn unshared_guest(tag: &str) -> Option<Guest> {
    let machine = machine::shared(tag)?;
    let socket = machine.connect(rvm_protocol::AGENT_PORT).await;
    let client = ttrpc::r#async::Client::new(ttrpc::r#async::transport::Socket::new(socket));
    Some(Guest {
        machine,
        agent: api::AgentClient::new(client),
    })
}

pub fn context() -> ttrpc::context::Context {
    with_timeout(TIMEOUT.as_nanos() as i64)
}

/// What a program left behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: u32,
    pub stdout: String,
    pub stderr: String,
}

/// That of a program that has written nothing to its standard error.
pub fn outcome(status: u32, stdout: &str) -> Outcome {
    Outcome {
        status,
        stdout: stdout.to_owned(),
        stderr: String::new(),
    }
}

/// The host's ends of a process's streams.
pub struct Streams {
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

impl Guest {
    /// Opens a stream.
    pub async fn stream(&self, id: u64) -> UnixStream {
        let mut socket = self.machine.connect(STREAM_PORT).await;
        socket.write_all(&id.to_be_bytes()).await.unwrap();
        socket
    }

    /// Opens three streams and says their ids.
    pub async fn streams(&self) -> (Streams, api::Stdio) {
        let ids = [self.machine.id(), self.machine.id(), self.machine.id()];
        let streams = Streams {
            stdin: self.stream(ids[0]).await,
            stdout: self.stream(ids[1]).await,
            stderr: self.stream(ids[2]).await,
        };
        let [stdin, stdout, stderr] = ids;
        (
            streams,
            api::Stdio {
                stdin,
                stdout,
                stderr,
                ..Default::default()
            },
        )
    }

    /// Creates a container.
    pub async fn create(&self, bundle: &Bundle, stdio: api::Stdio) -> ttrpc::Result<u32> {
        let request = api::CreateContainerRequest {
            container_id: bundle.id.clone(),
            spec: bundle.spec.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        Ok(self.agent.create_container(context(), &request).await?.pid)
    }

    pub async fn start(&self, id: &str) -> ttrpc::Result<()> {
        let request = api::StartContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        self.agent
            .start_container(context(), &request)
            .await
            .map(drop)
    }

    pub async fn wait(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let request = api::WaitProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        Ok(self
            .agent
            .wait_process(context(), &request)
            .await?
            .exit_status)
    }

    pub async fn remove(&self, id: &str) -> ttrpc::Result<()> {
        let request = api::RemoveContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        self.agent
            .remove_container(context(), &request)
            .await
            .map(drop)
    }

    pub async fn signal(
        &self,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> ttrpc::Result<()> {
        let request = api::SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.agent
            .signal_process(context(), &request)
            .await
            .map(drop)
    }

    /// Starts a process in a running container.
    pub async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        process: serde_json::Value,
        stdio: api::Stdio,
    ) -> ttrpc::Result<u32> {
        let request = api::ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            process: process.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        Ok(self.agent.exec_process(context(), &request).await?.pid)
    }

    /// Runs a shell command in a running container to its end.
    pub async fn exec_shell(&self, id: &str, exec_id: &str, command: &str) -> Outcome {
        let (streams, stdio) = self.streams().await;
        let process = serde_json::json!({
            "args": ["/bin/sh", "-c", command], "cwd": "/", "user": {},
            "env": ["PATH=/bin"],
        });
        self.exec(id, exec_id, process, stdio).await.unwrap();
        let outcome = streams.collect().await;
        Outcome {
            status: self.wait(id, exec_id).await.unwrap(),
            ..outcome
        }
    }

    /// Runs a container to its end and removes it.
    pub async fn run(&self, bundle: &Bundle) -> ttrpc::Result<Outcome> {
        let (streams, stdio) = self.streams().await;
        self.create(bundle, stdio).await?;
        self.start(&bundle.id).await?;
        let outcome = streams.collect().await;
        let status = self.wait(&bundle.id, "").await?;
        self.remove(&bundle.id).await?;
        Ok(Outcome { status, ..outcome })
    }

    /// Runs a container with streams that go nowhere up to the start.
    pub async fn run_in_background(&self, bundle: &Bundle) -> u32 {
        let pid = self.create(bundle, api::Stdio::default()).await.unwrap();
        self.start(&bundle.id).await.unwrap();
        pid
    }
}

impl Streams {
    /// Ends the input and reads the outputs to their ends.
    pub async fn collect(self) -> Outcome {
        drop(self.stdin);
        let (stdout, stderr) = tokio::join!(read(self.stdout), read(self.stderr));
        Outcome {
            status: u32::MAX,
            stdout,
            stderr,
        }
    }
}

pub async fn read(mut stream: UnixStream) -> String {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 256 * 1024]);
    loop {
        match tokio::time::timeout(TIMEOUT, stream.read(&mut buffer)).await {
            Ok(count @ (Ok(0) | Err(_))) => {
                count.unwrap();
                break;
            }
            Ok(Ok(count)) => all.extend(&buffer[..count]),
            Err(_) => panic!("the stream does not go on after {} bytes", all.len()),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The message of a failed request.
pub fn message<T>(result: ttrpc::Result<T>) -> String {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(ttrpc::Error::RpcStatus(status)) => status.message,
        Err(other) => panic!("{other}"),
    }
}

/// Skips a test, aloud, where there can be no guest.
#[macro_export]
macro_rules! guest_or_skip {
    () => {
        match support::guest().await {
            Some(guest) => guest,
            None => return eprintln!("skipped: see above for what is missing"),
        }
    };
}
