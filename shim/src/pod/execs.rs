//! The processes that were added to a container.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rvm_protocol::ExecId;

use super::error::Refusal;
use super::process::Process;

/// How long added processes may take to end after the init process, with which they are killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Added processes by id, started or not.
#[derive(Default)]
pub struct Execs(Mutex<BTreeMap<ExecId, Arc<Process>>>);

impl Execs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ExecId, Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn all(&self) -> Vec<Arc<Process>> {
        self.lock().values().cloned().collect()
    }

    pub fn find(&self, id: &ExecId) -> Result<Arc<Process>, Refusal> {
        let found = self.lock().get(id).cloned();
        found.ok_or_else(|| Refusal::NoProcess(id.clone()))
    }

    /// Adds a process under an id that must be free.
    pub fn add(&self, id: ExecId, process: Process) -> Result<(), Refusal> {
        let mut execs = self.lock();
        if execs.contains_key(&id) {
            return Err(Refusal::ProcessExists(id));
        }
        execs.insert(id, Arc::new(process));
        Ok(())
    }

    pub fn remove(&self, id: &ExecId) {
        self.lock().remove(id);
    }

    /// Waits until every process that was started has ended.
    pub async fn wait(&self) {
        let started = self.all().into_iter().filter(|exec| exec.pid() != 0);
        let all = async {
            for exec in started {
                exec.wait().await;
            }
        };
        if tokio::time::timeout(EXIT_TIMEOUT, all).await.is_err() {
            tracing::warn!("a process has outlived its container's init process");
        }
    }
}
