//! rvm list

use std::io::Write;
use std::process::ExitCode;

use rvm_sandbox::state::{Report, SILENT_SINCE, State, StateError};

use crate::cli::{Format, Global, ListArgs};

/// Lists the containers. Fails after that if one could not be looked at.
pub fn run(global: &Global, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let store = global.store();
    let (mut states, mut unread) = (Vec::new(), None);
    for id in store.ids()? {
        let opened = store.open(id.as_str());
        match opened.and_then(|container| Ok((container.state()?, container))) {
            Ok((state, container)) => {
                let silent_since = container.silent_since(&state);
                states.push((state, silent_since));
            }
            // Deleted meanwhile, or not the directory of a container.
            Err(StateError::NotFound(_)) => {}
            // The list is not whole, which a script must not take it for.
            Err(error @ StateError::Io { .. }) => unread = Some(error),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }
    let mut out = std::io::stdout().lock();
    match (args.quiet, args.format) {
        (true, _) => states
            .iter()
            .try_for_each(|(state, _)| writeln!(out, "{}", state.id))?,
        (false, Format::Table) => write!(out, "{}", table(&reports(&states)))?,
        (false, Format::Json) => {
            let reports = reports(&states);
            // As runc: no list rather than an empty one.
            let reports = (!reports.is_empty()).then_some(reports);
            writeln!(out, "{}", serde_json::to_string(&reports)?)?;
        }
    }
    match unread {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => Err(error.into()),
    }
}

/// The least width of a column, and the least space behind a cell, in characters, as with runc.
const COLUMN: usize = 12;
const SPACE: usize = 3;

/// Reports on containers, each with the time since when its guest has not answered.
fn reports(states: &[(State, Option<String>)]) -> Vec<Report<'_>> {
    states
        .iter()
        .map(|(state, silent_since)| state.report(silent_since.clone()))
        .collect()
}

fn table(reports: &[Report<'_>]) -> String {
    let heading = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let mut rows = vec![heading];
    rows.extend(reports.iter().map(|report| {
        let silent = match report.annotations.contains_key(SILENT_SINCE) {
            true => " (silent)",
            false => "",
        };
        [
            report.id.to_owned(),
            report.pid.to_string(),
            format!("{}{silent}", report.status),
            report.bundle.display().to_string(),
            report.created.to_owned(),
            report.owner.clone(),
        ]
    }));
    columns(&rows)
}

/// Rows of cells as aligned lines.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N)
        .map(|column| (widest(column).unwrap_or(0) + SPACE).max(COLUMN))
        .collect();
    rows.iter()
        .map(|row| {
            let line: String = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            format!("{}\n", line.trim_end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_has_its_heading() {
        let heading = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n";
        assert_eq!(table(&[]), heading);
    }
}
