//! The log of the guest's console on the host: a file of bounded size.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// The largest log, in bytes. A guest that prints without end would otherwise fill the host's disk.
/// When the log is full it starts over, so that it always holds the guest's last lines.
pub const MAX_LOG: u64 = 1 << 20;

#[derive(Debug)]
pub struct ConsoleLog {
    file: File,
    length: u64,
}

impl ConsoleLog {
    /// Writes to `file` from its current position.
    pub fn new(mut file: File) -> io::Result<Self> {
        let length = file.stream_position()?;
        Ok(Self { file, length })
    }

    /// Appends `bytes`, and starts over first if the log would exceed [`MAX_LOG`].
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length + bytes.len() as u64 > MAX_LOG {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.set_len(0)?;
            self.length = 0;
        }
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}
