//! Files that are written as a whole: neither a reader nor a crash meets half of one.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rvm_sys::fault_point;
use serde::Serialize;

/// Writes a value as JSON, all of it or nothing: to a new file, which is renamed into its place.
/// The file is root's alone.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_added_extension("new");
    let written = write_new(&new, value).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // Half a file, on a full disk. The first error is the one to report.
        let _ = fs::remove_file(&new);
    }
    written
}

fn write_new(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path)?;
    fault_point!("file.opened")?;
    file.write_all(&serde_json::to_vec(value)?)?;
    fault_point!("file.written")
}
