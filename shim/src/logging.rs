//! Messages go to the FIFO `log` in the bundle, from which containerd copies them into its own log.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use rvm_sandbox::host::log_lines::{self, Format};
use tracing::Level;

use crate::flags::Flags;

/// The FIFO.
const LOG: &str = "log";

/// Starts logging to the FIFO in the working directory, or nowhere if there is none.
pub fn start(flags: &Flags) -> anyhow::Result<()> {
    let level = if flags.debug {
        Level::DEBUG
    } else {
        Level::INFO
    };
    let file = open(Path::new(LOG));
    let id = flags.id.clone();
    log_lines::start(level, move |level, message| {
        let Some(mut file) = file.as_ref() else {
            return;
        };
        let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        let message = format!("{message} (shim {id})");
        // While containerd is away the FIFO fills, and what does not fit is lost: a log must not
        // stop a container.
        let _ = file.write_all(log_lines::line(Format::Text, &now, level, &message).as_bytes());
    })
    .context("cannot start logging")
}

/// Opened for both directions, it needs no reader to be opened or written.
fn open(path: &Path) -> Option<File> {
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(libc::O_NONBLOCK);
    options.open(path).ok()
}
