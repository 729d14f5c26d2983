//! A machine that rvm-vmm runs, over its control socket.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rvm_protocol::failure::{Code, Failure};
use rvm_protocol::vmm::{ChannelError, Event, Request, StartTimes, StopReason};
use tokio::sync::{oneshot, watch};

use super::control::{Control, machine_end};
use super::open_kvm;
use super::template::Template;
use crate::checkpoint::{Files, NewImage};
use crate::engine::exit::describe_exit;
use crate::engine::spawn::Vmm;
use crate::engine::{EngineError, MachineEnd, Plug, Save, Unplug, Vm};
use crate::host::process::ProcessId;
use crate::host::rate::Rate;
use crate::host::untrusted_text::clean;
use crate::sizing::Size;
use rvm_sys::error_chain::chain;

/// How long rvm-vmm may take to answer. It waits for nothing that the guest does.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long rvm-vmm may take to write a machine: as much as its memory holds, on a slow disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(600);

/// The most events a second. rvm-vmm has a few in all its life; one that was taken over could keep
/// root's process busy with a flood.
const MAX_EVENTS: u32 = 256;

/// What a checkpoint asks of rvm-vmm, as an infinitive.
const SAVE: &str = "save the machine";

/// Makes a process the first that the OOM killer takes, see proc_pid_oom_score_adj(5).
const MAX_OOM_SCORE: &str = "1000";

/// A machine that rvm-vmm runs.
pub(super) struct KvmMachine {
    control: Control,
    vmm: Mutex<Vmm>,
    /// What it was to be restored from, until it has started.
    template: Mutex<Option<Arc<Template>>>,
    /// What it was restored from, if nobody knows yet what machines write to.
    observed: Mutex<Option<Arc<Template>>>,
    times: OnceLock<StartTimes>,
    /// The jail's network and IPC namespaces, which outlive rvm-vmm by this. To remove one the
    /// kernel waits for RCU, and so it does for a virtual machine, as a part of rvm-vmm's end: one
    /// after the other.
    namespaces: OnceLock<[File; 2]>,
    /// The memory that the guest last reported to have, in MiB; 0 while it changes.
    reached: watch::Sender<u64>,
    /// What became of the last checkpoint of which the machine has gone on, once that is known.
    written: watch::Sender<Option<Result<(), Failure>>>,
    /// Where the answers to requests go, in the order of the requests.
    waiting: Mutex<VecDeque<Answer>>,
}

/// Receives whether the request was carried out.
type Answer = oneshot::Sender<Result<(), Failure>>;

impl KvmMachine {
    /// A machine that is being started, from this template if there is one. Called within a tokio
    /// runtime.
    pub(super) fn new(vmm: Vmm, template: Option<Arc<Template>>) -> Result<Self, EngineError> {
        Ok(Self {
            control: Control::of(&vmm)?,
            vmm: Mutex::new(vmm),
            template: Mutex::new(template),
            observed: Mutex::default(),
            times: OnceLock::new(),
            namespaces: OnceLock::new(),
            reached: watch::Sender::new(0),
            written: watch::Sender::new(None),
            waiting: Mutex::default(),
        })
    }

    /// Sends a request and waits for its answer.
    async fn request(
        &self,
        action: &'static str,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), EngineError> {
        self.request_within(REQUEST_TIMEOUT, action, request, fds)
            .await
    }

