//! An error and its sources as one line, for a log.

use std::error::Error;
use std::fmt::Write as _;

/// `what failed: because of this: and that`
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
