//! Stats: the numbers of a container's cgroup.

use std::fs;

use rvm_protocol::agent as api;
use rvm_protocol::cgroup_stats;

use super::Container;

impl Container {
    /// Reads what the container has used.
    pub fn stats(&self) -> api::StatsResponse {
        api::StatsResponse {
            net_dev: fs::read_to_string("/proc/self/net/dev").unwrap_or_default(),
            ..cgroup_stats::read(&|file| self.cgroup.read(file).ok())
        }
    }
}
