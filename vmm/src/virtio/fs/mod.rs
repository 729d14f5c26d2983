//! virtio-fs: a directory of the host as a file system of the guest, section 5.11 of the
//! specification.
//!
//! The file system is virtiofsd's, below a layer that lets the guest keep its page cache (see
//! `close_to_open.rs`); this is the device. Requests are executed one after the other on the
//! device's own thread, which may block and which takes on the identity of the guest's process
//! while it creates a file.

mod close_to_open;
mod spec;
mod versions;

use std::fs::File;
use std::io;

use rvm_protocol::SHARED_CACHE_TIMEOUT;
use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::passthrough::{self, CachePolicy, NegotiationMode, PassthroughFs};
use virtiofsd::server::Server;

use self::close_to_open::CloseToOpen;
use self::spec::{CONFIG_BYTES, QUEUE_SIZES, TAG_BYTES};
use super::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice, read_config_space};
use super::spec::device_id;
use crate::memory::GuestMemory;

const NAME: &str = "fs";

/// Descriptors that the guest's open files cannot take, for everything else that the process does.
const RESERVED_FDS: u64 = 256;

/// Resources that the file server needs from outside the jail.
pub struct ServerResources {
    /// /proc/self/fd, opened before the jail, where there is no /proc.
    pub proc_self_fd: File,
    /// RLIMIT_NOFILE
    pub max_fds: u64,
}

pub struct Fs {
    config: [u8; CONFIG_BYTES],
    server: Server<CloseToOpen>,
    /// The thread has a working directory and a umask of its own.
    fs_is_unshared: bool,
}

impl Fs {
    /// Serves the root directory of the calling process under `tag`, which is cut to 36 bytes.
    pub fn new(resources: ServerResources, tag: &str) -> io::Result<Self> {
        let fs = PassthroughFs::new(passthrough::Config {
            entry_timeout: SHARED_CACHE_TIMEOUT,
            attr_timeout: SHARED_CACHE_TIMEOUT,
            cache_policy: CachePolicy::Auto,
            root_dir: "/".to_owned(),
            xattr: true,
            proc_sfd_rawfd: Some(resources.proc_self_fd),
            announce_submounts: true,
            killpriv_v2: true,
            posix_acl: NegotiationMode::Auto,
            allow_direct_io: true,
            allow_mmap: true,
            guest_fd_limit: resources.max_fds.saturating_sub(RESERVED_FDS),
            ..Default::default()
        })?;
        fs.open_root_node()?;
        let mut config = [0; CONFIG_BYTES];
        let length = tag.len().min(TAG_BYTES);
        config[..length].copy_from_slice(&tag.as_bytes()[..length]);
        config[TAG_BYTES..].copy_from_slice(&1_u32.to_le_bytes());
        Ok(Self {
            config,
            server: Server::new(CloseToOpen::new(fs)),
            fs_is_unshared: false,
        })
    }

    /// virtiofsd changes its thread's working directory and umask, which threads otherwise share.
    fn unshare_fs_once(&mut self) -> Result<(), DeviceError> {
        if !self.fs_is_unshared {
            unshare_fs().map_err(DeviceError::host(NAME, "unshare(CLONE_FS)"))?;
            self.fs_is_unshared = true;
        }
        Ok(())
    }

    /// Executes one request and returns the length of the response.
    fn serve(
        &self,
        memory: &GuestMemory,
        request: DescriptorChain<&GuestMemory>,
    ) -> Result<u32, DeviceError> {
        let malformed = |reason| DeviceError::Protocol {
            device: NAME,
            reason,
        };
        let reader = Reader::new(memory, request.clone())
            .map_err(|_| malformed("the request lies outside guest memory"))?;
        let writer = Writer::new(memory, request)
            .map_err(|_| malformed("the response buffers lie outside guest memory"))?;
        let written = self
            .server
            .handle_message(reader, writer, None::<&mut ()>)
            .map_err(|_| malformed("malformed FUSE message"))?;
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }
}

impl VirtioDevice for Fs {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::FS,
            queue_sizes: QUEUE_SIZES,
            features: 0,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        self.unshare_fs_once()?;
        let malformed = || DeviceError::queue(NAME, index);
        while let Some(request) = io.pop_unparsed(index).map_err(malformed())? {
            let head = request.head_index();
            let written = self.serve(io.memory, request)?;
            io.push(index, head, written).map_err(malformed())?;
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "unshare can break what relies on shared state")]
fn unshare_fs() -> io::Result<()> {
    // SAFETY: CLONE_FS separates this thread's working directory, root and umask from the other
    // threads', none of which uses them.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
    Ok(())
}

#[cfg(test)]
mod tests;
