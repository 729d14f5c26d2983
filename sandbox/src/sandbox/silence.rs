//! Notices a guest that does not answer any more, when its owner compares the clocks. A paused
//! container is not silent: its agent answers.
//!
//! A silent guest is reported, and nothing else: it may be slow, and may come back. Engines probe
//! what their containers do, and end those that they give up.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};

use super::Sandbox;

/// How long the agent may take to answer, on a busy host with a software CPU too.
const PATIENCE: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Waits for the agent's answer, however long that takes: more questions to a silent guest
    /// would fill its socket. Writes down when the guest falls silent and when it answers again.
    pub(super) async fn notice_silence<T>(&self, answer: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let mut answer = std::pin::pin!(answer);
        match timeout(PATIENCE, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                self.report_silence();
                let answered = answer.await;
                self.report_answer(asked.elapsed());
                answered
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
