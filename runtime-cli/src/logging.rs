//! Messages: to standard error for a human, or appended to a file in logrus's formats, which
//! engines read to find out why a verb failed.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::Context as _;
use rvm_sandbox::host::log_lines::{self, Format};
use tracing::Level;

use crate::cli::{Global, LogFormat};

/// The log file, if there is one.
static FILE: OnceLock<(File, LogFormat)> = OnceLock::new();

/// Starts logging as the options say.
pub fn start(global: &Global) -> anyhow::Result<()> {
    if let Some(path) = &global.log {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("cannot open the log file {}", path.display()))?;
        // The first call sets it.
        let _ = FILE.set((file, global.log_format));
    }
    // A file is told what happened in any case; a human only what went wrong.
    let level = match (global.debug, &global.log) {
        (true, _) => Level::DEBUG,
        (false, Some(_)) => Level::INFO,
        (false, None) => Level::WARN,
    };
    log_lines::start(level, write_message).context("cannot start logging")
}

/// Tells why the verb failed: to the file, where there is one, and to the user.
pub fn report(message: &str) {
    if FILE.get().is_some() {
        write_message(Level::ERROR, message);
    }
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(std::io::stderr(), "{message}");
}

fn write_message(level: Level, message: &str) {
    // A log that cannot be written must not stop a container.
    let _ = match FILE.get() {
        None => writeln!(
            std::io::stderr(),
            "rvm: {}: {message}",
            log_lines::name(level)
        ),
        Some((file, format)) => {
            let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            let format = match format {
                LogFormat::Text => Format::Text,
                LogFormat::Json => Format::Json,
            };
            let line = log_lines::line(format, &now, level, message);
            (&mut &*file).write_all(line.as_bytes())
        }
    };
}
