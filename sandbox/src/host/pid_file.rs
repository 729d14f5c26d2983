//! Pid files, in directories that users of less rights may write to.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Writes a pid file in one step, as runc does: a process that waits for it never reads half of it,
/// and a symbolic link in its place is replaced, not followed.
pub(crate) fn write(path: &Path, pid: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let new = path.with_file_name(hidden);
    // A killed rvm may have left the file, and an attacker a link. Neither is opened.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::create_new(&new)?;
    let written = file
        .write_all(pid.to_string().as_bytes())
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_symbolic_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (pid_file, victim) = (dir.path().join("pid"), dir.path().join("victim"));
        fs::write(&victim, "mine").unwrap();
        for planted in ["pid", ".pid"] {
            symlink(&victim, dir.path().join(planted)).unwrap();
            write(&pid_file, 4711).unwrap();
            assert_eq!(fs::read_to_string(&victim).unwrap(), "mine", "{planted}");
            assert!(fs::symlink_metadata(&pid_file).unwrap().is_file());
            assert_eq!(fs::read_to_string(&pid_file).unwrap(), "4711");
            fs::remove_file(&pid_file).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_in_the_way_is_reported_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        fs::create_dir(&pid_file).unwrap();
        assert!(write(&pid_file, 1).is_err());
        assert!(!dir.path().join(".pid").exists());
    }
}
