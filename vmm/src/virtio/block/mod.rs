//! virtio-blk: a file or block device of the host as a disk of the guest, section 5.2 of the
//! specification.
//!
//! Requests are executed one after the other, on a thread that may block. An error of the file is
//! an I/O error of its request alone.
//!
//! The file is read and written through the host's page cache: machines share the pages of a layer
//! that they all use, and the guest's buffers need no alignment. FLUSH writes the cache out, so
//! what a guest has flushed survives as on a disk with a cache of its own.

mod spec;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rvm_protocol::vmm::{DiskConfig, MAX_BLOCK_SIZE, Rate};
use vm_memory::ByteValued;

pub use self::spec::QUEUE_SIZES;

use self::spec::{Config, Header, ID_BYTES, QUEUE, Range, SECTOR_SHIFT, Status, feature, request};
use super::backing::Backing;
use super::chain::{Buffers, Chain, ChainError};
use super::device::{
    Busy, DeviceError, DeviceInfo, DeviceIo, HostFds, Readiness, VirtioDevice, read_config_space,
};
use super::rate::Limiter;
use super::spec::device_id;
use crate::file_id::FileId;

/// The most sectors of one discard or write-zeroes range: 1 GiB. On file systems that write zeroes
/// out, a larger range would block the disk for long.
const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// The most ranges of one request.
const MAX_RANGES: u32 = 16;

/// The most data segments of a request. With header and status they fit the queue.
const SEG_MAX: u32 = 254;

/// The most bytes of a data segment.
const SIZE_MAX: u32 = 64 << 10;

/// The most bytes that a request reads or writes, which is what its segments can have. A guest
/// whose request names all of its memory, some times over, would keep the disks' thread for
/// minutes, and whoever unplugs a disk. Linux' requests have 1.25 MiB.
const MAX_BYTES: u64 = SEG_MAX as u64 * SIZE_MAX as u64;

const NAME: &str = "block";

/// The token of the limiter's timer, the only host descriptor.
const TOKEN_TIMER: u32 = 0;

pub struct Block {
    file: File,
    limiter: Limiter,
    bytes: u64,
    read_only: bool,
    id: [u8; ID_BYTES],
    config: Config,
}

/// A request failed.
enum Failure {
    /// The guest receives this status.
    Status(Status),
    /// The chain is malformed, and the device needs a reset.
    Chain(ChainError),
}

impl From<ChainError> for Failure {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Status(match error.raw_os_error() {
            // The driver then does without the operation, or emulates it.
            Some(libc::EOPNOTSUPP) => Status::Unsupported,
            _ => Status::IoError,
        })
    }
}

impl Block {
    /// A disk of the size that `file` has now. The serial number is cut to 20 bytes. EINVAL if the
    /// size of its blocks is out of bounds.
    pub fn new(mut file: File, disk: &DiskConfig, rate: &Rate) -> io::Result<Self> {
        let block = disk.block_size;
        if !block.is_power_of_two() || !(1 << SECTOR_SHIFT..=MAX_BLOCK_SIZE).contains(&block) {
            return Err(Errno::INVAL.into());
        }
        // A part of a block at the end cannot be had.
        let bytes = file.seek(SeekFrom::End(0))? / u64::from(block) * u64::from(block);
        let id = disk.serial.as_bytes();
        let mut padded = [0; ID_BYTES];
        let length = id.len().min(ID_BYTES);
        padded[..length].copy_from_slice(&id[..length]);
        let config = Config {
            capacity: bytes >> SECTOR_SHIFT,
            size_max: SIZE_MAX,
            seg_max: SEG_MAX,
            blk_size: block,
            max_discard_sectors: MAX_RANGE_SECTORS,
            max_discard_seg: MAX_RANGES,
            discard_sector_alignment: 8,
            max_write_zeroes_sectors: MAX_RANGE_SECTORS,
            max_write_zeroes_seg: MAX_RANGES,
            write_zeroes_may_unmap: 1,
            ..Config::default()
        };
        Ok(Self {
            file,
            limiter: Limiter::new(rate)?,
            bytes,
            read_only: disk.read_only,
            id: padded,
            config,
        })
    }

