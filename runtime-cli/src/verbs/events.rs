//! rvm events

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use rvm_protocol::agent::event::Kind;
use rvm_sandbox::container::lifecycle::LifecycleError;
use rvm_sandbox::container::running::Observed;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{block_on, stats};
use crate::cli::{EventsArgs, Global};

/// A line of the output, in runc's shape.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<stats::Stats>,
}

/// Prints a container's statistics, and OOM kills as they happen, until the container ends.
pub fn run(global: &Global, args: &EventsArgs) -> anyhow::Result<ExitCode> {
    if args.interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    let container = global.store().open(&args.id)?;
    block_on(async {
        let observed = Observed::new(&container).await?;
        if args.stats {
            let stats = observed.stats().await?;
            print("stats", &args.id, Some(stats::Stats::from(&stats)))
        } else {
            stream(&args.id, &observed, args.interval).await
        }
    })??;
    Ok(ExitCode::SUCCESS)
}

async fn stream(id: &str, observed: &Observed<'_>, interval: Duration) -> anyhow::Result<()> {
    let mut events = observed.events().await?;
    let mut ticks = interval_at(Instant::now() + interval, interval);
    // A slow reader gets new statistics, not all those that it has missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => match observed.stats().await {
                Ok(stats) => print("stats", id, Some(stats::Stats::from(&stats)))?,
                // The container has ended since the last event.
                Err(LifecycleError::FailedPrecondition(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            },
            event = events.next() => match event {
                Ok(Some(event)) => match event.kind {
                    Some(Kind::Oom(oom)) if oom.container_id == id => print("oom", id, None)?,
                    Some(Kind::Exit(exit)) if exit.container_id == id && exit.exec_id.is_empty() => {
                        return Ok(());
                    }
                    _ => {}
                },
                // The machine has gone, and the container with it.
                Ok(None) | Err(_) => return Ok(()),
            },
        }
    }
}

fn print(kind: &str, id: &str, data: Option<stats::Stats>) -> anyhow::Result<()> {
    let line = serde_json::to_string(&Line { kind, id, data })? + "\n";
    Ok(std::io::stdout().write_all(line.as_bytes())?)
}
