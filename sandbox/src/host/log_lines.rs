//! Log lines: passes the events of rvm's own crates to a sink, and formats them as logrus does,
//! which engines parse.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=… msg="…"`
    Text,
    /// A JSON object with `level`, `msg` and `time`.
    Json,
}

/// Passes every message of at least this level to `sink`. Fails on the second call.
pub fn start(
    level: Level,
    sink: impl Fn(Level, &str) + Send + Sync + 'static,
) -> Result<(), SetGlobalDefaultError> {
    let subscriber = tracing_subscriber::registry().with(Messages { level, sink });
    tracing::subscriber::set_global_default(subscriber)
}

/// Formats events as messages.
struct Messages<F> {
    level: Level,
    sink: F,
}

impl<S: Subscriber, F: Fn(Level, &str) + 'static> Layer<S> for Messages<F> {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _context: Context<'_, S>) -> bool {
        // Messages of libraries are for their developers.
        let target = metadata.target();
        let ours = target.starts_with("rvm") || target.starts_with("containerd_shim_rvm");
        *metadata.level() <= self.level && ours
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        (self.sink)(*event.metadata().level(), &(text.message + &text.fields));
    }
}

/// An event's message and fields.
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

/// A level's name in logrus.
pub fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

/// A line in logrus's format. `time` is RFC 3339.
pub fn line(format: Format, time: &str, level: Level, message: &str) -> String {
    let level = name(level);
    let quoted = serde_json::Value::from(message);
    match format {
        Format::Text => format!("time=\"{time}\" level={level} msg={quoted}\n"),
        Format::Json => {
            format!("{{\"level\":\"{level}\",\"msg\":{quoted},\"time\":\"{time}\"}}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_one_object_whatever_the_message() {
        let message = "a \"quoted\"\nmessage";
        let text = line(Format::Json, "now", Level::ERROR, message);
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], message);
    }

    #[test]
    fn a_text_line_is_logruss() {
        assert_eq!(
            line(Format::Text, "now", Level::INFO, "hello"),
            "time=\"now\" level=info msg=\"hello\"\n"
        );
    }
}