    fn backing(&self) -> Backing {
        Backing {
            bytes: self.bytes,
            block_size: self.config.blk_size,
            file: FileId::of_regular(&self.file),
        }
    }

    /// Serves the next request. False if there is none.
    fn serve_next(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<bool, ChainError> {
        let Some(chain) = io.pop(index)? else {
            return Ok(false);
        };
        let head = chain.head;
        // Of a request's header and status; the data of one that is refused is not moved.
        let bytes = chain.readable.len().max(chain.writable.len());
        let written = self.serve(chain)?;
        self.limiter.count(bytes.min(MAX_BYTES as usize));
        io.push(index, head, written)?;
        Ok(true)
    }

    fn serve(&self, mut chain: Chain<'_>) -> Result<u32, ChainError> {
        let data_bytes = chain
            .writable
            .len()
            .checked_sub(1)
            .ok_or(ChainError::Short("block request's status"))?;
        let data = chain.writable.split_to(data_bytes)?;
        let header = chain.readable.read_obj("block request's header")?;
        let (written, status) = match self.execute(&header, chain.readable, data) {
            Ok(written) => (written, Status::Ok),
            Err(Failure::Status(status)) => (0, status),
            Err(Failure::Chain(error)) => return Err(error),
        };
        chain
            .writable
            .write_obj(&(status as u8), "block request's status")?;
        // The driver treats the count as a hint.
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    /// Returns the number of bytes written to `response`.
    fn execute(
        &self,
        header: &Header,
        data: Buffers<'_>,
        mut response: Buffers<'_>,
    ) -> Result<usize, Failure> {
        match header.kind {
            request::IN => {
                let offset = self.data_offset(header.sector, &response)?;
                transfer_all(&mut response, offset, |rest, offset| {
                    rest.read_from(&self.file, Some(offset))
                })
            }
            request::OUT => {
                self.refuse_if_read_only()?;
                let mut data = data;
                let offset = self.data_offset(header.sector, &data)?;
                transfer_all(&mut data, offset, |rest, offset| {
                    rest.write_to(&self.file, Some(offset))
                })?;
                Ok(0)
            }
            request::FLUSH => Ok(self.file.sync_data().map(|()| 0)?),
            request::GET_ID => Ok(response.write(&self.id)),
            request::DISCARD => self.each_range(data, |range, offset, bytes| match range.flags {
                0 => self.allocate(FallocateFlags::PUNCH_HOLE, offset, bytes),
                _ => Err(Failure::Status(Status::Unsupported)),
            }),
            request::WRITE_ZEROES => self.each_range(data, |range, offset, bytes| {
                self.write_zeroes(range.flags, offset, bytes)
            }),
            _ => Err(Failure::Status(Status::Unsupported)),
        }
    }

    fn each_range(
        &self,
        mut ranges: Buffers<'_>,
        execute: impl Fn(&Range, u64, u64) -> Result<(), Failure>,
    ) -> Result<usize, Failure> {
        self.refuse_if_read_only()?;
        let count = ranges.len() / size_of::<Range>();
        if count == 0
            || count > MAX_RANGES as usize
            || !ranges.len().is_multiple_of(size_of::<Range>())
        {
            return Err(Failure::Status(Status::Unsupported));
        }
        for _ in 0..count {
            let range: Range = ranges.read_obj("block range")?;
            if range.num_sectors > MAX_RANGE_SECTORS {
                return Err(Failure::Status(Status::Unsupported));
            }
            let bytes = u64::from(range.num_sectors) << SECTOR_SHIFT;
            let offset = self.offset(range.sector, bytes)?;
            if bytes > 0 {
                execute(&range, offset, bytes)?;
            }
        }
        Ok(0)
    }

    /// Sectors that may be deallocated are, if the disk can: they read as zeroes then, too.
    fn write_zeroes(&self, flags: u32, offset: u64, bytes: u64) -> Result<(), Failure> {
        let zero = || self.allocate(FallocateFlags::ZERO_RANGE, offset, bytes);
        match flags {
            0 => zero(),
            Range::UNMAP => match self.allocate(FallocateFlags::PUNCH_HOLE, offset, bytes) {
                Err(Failure::Status(Status::Unsupported)) => zero(),
                result => result,
            },
            _ => Err(Failure::Status(Status::Unsupported)),
        }
    }

    fn allocate(&self, mode: FallocateFlags, offset: u64, bytes: u64) -> Result<(), Failure> {
        let done = fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, bytes);
        Ok(done.map_err(io::Error::from)?)
    }

    fn refuse_if_read_only(&self) -> Result<(), Failure> {
        if self.read_only {
            Err(Failure::Status(Status::IoError))
        } else {
            Ok(())
        }
    }

    /// The offset of data that is to be read or written.
    fn data_offset(&self, sector: u64, data: &Buffers<'_>) -> Result<u64, Failure> {
        let bytes = data.len() as u64;
        if bytes > MAX_BYTES {
            return Err(Failure::Status(Status::IoError));
        }
        self.offset(sector, bytes)
    }

    /// The offset of a sector in the file, if `bytes` bytes from there lie on the disk.
    fn offset(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let outside = || Failure::Status(Status::IoError);
        let start = sector.checked_mul(1 << SECTOR_SHIFT).ok_or_else(outside)?;
        let end = start.checked_add(bytes).ok_or_else(outside)?;
        if end > self.bytes || !bytes.is_multiple_of(1 << SECTOR_SHIFT) {
            return Err(outside());
        }
        Ok(start)
    }
}

/// Repeats a transfer until all bytes are transferred.
fn transfer_all(
    buffers: &mut Buffers<'_>,
    mut offset: u64,
    transfer: impl Fn(&Buffers<'_>, u64) -> io::Result<usize>,
) -> Result<usize, Failure> {
    let total = buffers.len();
    while !buffers.is_empty() {
        match transfer(buffers, offset) {
            // The file was truncated.
            Ok(0) => return Err(Failure::Status(Status::IoError)),
            Ok(bytes) => {
                buffers.split_to(bytes)?;
                offset += bytes as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(total)
}

impl VirtioDevice for Block {
    fn info(&self) -> DeviceInfo {
        let mut features =
            feature::SIZE_MAX | feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
        features |= match self.read_only {
            true => feature::READ_ONLY,
            false => feature::DISCARD | feature::WRITE_ZEROES,
        };
        DeviceInfo {
            id: device_id::BLOCK,
            queue_sizes: QUEUE_SIZES,
            features,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_space(self.config.as_slice(), offset, data);
    }

    fn start(&mut self, _features: u64, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let watched = self.limiter.watch(io.host, TOKEN_TIMER);
        watched.map_err(DeviceError::host(NAME, "watch the limiter's timer"))
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        loop {
            let admitted = self.limiter.admits();
            if !admitted.map_err(DeviceError::host(NAME, "set the limiter's timer"))? {
                return Ok(());
            }
            let served = self.serve_next(index, io);
            if !served.map_err(DeviceError::queue(NAME, index))? {
                return Ok(());
            }
        }
    }

    fn process_host_event(
        &mut self,
        _token: u32,
        _ready: Readiness,
        io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        self.process_queue(QUEUE, io)
    }

    fn reset(&mut self, host: &mut dyn HostFds) {
        self.limiter.unwatch(host);
    }

    /// No request is being executed: only what the file was.
    fn save(&mut self, _io: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
        self.backing().save()
    }

    fn restore(&mut self, state: &[u8], _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        self.backing().check(state, NAME)
    }
}

#[cfg(test)]
mod tests;
