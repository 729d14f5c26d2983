//! Facts about the host that hold until it boots again, one file each below /run/rvm, which is
//! emptied at boot. A fact that is lost is measured again, so nothing here fails.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a fact, if there is one.
pub fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a fact, if that can be done.
pub fn store<T: Serialize>(path: &Path, value: &T) {
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
    fn a_stored_fact_is_loaded_and_leaves_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rvm/fact.json");
        assert_eq!(load::<u32>(&path), None);
        store(&path, &7);
        store(&path, &8);
        assert_eq!(load(&path), Some(8));
        assert_eq!(fs::read_dir(dir.path().join("rvm")).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fact.json");
        fs::write(&path, "{").unwrap();
        assert_eq!(load::<u32>(&path), None);
    }
}
