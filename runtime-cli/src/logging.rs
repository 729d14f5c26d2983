//! Messages: written to standard error, or appended to a file in logrus's formats, in which engines
//! find why a verb failed.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::Context as _;
use rvm_sandbox::host::log_lines::{self, Format};
use tracing::Level;

use crate::cli::{Global, LogFormat};

/// The file that --log names, and its format.
static FILE: OnceLock<(File, LogFormat)> = OnceLock::new();

/// Starts logging as the options ask. Fails if the log file cannot be opened.
pub fn start(global: &Global) -> anyhow::Result<()> {
    if let Some(path) = &global.log {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            // Whatever the caller's umask: nobody else may add lines.
            .mode(0o644)
            .open(path)
            .with_context(|| format!("cannot open the log file {}", path.display()))?;
        // This is called once.
        let _ = FILE.set((file, global.log_format));
    }
    // A file gets what happened as well, standard error only what went wrong.
    let level = match (global.debug, &global.log) {
        (true, _) => Level::DEBUG,
        (false, Some(_)) => Level::INFO,
        (false, None) => Level::WARN,
    };
    log_lines::start(level, write_message).context("cannot start logging")
}

/// Reports why the verb failed, to the log file if there is one, and to standard error.
pub fn report(message: &str) {
    if FILE.get().is_some() {
        write_message(Level::ERROR, message);
    }
    // If standard error is closed, nobody reads the message.
    let _ = std::io::stderr().write_all(format!("{message}\n").as_bytes());
}

fn write_message(level: Level, message: &str) {
    // A container runs on even if its log cannot be written.
    let _ = match FILE.get() {
        None => {
            // In one write: standard error has no buffer, and another's line may come between.
            let line = format!("rvm: {}: {message}\n", log_lines::name(level));
            std::io::stderr().write_all(line.as_bytes())
        }
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
