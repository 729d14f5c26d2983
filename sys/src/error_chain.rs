//! An error and its sources as one line, for a log or an answer.

use std::error::Error;
use std::fmt::Write as _;

/// Joins the messages of an error and of its sources: `start the machine: open /dev/kvm: …`
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Writing to a string does not fail.
        let _ = write!(line, ": {error}");
        source = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("start the machine")]
    struct Start(#[source] std::io::Error);

    #[test]
    fn an_error_is_told_with_its_sources() {
        let error = Start(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "start the machine: inner");
        let error = std::io::Error::other(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "inner");
    }
}
