//! Starting threads.

use std::io;
use std::thread;

/// The stack of every thread, in bytes. virtiofsd's deepest calls and the copy of a packet need a
/// fraction of it.
const STACK_SIZE: usize = 256 * 1024;

/// Starts a thread that ends with the process. Names are at most 15 bytes long, see prctl(2).
pub fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name)
        .stack_size(STACK_SIZE)
        .spawn(work)?;
    Ok(())
}
