//! The arguments of `rvm checkpoint` and `rvm restore`, which are runc's, and of `rvm fork`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CreateArgs, RunArgs};

/// Where a checkpoint is.
#[derive(Args, Debug)]
pub struct ImageArgs {
    /// Directory of the checkpoint [default: checkpoint, in the working directory]
    #[arg(long, value_name = "DIR")]
    pub image_path: Option<PathBuf>,
    /// No effect: nothing is written but the checkpoint, and messages go to --log
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// No effect: connections within the machine always go on, and others end
    #[arg(long)]
    pub tcp_established: bool,
    /// No effect: sockets of the container are saved whatever they are
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// No effect: a terminal is always saved
    #[arg(long)]
    pub shell_job: bool,
    /// No effect: locks are always saved
    #[arg(long)]
    pub file_locks: bool,
    /// No effect: the host's cgroups are made anew
    #[arg(long, value_name = "MODE")]
    pub manage_cgroups_mode: Option<CgroupsMode>,
    /// No effect: the container gets the network of its bundle
    #[arg(long, value_name = "NAMESPACE")]
    pub empty_ns: Vec<String>,
    /// Not supported: memory is always read as it is needed
    #[arg(long)]
    pub lazy_pages: bool,
    /// No effect: files are found by their paths
    #[arg(long)]
    pub auto_dedup: bool,
}

/// CRIU's modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CgroupsMode {
    /// CRIU restores the cgroups' settings.
    Soft,
    /// CRIU makes the cgroups.
    Full,
    /// CRIU makes the cgroups, and there must be none.
    Strict,
    /// CRIU leaves the cgroups alone.
    Ignore,
}

/// The arguments of `rvm checkpoint`.
#[derive(Args, Debug)]
pub struct CheckpointArgs {
    /// Where it is
    #[command(flatten)]
    pub image: ImageArgs,
    /// Let the container go on
    #[arg(long)]
    pub leave_running: bool,
    /// Not supported: there is one checkpoint at a time
    #[arg(long)]
    pub pre_dump: bool,
    /// Not supported: see --pre-dump
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<PathBuf>,
    /// Not supported: pages are never served, but read from the file
    #[arg(long, value_name = "FD")]
    pub status_fd: Option<i32>,
    /// Not supported: see --status-fd
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub page_server: Option<String>,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// The arguments of `rvm restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// Where it is
    #[command(flatten)]
    pub image: ImageArgs,
    /// As for create
    #[command(flatten)]
    pub create: CreateArgs,
    /// Leave the container running in the background
    #[arg(short, long)]
    pub detach: bool,
    /// No effect: leftovers of a container stay in the guest
    #[arg(long)]
    pub no_subreaper: bool,
    /// The same with one dash, as go-runc writes it, through which containerd calls runtimes
    #[arg(short = 'n', hide = true, value_parser = ["o-subreaper"])]
    pub one_dash: Option<String>,
    /// Not supported: the security label of the container's processes is the one they have
    #[arg(long, value_name = "PROFILE")]
    pub lsm_profile: Option<String>,
    /// Not supported: mounts are those they were
    #[arg(long, value_name = "CONTEXT")]
    pub lsm_mount_context: Option<String>,
    /// Keep the container's state after it has ended
    #[arg(long)]
    pub keep: bool,
    /// Print the time of each stage of the restore to standard error
    #[arg(long)]
    pub timings: bool,
}

/// The arguments of `rvm fork`.
#[derive(Args, Debug)]
pub struct ForkArgs {
    /// Directory of the copies' bundles, each in a directory named by its id
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true
    )]
    pub bundle: PathBuf,
    /// Unix socket that receives the controlling end of each copy's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// The ids of the copies
    #[arg(value_name = "NEW", required = true)]
    pub new: Vec<String>,
}

impl ImageArgs {
    /// The options that cannot be honoured, of those that were given.
    pub fn refused(&self) -> Option<&'static str> {
        self.lazy_pages.then_some("--lazy-pages")
    }
}

impl CheckpointArgs {
    /// The same of all options.
    pub fn refused(&self) -> Option<&'static str> {
        let refused = [
            (self.pre_dump, "--pre-dump"),
            (self.parent_path.is_some(), "--parent-path"),
            (self.status_fd.is_some(), "--status-fd"),
            (self.page_server.is_some(), "--page-server"),
        ];
        let refused = refused
            .into_iter()
            .find_map(|(given, name)| given.then_some(name));
        refused.or(self.image.refused())
    }
}

impl RestoreArgs {
    /// The same of all options.
    pub fn refused(&self) -> Option<&'static str> {
        let refused = [
            (self.lsm_profile.is_some(), "--lsm-profile"),
            (self.lsm_mount_context.is_some(), "--lsm-mount-context"),
        ];
        let refused = refused
            .into_iter()
            .find_map(|(given, name)| given.then_some(name));
        refused.or(self.image.refused())
    }

    /// Those that it has in common with a run.
    pub fn into_run(self) -> RunArgs {
        RunArgs {
            create: self.create,
            detach: self.detach,
            keep: self.keep,
            no_subreaper: self.no_subreaper || self.one_dash.is_some(),
            timings: self.timings,
        }
    }
}
