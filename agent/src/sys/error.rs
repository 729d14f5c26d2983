//! A failed system call together with what it was for.

use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
#[error("{action}: {}", errno_text(*.errno))]
pub struct OsError {
    /// The action with its path or id, such as `mount proc on /proc`.
    pub action: String,
    pub errno: Errno,
}

/// Adds the purpose of a system call to its error.
pub trait Doing<T> {
    /// `action` runs only on failure.
    fn doing<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, OsError>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, OsError> {
        self.map_err(|errno| OsError {
            action: action().into(),
            errno,
        })
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, OsError> {
        self.map_err(|error| OsError {
            action: action().into(),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })
    }
}

/// The text of an error number as Go prints it (`no such file or directory`): engines look for
/// these words in what a runtime says.
pub fn errno_text(errno: Errno) -> String {
    let full = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    let text = full.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_text_reads_as_go_prints_it() {
        assert_eq!(errno_text(Errno::NOENT), "no such file or directory");
        assert_eq!(errno_text(Errno::ACCESS), "permission denied");
        assert_eq!(errno_text(Errno::NOEXEC), "exec format error");
    }
}
