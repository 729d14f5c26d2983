//! INIT once more, as the guest sent it: virtiofsd's server keeps what was agreed on to itself.

use std::io;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtiofsd::fuse::{InHeader, OutHeader};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::super::Fs;
use super::super::message::opcode;
use crate::memory::GuestMemory;
use crate::virtio::fs::DeviceError;

/// The most bytes that follow the header of an INIT.
pub const INIT_BYTES: usize = 64;

/// Memory for one request, as a driver has it.
const MEMORY: usize = 0x5000;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const REQUEST: u64 = 0x3000;
const ANSWER: u64 = 0x4000;
const ANSWER_BYTES: u32 = 0x1000;

/// Has virtiofsd execute an INIT request with this body.
pub fn init(fs: &Fs, body: &[u8]) -> Result<(), DeviceError> {
    let failed = |error| DeviceError::host(super::super::NAME, "FUSE_INIT")(error);
    let memory = request(body).map_err(|error| failed(io::Error::other(error)))?;
    let mut queue = queue().map_err(|error| failed(io::Error::other(error)))?;
    let chains = queue.iter(&memory).map(|mut chains| chains.next());
    let chain = chains.map_err(|error| failed(io::Error::other(error)))?;
    let chain = chain.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    fs.pass_on(&memory, chain)?;
    let answer: Result<OutHeader, _> = memory.read_obj(GuestAddress(ANSWER));
    match answer.map(|answer| answer.error) {
        Ok(0) => Ok(()),
        Ok(error) => Err(failed(io::Error::from_raw_os_error(-error))),
        Err(error) => Err(failed(io::Error::other(error))),
    }
}

fn request(body: &[u8]) -> Result<GuestMemory, Box<dyn std::error::Error + Send + Sync>> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)])?;
    let length = size_of::<InHeader>() + body.len();
    let header = InHeader {
        len: length as u32,
        opcode: opcode::INIT,
        ..InHeader::default()
    };
    memory.write_slice(&[header.as_slice(), body].concat(), GuestAddress(REQUEST))?;
    // struct virtq_desc: addr, len, flags, next.
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    for (index, (address, length, flags, next)) in [
        (REQUEST, length as u32, NEXT, 1_u16),
        (ANSWER, ANSWER_BYTES, WRITE, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let place = DESCRIPTORS + 16 * index as u64;
        memory.write_obj(address, GuestAddress(place))?;
        memory.write_obj(length, GuestAddress(place + 8))?;
        memory.write_obj([flags, next], GuestAddress(place + 12))?;
    }
    // struct virtq_avail: flags, idx, ring.
    memory.write_obj([0_u16, 1, 0], GuestAddress(AVAILABLE))?;
    Ok(memory)
}

fn queue() -> Result<Queue, virtio_queue::Error> {
    let mut queue = Queue::new(2)?;
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
    queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
    queue.set_used_ring_address(Some(USED as u32), None);
    queue.set_ready(true);
    Ok(queue)
}