    async fn request_within(
        &self,
        limit: Duration,
        action: &'static str,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), EngineError> {
        let (answer, answered) = oneshot::channel();
        {
            // Held while sending, so that the answers queue in the order of the requests.
            let mut waiting = lock(&self.waiting);
            self.control
                .send(request, fds)
                .map_err(|source| EngineError::Channel { action, source })?;
            waiting.push_back(answer);
        }
        let answer = match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(has_ended()),
            // Its answer keeps its place in the queue, and finds nobody waiting.
            Err(_) => Err(too_late(limit)),
        };
        answer.map_err(|failure| EngineError::Refused { action, failure })
    }

    fn answered(&self, answer: Result<(), Failure>) {
        if let Some(waiting) = lock(&self.waiting).pop_front() {
            // Fails if the caller has given up waiting.
            let _ = waiting.send(answer);
        }
    }

    /// Passes an event on. Returns the reason if it is the machine's end.
    fn take(&self, event: Event) -> Option<StopReason> {
        match event {
            Event::Started(times) => {
                let template = lock(&self.template).take();
                // What is said again is not believed.
                if self.times.set(*times).is_ok() {
                    *lock(&self.observed) = template.filter(|it| it.written().is_none());
                    self.hold_namespaces();
                }
            }
            Event::Done => self.answered(Ok(())),
            Event::Refused(failure) => self.answered(Err(failure)),
            Event::TemplateRefused(failure) => {
                // What is said again, or without a template, is not believed.
                if let Some(template) = lock(&self.template).take() {
                    let reason = failure.to_string();
                    tracing::warn!("the guest boots, since its template cannot be used: {reason}");
                    template.discard(&reason);
                }
            }
            // Only one that writes a template says so.
            Event::TemplateSaved => {}
            Event::Written(failure) => {
                _ = self.written.send_replace(Some(failure.map_or(Ok(()), Err)))
            }
            Event::Resized { memory_mib } => _ = self.reached.send_replace(memory_mib),
            Event::Stopped(reason) => {
                if reason == StopReason::Saved {
                    self.answered(Ok(()));
                }
                return Some(reason);
            }
        }
        None
    }

    /// Has the machine written to a checkpoint.
    async fn write(&self, image: &NewImage, go_on: bool) -> Result<(), EngineError> {
        let kvm = open_kvm()?;
        let Files {
            state,
            memory,
            removed,
        } = &image.files;
        let files = [state, memory, removed, &kvm].map(AsFd::as_fd);
        let has_swap = has_swap();
        self.written.send_replace(None);
        let request = Request::Save { go_on, has_swap };
        self.request_within(SAVE_TIMEOUT, SAVE, &request, &files)
            .await?;
        if go_on {
            self.sacrifice_writer();
        }
        Ok(())
    }

    /// Waits until the machine is written that has gone on.
    async fn written(&self) -> Result<(), EngineError> {
        let mut written = self.written.subscribe();
        let known = written.wait_for(Option::is_some);
        let written = match tokio::time::timeout(SAVE_TIMEOUT, known).await {
            Ok(known) => known.ok().and_then(|known| known.clone()),
            Err(_) => Some(Err(too_late(SAVE_TIMEOUT))),
        };
        let written = written.unwrap_or_else(|| Err(has_ended()));
        written.map_err(|failure| EngineError::Refused {
            action: SAVE,
            failure,
        })
    }

    /// Has the OOM killer, of the cgroup or of the host, take the process that writes the machine's
    /// memory, and not the machine: what the guest changes meanwhile is there twice.
    fn sacrifice_writer(&self) {
        let Ok(vmm) = lock(&self.vmm).id() else {
            return;
        };
        let path = format!("/proc/{0}/task/{0}/children", vmm.pid);
        // It has ended already, or the kernel does not list children.
        let children = std::fs::read_to_string(path).unwrap_or_default();
        for child in children.split_whitespace() {
            let path = format!("/proc/{child}/oom_score_adj");
            if let Err(error) = std::fs::write(&path, MAX_OOM_SCORE) {
                tracing::debug!("cannot write to {path}: {error}");
            }
        }
    }

    /// Holds namespaces that rvm-vmm has entered by now. Without it the end takes some milliseconds
    /// longer.
    fn hold_namespaces(&self) {
        let Ok(id) = lock(&self.vmm).id() else {
            return;
        };
        let open = |name| File::open(format!("/proc/{}/ns/{name}", id.pid));
        if let (Ok(network), Ok(ipc)) = (open("net"), open("ipc")) {
            _ = self.namespaces.set([network, ipc]);
        }
    }

    /// Ends a machine that has said its last word: one that went on would keep its streams open.
    fn end(&self) {
        // Fails only if it was waited for already.
        let _ = lock(&self.vmm).kill();
    }

    /// What it means that rvm-vmm says nothing more, or something that is no event.
    async fn post_mortem(&self, silence: Option<ChannelError>) -> MachineEnd {
        let by_itself = match &silence {
            None => true,
            Some(ChannelError::Closed) => self.control.ends_soon().await,
            Some(_) => false,
        };
        self.end();
        MachineEnd::Failed(match silence {
            // rvm-vmm is of another build.
            Some(error @ ChannelError::Version(_)) => error.to_string(),
            Some(error) if !by_itself => {
                format!("rvm-vmm was killed: {}", clean(&chain(&error)))
            }
            _ => self.describe_exit(),
        })
    }

    fn describe_exit(&self) -> String {
        let mut vmm = lock(&self.vmm);
        let status = vmm.exit_status();
        describe_exit("rvm-vmm", &status, &vmm.last_lines())
    }
}

