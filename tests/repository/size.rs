//! How wide lines and how long files and functions are.

use crate::files::{self, File};
use crate::rust;

const COLUMNS: usize = 100;
/// Prose in back quotes is not wrapped; from here on a line has room for little else.
const QUOTED: usize = 80;
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 60;

/// Stands in an attribute above a function that is one plain list, read from top to bottom, with
/// nothing to split: `#[allow(clippy::too_many_lines, reason = "what it lists")]`.
const LIST: &str = "clippy::too_many_lines, reason";

/// Comment lines and lines of prose that are too wide. Tables, code blocks and lines with a link
/// cannot be wrapped. Code is rustfmt's business.
pub fn wide_lines() -> Vec<String> {
    let mut found = Vec::new();
    for file in files::below("") {
        for (index, line) in wrapped_lines(&file) {
            let columns = line.chars().count();
            if columns > COLUMNS {
                found.push(format!("{}:{}: {columns} columns", file.path, index + 1));
            }
        }
    }
    found
}

/// The lines of a file that can be wrapped, with their index.
fn wrapped_lines(file: &File) -> Vec<(usize, &str)> {
    let lines = file.text.lines().enumerate();
    if file.has_extension("md") {
        return prose(lines);
    }
    let Some(mark) = comment_mark(file) else {
        return Vec::new();
    };
    lines
        .filter(|(_, line)| line.trim_start().starts_with(mark) && !line.contains("://"))
        .collect()
}

/// What a comment line of a source file begins with. None if it is no source file.
fn comment_mark(file: &File) -> Option<&'static str> {
    let is = |extensions: &[&str]| extensions.iter().any(|it| file.has_extension(it));
    if is(&["rs", "proto", "c", "h"]) {
        Some("//")
    } else if is(&["toml", "sh", "py", "config"]) || file.is_script() || file.path == "Makefile" {
        Some("#")
    } else {
        None
    }
}

fn prose<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Vec<(usize, &'a str)> {
    let mut fenced = false;
    let mut prose = Vec::new();
    for (index, line) in lines {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let quotes_much = || {
            line.split('`')
                .skip(1)
                .step_by(2)
                .any(|text| text.len() > QUOTED)
        };
        let unwrappable = ["    ", "|"].iter().any(|start| line.starts_with(start))
            || ["://", "]("].iter().any(|link| line.contains(link))
            || quotes_much();
        if !fenced && !unwrappable {
            prose.push((index, line));
        }
    }
    prose
}

/// Source files that are too long.
pub fn long_files() -> Vec<String> {
    let mut found = Vec::new();
    for file in files::below("")
        .iter()
        .filter(|file| comment_mark(file).is_some())
    {
        let lines = file.text.lines().count();
        if lines > FILE_LINES {
            found.push(format!("{}: {lines} lines", file.path));
        }
    }
    found
}

/// Functions that are too long and not marked as lists, and such as are marked and need not be.
pub fn long_functions() -> Vec<String> {
    let mut found = Vec::new();
    for file in files::below("")
        .iter()
        .filter(|file| file.has_extension("rs"))
    {
        for rust::Function { name, line, lines } in rust::functions(&file.text) {
            let place = format!("{}:{line}: {name} has {lines} lines", file.path);
            match (lines > FUNCTION_LINES, is_list(&file.text, line)) {
                (true, false) => found.push(place),
                (false, true) => found.push(format!("{place} and need not be marked as a list")),
                _ => {}
            }
        }
    }
    found
}

/// Whether the function of this line, counted from 1, is marked as a list.
fn is_list(source: &str, line: usize) -> bool {
    let before: Vec<&str> = source.lines().take(line - 1).collect();
    let mut above = before
        .iter()
        .rev()
        .take_while(|line| !line.is_empty() && !line.ends_with('}'));
    above.any(|line| line.contains(LIST))
}
