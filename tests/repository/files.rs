//! The files of the repository.

use std::fs;
use std::path::{Path, PathBuf};

/// What a build makes, and what others wrote: no rule of the repository holds for it.
const FOREIGN: &[&str] = &[
    "target",
    "dist",
    "fuzz/target",
    "tests/proto",
    "tests/oci-schema",
];

/// A text file of the repository.
pub struct File {
    /// Relative to the root of the repository.
    pub path: String,
    pub text: String,
}

impl File {
    pub fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|own| own == extension)
    }

    /// Whether the first line names an interpreter.
    pub fn is_script(&self) -> bool {
        self.text.starts_with("#!")
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every text file below `dir`, in order; hidden and foreign files are left out.
pub fn below(dir: &str) -> Vec<File> {
    let mut files = Vec::new();
    collect(dir, &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn collect(dir: &str, files: &mut Vec<File>) {
    for entry in fs::read_dir(root().join(dir)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if dir.is_empty() {
            name.clone()
        } else {
            format!("{dir}/{name}")
        };
        if name.starts_with('.') || FOREIGN.contains(&path.as_str()) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            collect(&path, files);
        } else if let Ok(text) = fs::read_to_string(entry.path()) {
            files.push(File { path, text });
        }
    }
}
