//! The log of a guest's console.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::host::untrusted_text::clean;

/// How much of the console is shown when a guest fails: the last `TAIL_LINES` lines, or all from
/// the kernel's panic message on, which a long trace follows; at most `TAIL_BYTES`.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 4096;
const PANIC: &str = "Kernel panic";

/// The last lines of a guest's console, with a heading, or a note that there are none.
pub(crate) fn console_tail(console: &Path) -> String {
    match read_tail(console) {
        Ok(tail) if tail.is_empty() => "\nthe guest's console is empty".to_owned(),
        Ok(tail) => format!("\nthe end of the guest's console:\n{tail}"),
        Err(error) => format!("\nthe guest's console cannot be read: {error}"),
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
        .map(clean)
        .filter(|line| !line.trim().is_empty())
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
