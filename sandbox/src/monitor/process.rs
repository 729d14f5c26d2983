//! A process of the guest for which this process stands.

use std::convert::Infallible;
use std::time::Duration;

use rvm_protocol::ProcessId;

use super::caller::interrupted;
use crate::guest::agent::Agent;
use crate::guest::stdio::Relay;
use crate::host::signals::Signals;
use crate::host::terminal::{self, RawTerminal, StandardStream, WindowSize};

/// How long after the end of the process's standard error this process keeps its own. The end of
/// the process or of its machine ends the stream as well, and what is to be said then is known a
/// little later.
const LAST_MESSAGES: Duration = Duration::from_secs(1);

/// The signal that is none, and only asks whether a process is there; see kill(2).
const IS_THERE: i32 = 0;

/// A process of the guest that runs, or waits for its start.
pub(super) struct GuestProcess {
    pub(super) agent: Agent,
    pub(super) id: ProcessId,
    /// The terminal on the host, if the process has one.
    pub(super) terminal: Option<RawTerminal>,
}

impl GuestProcess {
    /// Gives the process's terminal the size of the host's, which may have changed before signals
    /// were passed on. A new terminal for a console socket has none: `process.consoleSize` holds
    /// until the engine sets one.
    pub(super) async fn fit_terminal(&self) {
        let size = self.terminal.as_ref().map(RawTerminal::size);
        if let Some(size) = size.filter(|size| *size != WindowSize::default()) {
            let fitted = self.agent.resize_terminal(&self.id, size.rows, size.cols);
            let _ = fitted.await;
        }
    }

    /// Passes signals on until `end`. If the process closes its standard error meanwhile, so does
    /// this one.
    pub(super) async fn pass_signals_until<T>(
        &self,
        end: impl Future<Output = T>,
        signals: &Signals,
        relay: &mut Relay,
    ) -> T {
        let mut end = std::pin::pin!(end);
        let mut closing = std::pin::pin!(self.close_errors_with_its_own(relay));
        loop {
            tokio::select! {
                biased;
                ended = &mut end => return ended,
                never = &mut closing => match never {},
                signal = signals.next() => {
                    if let Ok(signal) = signal {
                        self.pass_on(signal);
                    }
                }
            }
        }
    }

    /// Leaves standard error to nobody once the process has closed its own and runs on.
    async fn close_errors_with_its_own(&self, relay: &mut Relay) -> Infallible {
        relay.errors_ended().await;
        tokio::time::sleep(LAST_MESSAGES).await;
        // The news of its end may come late, after its files are on the host.
        if self.agent.signal(&self.id, IS_THERE).await.is_ok()
            && let Err(error) = terminal::detach_standard_streams(&[StandardStream::Error])
        {
            tracing::debug!("standard error stays open: {error}");
        }
        std::future::pending().await
    }

    /// Passes a signal on; SIGWINCH sets the size of the process's terminal. This does not wait for
    /// the answer: a process that is about to end may give none.
    fn pass_on(&self, signal: i32) {
        let (agent, id) = (self.agent.clone(), self.id.clone());
        let size = self.terminal.as_ref().map(RawTerminal::size);
        tokio::spawn(async move {
            let passed = match size {
                Some(size) if signal == libc::SIGWINCH => {
                    agent.resize_terminal(&id, size.rows, size.cols).await
                }
                _ => agent.signal(&id, signal).await,
            };
            if let Err(error) = passed {
                tracing::debug!("signal {signal} was not passed on: {error}");
            }
        });
    }
}

/// Waits until the output of an added process that has ended is copied: its children may have it
/// open for long. A reader that never reads would keep it, and this process, for ever: a signal
/// gives it up.
pub(super) async fn drain(relay: Relay, signals: &Signals) {
    unless_interrupted(relay.drained(), signals).await;
}

/// The same for a container that has ended, and with it all that could have more output.
pub(super) async fn settle(relay: Relay, signals: &Signals) {
    unless_interrupted(relay.settled(), signals).await;
}

async fn unless_interrupted(copied: impl Future<Output = ()>, signals: &Signals) {
    tokio::select! {
        () = copied => {}
        signal = interrupted(signals) => tracing::debug!("output was given up: signal {signal}"),
    }
}
