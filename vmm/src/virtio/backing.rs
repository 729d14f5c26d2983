//! The file behind a device, as it was when its machine was saved. A guest goes on from it as if
//! nothing had happened, with what it has of the file in its memory: so nothing may have.

use serde::{Deserialize, Serialize};

use super::device::{Busy, DeviceError};
use crate::file_id::FileId;

#[derive(Serialize, Deserialize)]
pub(super) struct Backing {
    pub(super) bytes: u64,
    pub(super) block_size: u32,
    /// None of a block device.
    pub(super) file: Option<FileId>,
}

impl Backing {
    pub(super) fn save(&self) -> Result<Vec<u8>, Busy> {
        postcard::to_stdvec(self).map_err(|error| Busy(error.to_string().into()))
    }

    /// Refuses a state of a machine that cannot go on with this file.
    pub(super) fn check(&self, state: &[u8], device: &'static str) -> Result<(), DeviceError> {
        let refused = |reason| DeviceError::State { device, reason };
        let saved = postcard::from_bytes::<Self>(state);
        let saved = saved.map_err(|_| refused("the state is damaged".to_owned()))?;
        match self.difference(&saved) {
            Some(difference) => Err(refused(difference)),
            None => Ok(()),
        }
    }

    /// Why a machine that was saved with the other file cannot go on with this one.
    fn difference(&self, saved: &Self) -> Option<String> {
        if (self.bytes, self.block_size) != (saved.bytes, saved.block_size) {
            return Some(format!(
                "it has {} bytes in blocks of {}, and had {} in blocks of {}",
                self.bytes, self.block_size, saved.bytes, saved.block_size
            ));
        }
        match (&self.file, &saved.file) {
            (Some(now), Some(then)) if now.was_written(then) => {
                Some("it has been written to since the machine was saved".to_owned())
            }
            // A device, or perhaps a copy.
            _ => None,
        }
    }
}
