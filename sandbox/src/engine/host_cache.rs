//! What was found out about the host once and holds until it boots again: a file each below
//! /run/rvm, which is emptied at boot. Losing one costs the time to find it out anew, so nothing here
//! fails.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What was remembered, if it can be read.
pub fn recall<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Remembers, if that can be done.
pub fn remember<T: Serialize>(path: &Path, value: &T) {
    if let Err(error) = write(path, value) {
        tracing::debug!("cannot write {}: {error}", path.display());
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(dir)?;
    }
    // Another rvm may write at the same time.
    let new = path.with_extension(format!("json.{}", std::process::id()));
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_remembered_is_recalled_and_leaves_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rvm/fact.json");
        assert_eq!(recall::<u32>(&path), None);
        remember(&path, &7);
        remember(&path, &8);
        assert_eq!(recall(&path), Some(8));
        assert_eq!(fs::read_dir(dir.path().join("rvm")).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fact.json");
        fs::write(&path, "{").unwrap();
        assert_eq!(recall::<u32>(&path), None);
    }
}
