//! What changes in a running machine besides its vCPUs: memory, network cards and disks.

mod disks;
mod mapped_disks;
mod memory;
mod memory_size;
mod nets;

pub use disks::{DiskError, DiskSlots};
pub use mapped_disks::MappedDisks;
pub use memory::{HotplugMemory, HotplugMemoryError};
pub use memory_size::{Balloon, Grown, MemorySize, MemorySizeError};
pub use nets::{Mac, NetError, NetSlots};
