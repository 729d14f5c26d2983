//! The log: the FIFO `log` in the bundle, from which containerd copies lines into its own log.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use rvm_sandbox::host::log_lines::{self, Format};
use tracing::Level;

use crate::invocation::flags::Flags;

const FIFO: &str = "log";

/// Starts logging to the FIFO in the working directory. Without a FIFO nothing is logged.
pub fn start(flags: &Flags) -> anyhow::Result<()> {
    let level = if flags.debug {
        Level::DEBUG
    } else {
        Level::INFO
    };
    let file = open(Path::new(FIFO));
    let id = flags.id.clone();
    log_lines::start(level, move |level, message| {
        let Some(mut file) = file.as_ref() else {
            return;
        };
        let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        let message = format!("{message} (shim {id})");
        // While containerd is down the FIFO fills, and further lines are lost: a log must not block
        // a container.
        let _ = file.write_all(log_lines::line(Format::Text, &now, level, &message).as_bytes());
    })
    .context("cannot start logging")
}

/// Opens the FIFO in both directions, so that neither open nor write waits for a reader.
fn open(path: &Path) -> Option<File> {
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(libc::O_NONBLOCK);
    options.open(path).ok()
}
