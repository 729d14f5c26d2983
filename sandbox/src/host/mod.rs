//! Services of the host's kernel: processes, signals, terminals, mounts, time.

pub(crate) mod detached;
pub mod idmap;
pub mod local_time;
pub mod log_lines;
pub mod memory;
pub(crate) mod memory_policy;
pub(crate) mod mount_table;
pub(crate) mod overlay;
pub(crate) mod pid_file;
pub mod process;
pub(crate) mod rate;
pub mod read_only;
pub mod read_only_file;
pub mod signals;
pub mod terminal;
pub mod timings;
pub mod tree_copy;
pub(crate) mod untrusted_text;
pub mod users;
pub(crate) mod whole_file;
