//! Log lines on the console.
//!
//! The filter is `tracing`'s in its plain form: a level, or `target=level`, separated by commas;
//! the longest matching target wins. A line is one write(2), so that lines of several processes do
//! not mix. On an emulated serial port every byte costs a VM exit, hence the quiet default.

use std::io::Write as _;

use log::{LevelFilter, Log, Metadata, Record};

/// The filter without [`rvm_protocol::PARAM_LOG`].
pub const DEFAULT_FILTER: &str = "warn";

/// Installs the console logger. Ignores directives that it cannot parse.
pub fn start(filter: &str) {
    let filter = Filter::parse(filter);
    log::set_max_level(filter.highest());
    // Fails only when there is a logger already, as in tests.
    let _ = log::set_logger(Box::leak(Box::new(Console { filter })));
}

struct Console {
    filter: Filter,
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.filter.level_of(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = format!(
            "{:<5} {}: {}\n",
            record.level(),
            record.target(),
            record.args()
        );
        // An error of the console cannot be reported anywhere.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

struct Filter {
    default: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

impl Filter {
    fn parse(text: &str) -> Self {
        let mut filter = Self {
            default: LevelFilter::Off,
            targets: Vec::new(),
        };
        for directive in text.split(',').map(str::trim) {
            if let Some((target, level)) = directive.split_once('=') {
                if let Ok(level) = level.parse() {
                    filter.targets.push((target.to_owned(), level));
                }
            } else if let Ok(level) = directive.parse() {
                filter.default = level;
            }
        }
        filter
    }

    fn highest(&self) -> LevelFilter {
        self.targets
            .iter()
            .map(|(_, level)| *level)
            .fold(self.default, Ord::max)
    }

    fn level_of(&self, target: &str) -> LevelFilter {
        let matching = self.targets.iter().filter(|(prefix, _)| {
            target
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        });
        matching
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or(self.default, |(_, level)| *level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_matching_target_wins() {
        let filter = Filter::parse("warn,rvm_agent=info,rvm_agent::streams=trace");
        assert_eq!(filter.level_of("ttrpc"), LevelFilter::Warn);
        assert_eq!(filter.level_of("rvm_agent::boot"), LevelFilter::Info);
        assert_eq!(
            filter.level_of("rvm_agent::streams::relay"),
            LevelFilter::Trace
        );
        assert_eq!(filter.level_of("rvm_agents"), LevelFilter::Warn);
        assert_eq!(filter.highest(), LevelFilter::Trace);
    }

    #[test]
    fn an_unreadable_directive_is_passed_over() {
        let filter = Filter::parse("loud,info");
        assert_eq!(filter.level_of("anything"), LevelFilter::Info);
    }
}
