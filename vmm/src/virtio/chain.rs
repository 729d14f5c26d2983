//! Descriptor chains, checked as a whole before a device sees them.
//!
//! The rings are virtio-queue's; this module walks a chain itself because an iterator that ends on
//! a malformed descriptor cannot be told from one that reached the end. Here a chain is either
//! sound, and then all of it lies in guest memory, or an error.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use smallvec::SmallVec;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory as _};

use crate::memory::{GuestMemory, GuestSlice};

/// The most buffers a chain may have. readv and writev take no more (UIO_MAXIOV), and a guest that
/// describes one byte per buffer could otherwise make us spend 64 KiB of memory and time on each
/// of its requests.
pub const MAX_SEGMENTS: usize = 1024;

/// A queue or a chain that breaks the rules of the virtio specification, version 1.2.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The rings cannot be read, or claim more entries than they have.
    #[error("the available ring is broken")]
    Ring(#[from] virtio_queue::Error),
    /// A descriptor's number is not below the size of its table.
    #[error("descriptor {0} lies outside its table")]
    Index(u16),
    /// The descriptor table itself cannot be read.
    #[error("the descriptor table lies outside guest memory")]
    Table,
    /// Longer than its table, so it runs in a circle, or than [`MAX_SEGMENTS`].
    #[error("the descriptor chain does not end")]
    Endless,
    /// An indirect table inside another, together with a next descriptor, or of an impossible size.
    #[error("malformed indirect descriptor")]
    Indirect,
    /// A buffer for the driver's data after one for the device's (section 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// A buffer that is not in guest memory.
    #[error("a buffer lies outside guest memory")]
    Buffer,
    /// Fewer bytes than the request needs.
    #[error("the buffers are too short: {0}")]
    Short(&'static str),
}

/// A request: what the driver wrote for the device, and where the device may answer.
#[derive(Debug)]
pub struct Chain<'m> {
    /// The number under which the chain is returned to the driver.
    pub head: u16,
    /// What the driver wrote.
    pub readable: Buffers<'m>,
    /// Where the device may write.
    pub writable: Buffers<'m>,
}

/// The next request that the driver has made available, if there is one.
pub fn pop<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
) -> Result<Option<Chain<'m>>, ChainError> {
    let Some(head) = queue.iter(memory)?.next().map(|chain| chain.head_index()) else {
        return Ok(None);
    };
    Chain::walk(memory, GuestAddress(queue.desc_table()), queue.size(), head).map(Some)
}

