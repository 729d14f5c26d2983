//! The arguments of `rvm monitor` and `rvm exec-monitor`, the processes that `rvm create` and a
//! detached `rvm exec` start. This program makes them for another run of itself.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

/// The arguments of `rvm monitor`.
#[derive(Args, Debug, Default, PartialEq, Eq)]
pub struct MonitorArgs {
    /// As for create
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// As for create
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Number of inherited listening sockets, from descriptor 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub listen_fds: u32,
    /// Number of descriptors after those to preserve
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Directory of the checkpoint to go on from
    #[arg(long, value_name = "DIR")]
    pub image_path: Option<PathBuf>,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// The number of the descriptor on which the creator waits
    #[arg(value_name = "FD")]
    pub ready: i32,
}

impl MonitorArgs {
    /// The verb and its arguments without `ready`, which is added when the socket is there.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut list = vec!["monitor".into()];
        push_path(&mut list, "--console-socket", self.console_socket.as_ref());
        push_path(&mut list, "--pidfd-socket", self.pidfd_socket.as_ref());
        push_number(&mut list, "--listen-fds", self.listen_fds);
        push_number(&mut list, "--preserve-fds", self.preserve_fds);
        push_path(&mut list, "--image-path", self.image_path.as_ref());
        list.push(self.id.clone().into());
        list
    }
}

/// The arguments of `rvm exec-monitor`.
#[derive(Args, Debug, Default, PartialEq, Eq)]
pub struct ExecMonitorArgs {
    /// As for exec
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// As for exec
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// As for exec
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// As for exec
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// As for exec
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub cgroup: Option<String>,
    /// As for exec
    #[arg(long)]
    pub ignore_paused: bool,
    /// The number of the descriptor with the process object
    #[arg(long, value_name = "FD")]
    pub process: i32,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// The number of the descriptor on which the creator waits
    #[arg(value_name = "FD")]
    pub ready: i32,
}

impl ExecMonitorArgs {
    /// The verb and its arguments without `ready`, as for [`MonitorArgs`].
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut list = vec!["exec-monitor".into()];
        push_path(&mut list, "--console-socket", self.console_socket.as_ref());
        push_path(&mut list, "--pidfd-socket", self.pidfd_socket.as_ref());
        push_path(&mut list, "--pid-file", self.pid_file.as_ref());
        push_number(&mut list, "--preserve-fds", self.preserve_fds);
        if let Some(cgroup) = &self.cgroup {
            list.extend(["--cgroup".into(), cgroup.into()]);
        }
        if self.ignore_paused {
            list.push("--ignore-paused".into());
        }
        list.extend(["--process".into(), self.process.to_string().into()]);
        list.push(self.id.clone().into());
        list
    }
}

fn push_path(list: &mut Vec<OsString>, option: &str, path: Option<&PathBuf>) {
    if let Some(path) = path {
        list.extend([option.into(), path.into()]);
    }
}

fn push_number(list: &mut Vec<OsString>, option: &str, number: u32) {
    if number != 0 {
        list.extend([option.into(), number.to_string().into()]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Verb};
    use super::*;
    use clap::Parser as _;

    fn read(arguments: Vec<OsString>) -> Verb {
        let line = [vec!["rvm".into()], arguments, vec!["7".into()]].concat();
        Cli::try_parse_from(line).unwrap().verb
    }

    #[test]
    fn a_monitor_gets_its_arguments() {
        let args = MonitorArgs {
            console_socket: Some("/c".into()),
            pidfd_socket: Some("/p".into()),
            listen_fds: 1,
            preserve_fds: 2,
            image_path: Some("/image".into()),
            id: "box".to_owned(),
            ready: 7,
        };
        assert!(matches!(read(args.to_arguments()), Verb::Monitor(read) if read == args));
    }

    #[test]
    fn an_exec_monitor_gets_its_arguments() {
        let args = ExecMonitorArgs {
            console_socket: Some("/c".into()),
            pidfd_socket: Some("/p".into()),
            pid_file: Some("/pid".into()),
            preserve_fds: 2,
            cgroup: Some("-odd".to_owned()),
            ignore_paused: true,
            process: 9,
            id: "box".to_owned(),
            ready: 7,
        };
        assert!(matches!(read(args.to_arguments()), Verb::ExecMonitor(read) if read == args));
    }
}
