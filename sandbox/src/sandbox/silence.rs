//! Notices a guest that does not answer any more: its owner asks the agent from time to time
//! whether it is there. A paused container is not silent: its agent answers.
//!
//! A silent guest is reported, and nothing else: it may be slow, and may come back. Engines probe
//! what their containers do, and end those that they give up.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, timeout};

use super::Sandbox;
use crate::guest::agent::AgentError;

/// How often the agent is asked. A question wakes the guest for some 100,000 instructions.
const PERIOD: Duration = Duration::from_secs(20);

/// How long the agent may take to answer, on a busy host with a software CPU too.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longer than any machine runs. The next question waits for the answer to the last one, or they
/// would fill the guest's socket.
const FOREVER: Duration = Duration::MAX;

impl Sandbox {
    /// Asks the agent again and again; writes down when it falls silent and when it answers again.
    pub async fn watch_agent(&self) -> Infallible {
        loop {
            sleep(PERIOD).await;
            let asked = Instant::now();
            let mut answer = std::pin::pin!(self.guest().agent().check(FOREVER));
            let answered = match timeout(PATIENCE, &mut answer).await {
                Ok(answered) => answered,
                Err(_) => {
                    self.report_silence();
                    let answered = answer.await;
                    self.report_answer(asked.elapsed());
                    answered
                }
            };
            if let Err(AgentError::Connect(_) | AgentError::Lost { .. }) = answered {
                // The machine has ended, or its agent has hung up: whoever waits for a container
                // learns that by itself.
                return std::future::pending().await;
            }
        }
    }

    fn report_silence(&self) {
        let guest = self.guest();
        tracing::error!("{}", guest.explain_silence(PATIENCE));
        let since = SystemTime::now() - PATIENCE;
        let since = humantime::format_rfc3339_seconds(since).to_string();
        self.record_silence(Some(since));
    }

    fn report_answer(&self, after: Duration) {
        tracing::warn!("the guest answers again, after {} s", after.as_secs());
        self.record_silence(None);
    }

    fn record_silence(&self, since: Option<String>) {
        let mut record = self.guest().record().clone();
        record.silent_since = since;
        if let Err(error) = self.guest().dir().write_record(&record) {
            tracing::warn!("cannot write down whether the guest answers: {error}");
        }
    }
}