fn has_ended() -> Failure {
    Failure::new(Code::Unavailable, "it has ended")
}

fn too_late(limit: Duration) -> Failure {
    let limit = limit.as_secs();
    Failure::new(
        Code::DeadlineExceeded,
        format!("no answer within {limit} s"),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait::async_trait]
impl Vm for KvmMachine {
    fn processes(&self) -> io::Result<Vec<ProcessId>> {
        Ok(vec![lock(&self.vmm).id()?])
    }

    async fn drive(&self) -> MachineEnd {
        let mut rate = Rate::new(MAX_EVENTS);
        let end = loop {
            rate.admit().await;
            match self.control.event().await {
                Ok(Some(event)) => {
                    if let Some(reason) = self.take(event) {
                        self.end();
                        break machine_end(reason);
                    }
                }
                Ok(None) => break self.post_mortem(None).await,
                Err(error) => break self.post_mortem(Some(error)).await,
            }
        };
        // Nobody answers these any more.
        lock(&self.waiting).clear();
        self.written.send_replace(Some(Err(has_ended())));
        end
    }

    fn start_times(&self) -> Option<StartTimes> {
        self.times.get().cloned()
    }

    fn has_container(&self) {
        let Some(template) = lock(&self.observed).take() else {
            return;
        };
        let noted = lock(&self.vmm).id();
        let noted = noted.and_then(|vmm| template.note_written(vmm.pid));
        if let Err(error) = noted {
            tracing::debug!("cannot note what the machine has written to: {error}");
        }
    }

    async fn plug(&self, device: Plug<'_>) -> Result<(), EngineError> {
        match device {
            Plug::Net(card) => {
                let request = Request::PlugNet { mac: card.mac };
                self.request("plug a network card in", &request, &[card.tap.as_fd()])
                    .await
            }
            Plug::Disk { slot, file, disk } => {
                let request = Request::PlugDisk { slot, disk };
                self.request("plug a disk in", &request, &[file.as_fd()])
                    .await
            }
        }
    }

    async fn unplug(&self, device: Unplug) -> Result<(), EngineError> {
        match device {
            Unplug::Net(mac) => {
                let request = Request::UnplugNet { mac };
                self.request("unplug a network card", &request, &[]).await
            }
            Unplug::Disk(slot) => {
                let request = Request::UnplugDisk { slot };
                self.request("unplug a disk", &request, &[]).await
            }
        }
    }

    async fn resize(&self, size: Size) -> Result<(), EngineError> {
        self.reached.send_replace(0);
        let request = Request::Resize {
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
        };
        self.request("change the machine's size", &request, &[])
            .await
    }

    async fn resized(&self, size: Size) -> bool {
        let mut reached = self.reached.subscribe();
        // It fails only if the machine is dropped.
        reached
            .wait_for(|mib| *mib == size.memory_mib)
            .await
            .is_ok()
    }

    async fn save(&self, step: Save<'_>) -> Result<(), EngineError> {
        match step {
            Save::Write { image, go_on } => self.write(image, go_on).await,
            Save::Finish => self.written().await,
            Save::Adopted => {
                let (action, request) = ("go on with the files and streams", Request::Adopted);
                self.request_within(SAVE_TIMEOUT, action, &request, &[])
                    .await
            }
        }
    }

    fn kill(&self) -> io::Result<()> {
        lock(&self.vmm).kill()
    }
}

/// Whether the host can swap pages out. If that cannot be found out, it can.
fn has_swap() -> bool {
    // The first line is a heading.
    std::fs::read_to_string("/proc/swaps").map_or(true, |swaps| swaps.lines().count() > 1)
}
