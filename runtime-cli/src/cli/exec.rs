//! The arguments of `rvm exec`.

use std::path::PathBuf;

use clap::Args;

/// The arguments of `rvm exec`.
#[derive(Args, Debug)]
#[command(
    override_usage = "rvm exec [OPTIONS] CONTAINER COMMAND [ARG]...\n       \
                            rvm exec [OPTIONS] --process FILE CONTAINER"
)]
pub struct ExecArgs {
    /// Unix socket that receives the controlling end of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the process that represents this one on the host
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Environment variable; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User id, and group id
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Supplementary group id; may be repeated
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with the process as a JSON object, instead of a command
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Leave the process running in the background
    #[arg(short, long)]
    pub detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Let execve(2) grant no privileges
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub no_new_privs: Option<bool>,
    /// Capability to add; may be repeated
    #[arg(short, long, value_name = "NAME")]
    pub cap: Vec<String>,
    /// Number of descriptors, from 3 on, to pass to the process
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub preserve_fds: u32,
    /// Cgroup below the container's own to start in
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// In a paused container, wait until it is resumed
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// The program and its arguments
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub command: Vec<String>,
}
