//! Which containers of a pod use the mounts that they share. Each has a directory of empty files
//! that name its own.
//!
//! What cannot be read is an error, never taken for unused: others would lose their files.

use std::fs;
use std::path::Path;

use super::{REFERENCES, StorageError, at, is_gone};

/// The names in a directory; none if it does not exist.
pub(super) fn names_in(dir: &Path) -> Result<Vec<String>, StorageError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        entries => at("list", dir, entries)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(at("list", dir, entry)?.file_name().into_string());
    }
    Ok(names)
}

/// Whether any container uses the mount of this name.
pub(super) fn is_used(shared: &Path, name: &str) -> Result<bool, StorageError> {
    for id in names_in(shared)? {
        let reference = shared.join(id).join(REFERENCES).join(name);
        if at("examine", &reference, reference.try_exists())? {
            return Ok(true);
        }
    }
    Ok(false)
}
