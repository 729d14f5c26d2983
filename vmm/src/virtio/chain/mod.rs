//! Descriptor chains, validated as a whole before a device sees them.
//!
//! virtio-queue reads the rings; this module walks a chain itself, because virtio-queue's iterator
//! ends on a malformed descriptor in the same way as at the end of a chain. Here a chain is either
//! valid, and then all of it lies in guest memory, or an error.

mod buffers;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory as _, VolatileMemory as _};

use crate::memory::{GuestMemory, GuestSlice};

pub use buffers::Buffers;

/// The most buffers of a chain. readv(2) and writev(2) take no more (UIO_MAXIOV), and a guest whose
/// buffers have one byte each could otherwise make the VMM spend 64 KiB of memory and time on each
/// of its requests.
pub const MAX_SEGMENTS: usize = 1024;

/// A queue or a chain violates the virtio specification, version 1.2.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The rings lie outside guest memory, or claim more entries than they have.
    #[error("the available ring is broken")]
    Ring(#[from] virtio_queue::Error),
    /// More requests than the queue has room for are with the device at once.
    #[error("requests are made available again before they have returned")]
    Unreturned,
    #[error("descriptor {0} lies outside its table")]
    Index(u16),
    #[error("the descriptor table lies outside guest memory")]
    Table,
    /// Longer than its table, so it is a loop, or than [`MAX_SEGMENTS`].
    #[error("the descriptor chain does not end")]
    Endless,
    /// An indirect table inside another one, together with a next descriptor, or of a size that is
    /// not a multiple of a descriptor's.
    #[error("malformed indirect descriptor")]
    Indirect,
    /// A buffer that the device reads after one that it writes (section 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    #[error("a buffer lies outside guest memory")]
    Buffer,
    /// Fewer bytes than the named structure has.
    #[error("the buffers are too short: {0}")]
    Short(&'static str),
    /// More bytes than a device takes at once of the named structures.
    #[error("the buffers are too long: {0}")]
    Long(&'static str),
}

/// A request: buffers that the device reads, and buffers that it writes its response to.
#[derive(Debug)]
pub struct Chain<'m> {
    /// The index of the chain's first descriptor, under which it returns to the driver.
    pub head: u16,
    pub readable: Buffers<'m>,
    pub writable: Buffers<'m>,
}

/// Takes the next chain from the available ring, if there is one.
pub fn pop<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
) -> Result<Option<Chain<'m>>, ChainError> {
    let Some(head) = queue.iter(memory)?.next().map(|chain| chain.head_index()) else {
        return Ok(None);
    };
    // A guest that takes back nothing would otherwise have a device collect chains without end.
    if queue.next_avail().wrapping_sub(queue.next_used()) > queue.size() {
        return Err(ChainError::Unreturned);
    }
    Chain::walk(memory, GuestAddress(queue.desc_table()), queue.size(), head).map(Some)
}

/// Walks a chain that was popped earlier and not yet returned. The guest may have changed it since,
/// so it is validated again.
pub fn reopen<'m>(
    queue: &Queue,
    memory: &'m GuestMemory,
    head: u16,
) -> Result<Chain<'m>, ChainError> {
    Chain::walk(memory, GuestAddress(queue.desc_table()), queue.size(), head)
}

/// Puts a chain on the used ring, with `written` bytes of response.
pub fn push(
    queue: &mut Queue,
    memory: &GuestMemory,
    head: u16,
    written: u32,
) -> Result<(), ChainError> {
    Ok(queue.add_used(memory, head, written)?)
}

impl<'m> Chain<'m> {
    fn walk(
        memory: &'m GuestMemory,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<Self, ChainError> {
        let mut chain = Self {
            head,
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let (mut table, mut index) = (Table::new(memory, table, size)?, head);
        let mut left = size;
        let mut indirect = false;
        loop {
            let descriptor = table.read(index)?;
            left = left.checked_sub(1).ok_or(ChainError::Endless)?;
            if descriptor.refers_to_indirect_table() {
                if indirect || descriptor.has_next() {
                    return Err(ChainError::Indirect);
                }
                let (address, size) = indirect_table(&descriptor)?;
                table = Table::new(memory, address, size)?;
                (index, left, indirect) = (0, size, true);
                continue;
            }
            chain.add(memory, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
        }
    }

    fn add(&mut self, memory: &'m GuestMemory, descriptor: &Descriptor) -> Result<(), ChainError> {
        if !descriptor.is_write_only() && !self.writable.segments.is_empty() {
            return Err(ChainError::Order);
        }
        if self.readable.segments.len() + self.writable.segments.len() == MAX_SEGMENTS {
            return Err(ChainError::Endless);
        }
        let slice = memory
            .get_slice(descriptor.addr(), descriptor.len() as usize)
            .map_err(|_| ChainError::Buffer)?;
        let side = if descriptor.is_write_only() {
            &mut self.writable
        } else {
            &mut self.readable
        };
        side.segments.push(slice);
        Ok(())
    }
}

/// A table of descriptors, in one piece of guest memory.
struct Table<'m>(GuestSlice<'m>);

impl<'m> Table<'m> {
    fn new(memory: &'m GuestMemory, address: GuestAddress, size: u16) -> Result<Self, ChainError> {
        let bytes = usize::from(size) * size_of::<Descriptor>();
        let slice = memory.get_slice(address, bytes);
        slice.map(Self).map_err(|_| ChainError::Table)
    }

    fn read(&self, index: u16) -> Result<Descriptor, ChainError> {
        let offset = usize::from(index) * size_of::<Descriptor>();
        let descriptor = self.0.get_ref::<Descriptor>(offset);
        descriptor
            .map(|place| place.load())
            .map_err(|_| ChainError::Index(index))
    }
}

fn indirect_table(descriptor: &Descriptor) -> Result<(GuestAddress, u16), ChainError> {
    let entry = size_of::<Descriptor>() as u32;
    let entries = u16::try_from(descriptor.len() / entry).map_err(|_| ChainError::Indirect)?;
    if entries == 0 || !descriptor.len().is_multiple_of(entry) || descriptor.is_write_only() {
        return Err(ChainError::Indirect);
    }
    Ok((descriptor.addr(), entries))
}

#[cfg(test)]
mod tests;
