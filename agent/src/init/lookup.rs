//! Finding a program as Go's `exec.LookPath` does, with its messages: engines tell exit code 126
//! from 127 by them.

use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use crate::sys::errno_text;

/// Why a program cannot be executed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// `process.args` names it by a path that leads nowhere.
    #[error("exec: {name:?}: stat {name}: {}", errno_text(*.errno))]
    Missing { name: String, errno: Errno },
    /// `process.args` names it by the path of a file that is no program.
    #[error("exec: {name:?}: {}", errno_text(*.errno))]
    NotExecutable { name: String, errno: Errno },
    /// `process.args` names a directory by its path. Go before 1.20 calls it "permission denied",
    /// later "is a directory", and an engine looks for the one that it knows.
    #[error("exec: {0:?}: is a directory: permission denied")]
    Directory(String),
    /// No directory of `PATH` has it.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// A relative directory of `PATH` has it.
    #[error("exec: {0:?}: cannot run executable found relative to current directory")]
    Relative(String),
}

/// Returns the path to execute for a program's name.
pub fn find(name: &str, search: &str) -> Result<String, LookupError> {
    if name.contains('/') {
        let refusal = match check(name) {
            Ok(()) => return Ok(name.to_owned()),
            Err(refusal) => refusal,
        };
        let name = name.to_owned();
        return Err(match refusal {
            Refusal::Missing(errno) => LookupError::Missing { name, errno },
            Refusal::NotExecutable(errno) => LookupError::NotExecutable { name, errno },
            Refusal::Directory => LookupError::Directory(name),
        });
    }
    let not_found = || LookupError::NotInPath(name.to_owned());
    if name.is_empty() || search.is_empty() {
        return Err(not_found());
    }
    for directory in search.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(name);
        let candidate = candidate.to_string_lossy();
        if check(&candidate).is_ok() {
            return match directory.starts_with('/') {
                true => Ok(candidate.into_owned()),
                false => Err(LookupError::Relative(name.to_owned())),
            };
        }
    }
    Err(not_found())
}

enum Refusal {
    Missing(Errno),
    NotExecutable(Errno),
    Directory,
}

fn check(path: &str) -> Result<(), Refusal> {
    let status = rustix::fs::stat(path).map_err(Refusal::Missing)?;
    if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
        return Err(Refusal::Directory);
    }
    // As execve(2) will: access(2) without the flag leaves a user's capabilities out.
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(errno) => Err(Refusal::NotExecutable(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn directory_with(name: &str, mode: u32) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        directory
    }

    #[test]
    fn a_name_is_searched_in_path_order() {
        let first = directory_with("tool", 0o644);
        let second = directory_with("tool", 0o755);
        let search = format!("{}:{}", first.path().display(), second.path().display());
        let expected = second.path().join("tool").display().to_string();
        assert_eq!(find("tool", &search), Ok(expected));
    }

    #[test]
    fn the_words_are_gos() {
        let directory = directory_with("plain", 0o644);
        let plain = directory.path().join("plain").display().to_string();
        let words = |name: &str, search: &str| find(name, search).unwrap_err().to_string();
        assert_eq!(
            words("foo", "/nowhere"),
            "exec: \"foo\": executable file not found in $PATH"
        );
        assert_eq!(
            words("foo", ""),
            "exec: \"foo\": executable file not found in $PATH"
        );
        assert_eq!(
            words("/x/y", ""),
            "exec: \"/x/y\": stat /x/y: no such file or directory"
        );
        assert_eq!(
            words(&plain, ""),
            format!("exec: {plain:?}: permission denied")
        );
        assert_eq!(
            words("/tmp", ""),
            "exec: \"/tmp\": is a directory: permission denied"
        );
    }
}
