//! The arguments of the verbs about a running container, and of a few others.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// The formats of `rvm list` and `rvm ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns with a heading
    Table,
    /// One JSON array
    Json,
}

/// The arguments of `rvm ps`.
#[derive(Args, Debug)]
pub struct PsArgs {
    /// Format: table (processes in the guest) or json (ids of the host's processes that run them)
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// Options of ps(1): -e, -A, -f and -o with columns [default: -ef]
    #[arg(
        value_name = "OPTION",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub options: Vec<String>,
}

/// The arguments of `rvm events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Time between two reports of the container's use, such as 500ms or 1m
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub interval: Duration,
    /// Report the container's use once, and end
    #[arg(long)]
    pub stats: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// The arguments of `rvm overhead`.
#[derive(Args, Debug, Default)]
pub struct OverheadArgs {
    /// Memory of all containers of a pod, such as 512m or 4g; the overhead is enough for pods of
    /// this size or smaller [default: memory_mib of the configuration]
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<String>,
}

/// The arguments of `rvm update`. The names are runc's, the values those of cgroup version 1.
#[derive(Args, Debug, Default)]
pub struct UpdateArgs {
    /// File with the limits as a JSON object, or - for standard input; excludes all other options
    ///
    /// The object is linux.resources of the OCI runtime specification. Missing fields stay as they
    /// are:
    ///
    /// {"memory": {"limit": 268435456}, "cpu": {"quota": 50000, "period": 100000},
    /// "pids": {"limit": 100}}
    #[arg(short, long, value_name = "FILE", conflicts_with_all = [
        "blkio_weight", "cpu_period", "cpu_quota", "cpu_burst", "cpu_share", "cpu_rt_period",
        "cpu_rt_runtime", "cpuset_cpus", "cpuset_mems", "cpu_idle", "memory",
        "memory_reservation", "memory_swap", "pids_limit",
    ])]
    pub resources: Option<PathBuf>,
    /// Share of block I/O, from 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// Period in which CPU time is limited, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// CPU time in a period, in microseconds; -1 for no limit
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// CPU time that may accumulate beyond a period's, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    /// Share of CPU time, from 2 to 262144
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<u64>,
    /// Not supported in the guest
    #[arg(long, value_name = "US", hide = true)]
    pub cpu_rt_period: Option<u64>,
    /// Not supported in the guest
    #[arg(long, value_name = "US", hide = true, allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// CPUs to run on, such as 0-2,7
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// 1 to run only when nothing else does, else 0
    #[arg(long, value_name = "BOOL", value_parser = clap::value_parser!(i64).range(0..=1))]
    pub cpu_idle: Option<i64>,
    /// Memory, such as 256m; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Memory that the kernel reclaims only if others stay within theirs
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_swap: Option<String>,
    /// Obsolete, and without effect as with runc
    #[arg(long, value_name = "BYTES", hide = true)]
    pub kernel_memory: Option<String>,
    /// Obsolete, and without effect as with runc
    #[arg(long, value_name = "BYTES", hide = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Number of processes; -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Not supported: a virtual machine cannot manage the host's caches
    #[arg(long, value_name = "SCHEMA", hide = true)]
    pub l3_cache_schema: Option<String>,
    /// Not supported: a virtual machine cannot manage the host's memory bandwidth
    #[arg(long, value_name = "SCHEMA", hide = true)]
    pub mem_bw_schema: Option<String>,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// The arguments of `rvm spec`.
#[derive(Args, Debug)]
pub struct SpecArgs {
    /// Directory of the bundle
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true
    )]
    pub bundle: PathBuf,
    /// Not supported: rvm needs root
    #[arg(long)]
    pub rootless: bool,
}
