//! The bytes of files without a name: in a file beside the state if the machine has given one, and
//! otherwise in the state.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The most bytes in the state. They are in memory several times when the machine is saved.
pub const MAX_IN_STATE: u64 = 16 << 20;

/// The most bytes in a file: what a slow disk takes in less time than saving may take.
pub const MAX_IN_FILE: u64 = 4 << 30;

/// The most pieces, each of which is in the state with its place: 4 MiB of them.
const MAX_PIECES: u32 = 1 << 18;

/// How many bytes are copied at once.
const STEP: usize = 1 << 20;

/// The file for the bytes of removed files, which the machine gives before it saves or restores the
/// device. At a restore it is to be what it was after the state was saved.
#[derive(Default)]
pub struct RemovedFiles(Mutex<Option<Arc<File>>>);

impl RemovedFiles {
    /// Gives a file, or takes it back.
    pub fn set(&self, file: Option<File>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = file.map(Arc::new);
    }

    fn get(&self) -> Option<Arc<File>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Bytes of a file.
#[derive(Debug, Serialize, Deserialize)]
pub enum Piece {
    Here(Vec<u8>),
    InFile {
        at: u64,
        length: u64,
        /// CRC-32
        checksum: u32,
    },
}

/// Where bytes are stored.
pub struct Store {
    file: Option<Arc<File>>,
    /// The end of what is in the file.
    end: u64,
    left: u64,
    left_pieces: u32,
}

impl Store {
    pub fn new(removed: &RemovedFiles) -> Self {
        let file = removed.get();
        Self {
            left: match file {
                Some(_) => MAX_IN_FILE,
                None => MAX_IN_STATE,
            },
            file,
            end: 0,
            left_pieces: MAX_PIECES,
        }
    }

    /// Stores what is at `start` of a file. EFBIG if that is too much.
    pub fn put(&mut self, from: &File, start: u64, length: u64) -> io::Result<Piece> {
        self.left = self.left.checked_sub(length).ok_or(Errno::FBIG)?;
        self.left_pieces = self.left_pieces.checked_sub(1).ok_or(Errno::FBIG)?;
        let Some(file) = &self.file else {
            // At most MAX_IN_STATE.
            let mut bytes = vec![0; length as usize];
            from.read_exact_at(&mut bytes, start)?;
            return Ok(Piece::Here(bytes));
        };
        let at = self.end;
        self.end += length;
        let checksum = copy((from, start), (file, at), length)?;
        Ok(Piece::InFile {
            at,
            length,
            checksum,
        })
    }

    /// Writes bytes that were stored to a file.
    pub fn take(&self, piece: &Piece, to: &File, start: u64) -> io::Result<()> {
        match (piece, &self.file) {
            (Piece::Here(bytes), _) => to.write_all_at(bytes, start),
            (Piece::InFile { .. }, None) => Err(io::Error::other("what it held is missing")),
            (
                Piece::InFile {
                    at,
                    length,
                    checksum,
                },
                Some(file),
            ) => match copy((file, *at), (to, start), *length)? {
                found if found == *checksum => Ok(()),
                _ => Err(io::Error::other("what it held is damaged")),
            },
        }
    }
}

/// Copies bytes from a place in a file to a place in another one, and returns their checksum.
fn copy(from: (&File, u64), to: (&File, u64), length: u64) -> io::Result<u32> {
    let mut checksum = crc32fast::Hasher::new();
    let mut buffer = vec![0; STEP];
    let mut copied = 0;
    while copied < length {
        let step = (length - copied).min(STEP as u64) as usize;
        let at = |start: u64| start.checked_add(copied).ok_or(Errno::OVERFLOW);
        from.0.read_exact_at(&mut buffer[..step], at(from.1)?)?;
        to.0.write_all_at(&buffer[..step], at(to.1)?)?;
        checksum.update(&buffer[..step]);
        copied += step as u64;
    }
    Ok(checksum.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn bytes_in_a_file_are_those_that_were_stored() {
        let bytes: Vec<u8> = (0..3 << 20).map(|n: u32| (n >> 4) as u8).collect();
        let (from, beside) = (file_of(&bytes), tempfile::tempfile().unwrap());
        let removed = RemovedFiles::default();
        removed.set(Some(beside.try_clone().unwrap()));
        let mut store = Store::new(&removed);
        store.put(&from, 0, 10).unwrap();
        let piece = store.put(&from, 5, (3 << 20) - 5).unwrap();
        let to = file_of(b"start");
        store.take(&piece, &to, 5).unwrap();
        let mut found = vec![0; bytes.len()];
        to.read_exact_at(&mut found, 0).unwrap();
        assert!(found[5..] == bytes[5..]);

        beside.write_all_at(b"x", 1 << 20).unwrap();
        let damaged = store.take(&piece, &to, 5).unwrap_err();
        assert_eq!(damaged.to_string(), "what it held is damaged");
        beside.set_len(100).unwrap();
        assert!(store.take(&piece, &to, 5).is_err(), "it is cut");
        removed.set(None);
        let missing = Store::new(&removed).take(&piece, &to, 5).unwrap_err();
        assert_eq!(missing.to_string(), "what it held is missing");
    }

    #[test]
    fn places_beyond_every_file_are_errors() {
        let removed = RemovedFiles::default();
        removed.set(Some(file_of(b"text")));
        let store = Store::new(&removed);
        for (at, length, start) in [(u64::MAX, 10, 0), (0, u64::MAX, 0), (0, 1, u64::MAX)] {
            let piece = Piece::InFile {
                at,
                length,
                checksum: 0,
            };
            assert!(store.take(&piece, &file_of(b""), start).is_err());
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let from = file_of(&[1; 100]);
        let mut store = Store::new(&RemovedFiles::default());
        store.left = 99;
        let refused = store.put(&from, 0, 100).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EFBIG));
        store.left_pieces = 1;
        assert!(store.put(&from, 0, 10).is_ok());
        assert!(store.put(&from, 0, 10).is_err());
    }
}
