//! Messages: to standard error for a human, or appended to a file in logrus's formats, which
//! engines read to find out why a verb failed.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::Context as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

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
    let subscriber = tracing_subscriber::registry().with(Messages { level });
    tracing::subscriber::set_global_default(subscriber).context("cannot start logging")
}

/// Tells why the verb failed: to the file, where there is one, and to the user.
pub fn report(message: &str) {
    if FILE.get().is_some() {
        write_message(Level::ERROR, message);
    }
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Turns events into lines.
struct Messages {
    level: Level,
}

impl<S: Subscriber> Layer<S> for Messages {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _context: Context<'_, S>) -> bool {
        // Libraries speak to their developers.
        *metadata.level() <= self.level && metadata.target().starts_with("rvm")
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        write_message(*event.metadata().level(), &(text.message + &text.fields));
    }
}

/// An event's message, and its fields behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

fn write_message(level: Level, message: &str) {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    };
    // A log that cannot be written must not stop a container.
    let _ = match FILE.get() {
        None => writeln!(std::io::stderr(), "rvm: {level}: {message}"),
        Some((file, format)) => {
            let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            (&mut &*file).write_all(line(*format, &now, level, message).as_bytes())
        }
    };
}

/// A line as logrus writes it.
fn line(format: LogFormat, time: &str, level: &str, message: &str) -> String {
    let quoted = serde_json::Value::from(message);
    match format {
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={quoted}\n"),
        LogFormat::Json => {
            format!("{{\"level\":\"{level}\",\"msg\":{quoted},\"time\":\"{time}\"}}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_one_object_whatever_the_message() {
        let text = line(LogFormat::Json, "now", "error", "a \"quoted\"\nmessage");
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "a \"quoted\"\nmessage");
    }

    #[test]
    fn a_text_line_is_logruss() {
        assert_eq!(
            line(LogFormat::Text, "now", "info", "hello"),
            "time=\"now\" level=info msg=\"hello\"\n"
        );
    }
}
