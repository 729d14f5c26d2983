//! What containerd sends to the standard input of `start` and `-info`.

use std::io::{self, IsTerminal as _, Read as _};

use anyhow::Context as _;

/// The most bytes that are read.
const MAX_INPUT: u64 = 10 << 20;

/// Reads it to its end. A person at a terminal sends nothing.
pub fn read() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let input = io::stdin();
    if !input.is_terminal() {
        input
            .take(MAX_INPUT)
            .read_to_end(&mut bytes)
            .context("cannot read standard input")?;
    }
    Ok(bytes)
}