/// Gives the chain back to the driver with `written` bytes of answer.
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
        let (mut table, mut size, mut index) = (table, size, head);
        let mut left = size;
        let mut indirect = false;
        loop {
            let descriptor = read_descriptor(memory, table, size, index)?;
            left = left.checked_sub(1).ok_or(ChainError::Endless)?;
            if descriptor.refers_to_indirect_table() {
                if indirect || descriptor.has_next() {
                    return Err(ChainError::Indirect);
                }
                (table, size) = indirect_table(&descriptor)?;
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

fn read_descriptor(
    memory: &GuestMemory,
    table: GuestAddress,
    size: u16,
    index: u16,
) -> Result<Descriptor, ChainError> {
    if index >= size {
        return Err(ChainError::Index(index));
    }
    let offset = u64::from(index) * size_of::<Descriptor>() as u64;
    let address = table.0.checked_add(offset).ok_or(ChainError::Table)?;
    memory
        .read_obj(GuestAddress(address))
        .map_err(|_| ChainError::Table)
}

fn indirect_table(descriptor: &Descriptor) -> Result<(GuestAddress, u16), ChainError> {
    let entry = size_of::<Descriptor>() as u32;
    let entries = u16::try_from(descriptor.len() / entry).map_err(|_| ChainError::Indirect)?;
    if entries == 0 || !descriptor.len().is_multiple_of(entry) || descriptor.is_write_only() {
        return Err(ChainError::Indirect);
    }
    Ok((descriptor.addr(), entries))
}

/// One side of a chain, consumed from the front.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    segments: SmallVec<[GuestSlice<'m>; 4]>,
}

impl<'m> Buffers<'m> {
    /// The bytes left.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|segment| segment.len()).sum()
    }

    /// No bytes left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first `bytes` off.
    pub fn split_to(&mut self, bytes: usize) -> Result<Self, ChainError> {
        let mut front = Self::default();
        let mut wanted = bytes;
        while wanted > 0 {
            let Some(first) = self.segments.first_mut() else {
                return Err(ChainError::Short("split"));
            };
            if first.len() > wanted {
                let (taken, rest) = first.split_at(wanted).map_err(|_| ChainError::Buffer)?;
                *first = rest;
                front.segments.push(taken);
                wanted = 0;
            } else {
                wanted -= first.len();
                front.segments.push(self.segments.remove(0));
            }
        }
        Ok(front)
    }

    /// Copies the first bytes out, as many as fit, and says how many.
    pub fn read(&mut self, target: &mut [u8]) -> usize {
        let bytes = target.len().min(self.len());
        let Ok(front) = self.split_to(bytes) else {
            return 0;
        };
        let mut done = 0;
        for segment in &front.segments {
            done += segment.copy_to(&mut target[done..]);
        }
        done
    }

    /// Copies `source` to the front, as much of it as fits, and says how much.
    pub fn write(&mut self, source: &[u8]) -> usize {
        let bytes = source.len().min(self.len());
        let Ok(front) = self.split_to(bytes) else {
            return 0;
        };
        let mut done = 0;
        for segment in &front.segments {
            segment.copy_from(&source[done..]);
            done += segment.len();
        }
        done
    }

    /// Takes a structure off the front; `what` names it if it is not all there.
    pub fn read_obj<T: ByteValued + Default>(
        &mut self,
        what: &'static str,
    ) -> Result<T, ChainError> {
        let mut object = T::default();
        match self.read(object.as_mut_slice()) {
            read if read == size_of::<T>() => Ok(object),
            _ => Err(ChainError::Short(what)),
        }
    }

    /// Puts a structure at the front; `what` names it if it does not fit.
    pub fn write_obj<T: ByteValued>(
        &mut self,
        object: &T,
        what: &'static str,
    ) -> Result<(), ChainError> {
        match self.write(object.as_slice()) {
            written if written == size_of::<T>() => Ok(()),
            _ => Err(ChainError::Short(what)),
        }
    }

    /// The pieces of guest memory, front first.
    pub fn segments(&self) -> &[GuestSlice<'m>] {
        &self.segments
    }

    /// writev(2) of everything that is left, or pwritev(2) when `offset` is given. Returns the
    /// bytes written and consumes nothing.
    pub fn write_to(&self, file: impl AsFd, offset: Option<u64>) -> io::Result<usize> {
        self.transfer(&file, offset, libc::writev, libc::pwritev)
    }

    /// readv(2) into everything that is left, or preadv(2) when `offset` is given. Returns the
    /// bytes read and consumes nothing.
    pub fn read_from(&self, file: impl AsFd, offset: Option<u64>) -> io::Result<usize> {
        let read = self.transfer(&file, offset, libc::readv, libc::preadv)?;
        let mut left = read;
        for segment in &self.segments {
            let filled = left.min(segment.len());
            vm_memory::bitmap::Bitmap::mark_dirty(segment.bitmap(), 0, filled);
            left -= filled;
        }
        Ok(read)
    }

    #[expect(
        unsafe_code,
        reason = "vectored I/O on memory that the guest may change meanwhile"
    )]
    fn transfer(
        &self,
        file: &impl AsFd,
        offset: Option<u64>,
        sequential: unsafe extern "C" fn(i32, *const libc::iovec, i32) -> isize,
        positioned: unsafe extern "C" fn(i32, *const libc::iovec, i32, libc::off_t) -> isize,
    ) -> io::Result<usize> {
        let vectors: SmallVec<[libc::iovec; 4]> = self
            .segments
            .iter()
            .map(|segment| libc::iovec {
                iov_base: segment.ptr_guard_mut().as_ptr().cast(),
                iov_len: segment.len(),
            })
            .collect();
        let fd = file.as_fd().as_raw_fd();
        // MAX_SEGMENTS bounds the count.
        let count = vectors.len() as i32;
        // SAFETY: every vector is a live slice of mapped guest memory, which stays mapped while
        // `self` borrows it. The kernel accesses it as the guest does; no Rust reference to it
        // exists. `fd` is open while `file` is borrowed.
        let result = unsafe {
            match offset {
                None => sequential(fd, vectors.as_ptr(), count),
                Some(offset) => {
                    let offset = libc::off_t::try_from(offset)
                        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
                    positioned(fd, vectors.as_ptr(), count, offset)
                }
            }
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice};
    use crate::virtio::fake::Driver;
    use virtio_bindings::bindings::virtio_ring::{
        VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    };

    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
    const BUFFER: u64 = 0x40_0000;

    /// Answers each request with the bytes that came with it.
    struct Echo;

    impl VirtioDevice for Echo {
        fn info(&self) -> DeviceInfo {
            DeviceInfo {
                id: 42,
                queue_sizes: &[16],
                features: 0,
            }
        }

        fn process_queue(
            &mut self,
            index: usize,
            io: &mut DeviceIo<'_>,
        ) -> Result<(), DeviceError> {
            io.drain(index, |mut chain| {
                let mut bytes = vec![0; chain.readable.len()];
                chain.readable.read(&mut bytes);
                Ok(chain.writable.write(&bytes) as u32)
            })
            .map_err(|source| DeviceError::Queue {
                device: "echo",
                queue: index,
                source,
            })
        }
    }

    fn error_of(descriptors: &[Descriptor]) -> ChainError {
        let mut driver = Driver::new(Echo);
        driver.publish(0, 0, descriptors);
        match driver.ring(0) {
            Err(DeviceError::Queue { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_are_served_in_order() {
        let mut driver = Driver::new(Echo);
        for text in [b"one", b"two"] {
            driver.post(0, text, 8);
        }
        driver.ring(0).unwrap();
        assert_eq!(driver.answer(0).unwrap(), b"one");
        assert_eq!(driver.answer(0).unwrap(), b"two");
        assert_eq!(driver.answer(0), None);
    }

    #[test]
    fn an_indirect_table_is_followed() {
        let mut driver = Driver::new(Echo);
        driver
            .memory()
            .write_slice(b"hello", GuestAddress(BUFFER))
            .unwrap();
        let table = GuestAddress(BUFFER + 0x1000);
        driver
            .memory()
            .write_obj(Descriptor::new(BUFFER, 5, NEXT, 1), table)
            .unwrap();
        let answer = Descriptor::new(BUFFER + 0x100, 5, WRITE, 0);
        driver
            .memory()
            .write_obj(answer, GuestAddress(table.0 + 16))
            .unwrap();
        driver.publish(0, 3, &[Descriptor::new(table.0, 32, INDIRECT, 0)]);
        driver.ring(0).unwrap();
        let mut bytes = [0; 5];
        driver
            .memory()
            .read_slice(&mut bytes, GuestAddress(BUFFER + 0x100))
            .unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn a_circle_ends_in_an_error() {
        let circle = [
            Descriptor::new(BUFFER, 1, NEXT, 1),
            Descriptor::new(BUFFER, 1, NEXT, 0),
        ];
        assert!(matches!(error_of(&circle), ChainError::Endless));
    }

    #[test]
    fn a_next_beyond_the_table_is_an_error() {
        let beyond = [Descriptor::new(BUFFER, 1, NEXT, 16)];
        assert!(matches!(error_of(&beyond), ChainError::Index(16)));
    }

    #[test]
    fn a_buffer_beyond_memory_is_an_error() {
        for (address, length) in [(u64::MAX - 4, 8), (32 << 20, 1), ((32 << 20) - 4, 8)] {
            let buffer = [Descriptor::new(address, length, 0, 0)];
            assert!(
                matches!(error_of(&buffer), ChainError::Buffer),
                "{address:#x}"
            );
        }
    }

    #[test]
    fn readable_after_writable_is_an_error() {
        let order = [
            Descriptor::new(BUFFER, 1, NEXT | WRITE, 1),
            Descriptor::new(BUFFER, 1, 0, 0),
        ];
        assert!(matches!(error_of(&order), ChainError::Order));
    }

    #[test]
    fn malformed_indirect_tables_are_errors() {
        for (length, flags) in [
            (0, INDIRECT),
            (17, INDIRECT),
            (16, INDIRECT | NEXT),
            (16, INDIRECT | WRITE),
        ] {
            let descriptor = [Descriptor::new(BUFFER, length, flags, 0)];
            assert!(
                matches!(error_of(&descriptor), ChainError::Indirect),
                "{length} {flags}"
            );
        }
    }

    #[test]
    fn an_indirect_table_within_another_is_an_error() {
        let mut driver = Driver::new(Echo);
        let inner = Descriptor::new(BUFFER, 16, INDIRECT, 0);
        driver
            .memory()
            .write_obj(inner, GuestAddress(BUFFER))
            .unwrap();
        driver.publish(0, 0, &[Descriptor::new(BUFFER, 16, INDIRECT, 0)]);
        let error = driver.ring(0).unwrap_err();
        assert!(matches!(
            error,
            DeviceError::Queue {
                source: ChainError::Indirect,
                ..
            }
        ));
    }

    #[test]
    fn an_available_ring_that_runs_ahead_of_itself_is_an_error() {
        let mut driver = Driver::new(Echo);
        for _ in 0..17 {
            driver.publish(0, 0, &[Descriptor::new(BUFFER, 1, 0, 0)]);
        }
        let error = driver.ring(0).unwrap_err();
        assert!(matches!(
            error,
            DeviceError::Queue {
                source: ChainError::Ring(_),
                ..
            }
        ));
    }

    proptest::proptest! {
        #[test]
        fn no_descriptors_make_a_device_panic(
            raw in proptest::collection::vec((0..u64::MAX, 0..u32::MAX, 0..8_u16, 0..20_u16), 1..16),
            near in proptest::bool::ANY,
        ) {
            let descriptors: Vec<_> = raw
                .iter()
                .map(|&(address, length, flags, next)| {
                    let (address, length) =
                        if near { (address % (40 << 20), length % 70000) } else { (address, length) };
                    Descriptor::new(address, length, flags, next)
                })
                .collect();
            let mut driver = Driver::new(Echo);
            driver.publish(0, 0, &descriptors);
            let _ = driver.ring(0);
        }

        #[test]
        fn splitting_a_buffer_keeps_every_byte(cut in 0..100_usize) {
            let memory = crate::memory::map(2).unwrap();
            let bytes: Vec<u8> = (0..100).collect();
            memory.write_slice(&bytes, GuestAddress(0)).unwrap();
            let mut whole = Buffers::default();
            for (start, length) in [(0, 10), (10, 0), (10, 40), (50, 50)] {
                whole.segments.push(memory.get_slice(GuestAddress(start), length).unwrap());
            }
            let mut front = whole.split_to(cut).unwrap();
            let (mut a, mut b) = (vec![0; cut], vec![0; 100 - cut]);
            proptest::prop_assert_eq!((front.read(&mut a), whole.read(&mut b)), (cut, 100 - cut));
            proptest::prop_assert_eq!([a, b].concat(), bytes);
        }
    }
}
