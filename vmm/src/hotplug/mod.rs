//! What changes in a running machine besides its vCPUs: memory and network cards.

mod memory;
mod memory_size;
mod nets;

pub use memory::{HotplugMemory, HotplugMemoryError};
pub use memory_size::{Balloon, MemorySize, MemorySizeError};
pub use nets::{NetError, NetSlots};
