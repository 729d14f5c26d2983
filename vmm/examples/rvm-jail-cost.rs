//! Enters the jail of a machine's process and applies the filters of its threads, and ends:
//! `tests/bench/run` counts the instructions of that.
//!
//!   unshare --pid --fork rvm-jail-cost jailed|free DIRECTORY
//!
//! `free` does the rest, such as starting the threads, without a jail. The directory is a mount, as
//! the one that a sandbox shares with its guest.

use std::path::PathBuf;

use anyhow::{Context, bail};
use rvm_protocol::vmm::{BackendConfig, FdIndex};
use rvm_vmm::jails::{self, ThreadKind};

/// The threads of a machine with one vCPU and shared files alone, beside the main one.
const THREADS: [ThreadKind; 2] = [ThreadKind::Vcpu, ThreadKind::Files];

fn main() -> anyhow::Result<()> {
    // As rvm-vmm, whose threads make their filters on it.
    rvm_sys::process_memory::share_one_heap();
    let mut words = std::env::args().skip(1);
    let (Some(mode), Some(directory)) = (words.next(), words.next()) else {
        bail!("usage: rvm-jail-cost jailed|free DIRECTORY");
    };
    let is_jailed = mode == "jailed";
    // A back end's jail is that of a machine. It opens nothing of these.
    let config = BackendConfig {
        parent: parent()?,
        vsock_device: FdIndex(0),
        files_device: FdIndex(0),
        vsock: Vec::new(),
        console_input: FdIndex(0),
        console: FdIndex(0),
        shared_dir: PathBuf::from(directory),
    };
    let _own = match is_jailed {
        true => Some(jails::enter_backend(&config)?),
        false => None,
    };
    for kind in THREADS {
        let thread = std::thread::spawn(move || match is_jailed {
            true => kind.apply(),
            false => Ok(()),
        });
        thread.join().ok().context("a thread has failed")??;
    }
    if is_jailed {
        ThreadKind::Main.apply()?;
    }
    // The caller counts on it that both modes have come here.
    std::process::exit(0)
}

/// The pid of the process that has started this one, which is in another pid namespace.
fn parent() -> anyhow::Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let pid = line.context("/proc/self/status has no PPid")?;
    Ok(pid.trim().parse()?)
}
