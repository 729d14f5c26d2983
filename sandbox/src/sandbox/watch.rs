//! What it takes to explain a guest's failure.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::MachineEnd;

/// How much of the console is shown when a guest fails: its last lines, or more if that is where its kernel
/// says why it panics, which stands before a long trace; not more than so many bytes.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 4096;
const PANIC: &str = "Kernel panic";

/// A guest that ended, or was not heard of in time, before it had done what was asked of it.
#[derive(Debug, thiserror::Error)]
#[error("the guest failed during {stage}, after {after:.1?}{engine}: {how}{console}")]
pub struct GuestFailure {
    stage: &'static str,
    after: Duration,
    engine: String,
    how: String,
    console: String,
}

/// How a failure is explained.
#[derive(Debug)]
pub struct GuestWatch {
    /// The console's log.
    pub console: PathBuf,
    /// The engine, where it is known: " on the … engine".
    pub engine: String,
    /// How long the agent may take to answer.
    pub limit: Duration,
}

impl GuestWatch {
    /// A guest failed during `stage`, and how it did.
    pub fn failure(&self, stage: &'static str, after: Duration, how: String) -> Box<GuestFailure> {
        Box::new(GuestFailure {
            stage,
            after,
            engine: self.engine.clone(),
            how,
            console: self.console_tail(),
        })
    }

    /// What a machine's end during a container's life says to a human.
    pub fn obituary(&self, end: &MachineEnd) -> String {
        format!(
            "the sandbox ended unexpectedly: {end}{}",
            self.console_tail()
        )
    }

    /// The last lines of the guest's console, with a heading, or a note that there are none.
    fn console_tail(&self) -> String {
        match read_tail(&self.console) {
            Ok(tail) if tail.is_empty() => "\nthe guest's console is empty".to_owned(),
            Ok(tail) => format!("\nthe end of the guest's console:\n{tail}"),
            Err(error) => format!("\nthe guest's console cannot be read: {error}"),
        }
    }
}

fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.replace(char::is_control, ""))
        .filter(|line| !line.is_empty())
        .map(|line| format!("  {line}"))
        .collect();
    let panic = lines.iter().rposition(|line| line.contains(PANIC));
    let last = lines.len().saturating_sub(TAIL_LINES);
    let first = panic.map_or(last, |panic| panic.min(last));
    Ok(lines[first..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, text).unwrap();
        read_tail(&path).unwrap()
    }

    #[test]
    fn the_tail_is_the_last_lines_without_control_characters() {
        let text: String = (0..100)
            .map(|n| format!("\u{1b}[31mline {n}\r\n"))
            .collect();
        let tail = tail_of(&text);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 99") && !tail.contains('\u{1b}'));
    }

    #[test]
    fn the_tail_begins_with_the_panic_however_long_the_trace() {
        let trace = "trace\n".repeat(2 * TAIL_LINES);
        let tail = tail_of(&format!("before\nKernel panic - not syncing\n{trace}"));
        assert!(tail.starts_with("  Kernel panic - not syncing\n"), "{tail}");
        assert!(tail.len() as u64 <= 2 * TAIL_BYTES);
    }

    #[test]
    fn the_tail_of_an_endless_line_is_bounded() {
        assert!(tail_of(&"x".repeat(1 << 20)).len() as u64 <= TAIL_BYTES + 2);
    }
}
