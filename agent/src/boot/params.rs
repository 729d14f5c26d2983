//! The agent's parameters on the kernel command line.

use rvm_protocol::PARAM_LOG;

use crate::sys::{Doing as _, OsError};

/// Parameters of the kernel command line that begin with `rvm.`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Params {
    log: Option<String>,
}

impl Params {
    /// Reads /proc/cmdline.
    pub fn read() -> Result<Self, OsError> {
        let line = std::fs::read_to_string("/proc/cmdline").doing(|| "read /proc/cmdline")?;
        Ok(Self::parse(&line))
    }

    fn parse(line: &str) -> Self {
        let mut params = Self::default();
        for word in line.split_ascii_whitespace() {
            if let Some((PARAM_LOG, filter)) = word.split_once('=') {
                params.log = Some(filter.trim_matches('"').to_owned());
            }
        }
        params
    }

    pub fn log_filter(&self) -> &str {
        self.log
            .as_deref()
            .unwrap_or(crate::logging::DEFAULT_FILTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_among_the_kernels() {
        let params = Params::parse("console=ttyS0 quiet rvm.log=debug,ttrpc=off\n");
        assert_eq!(params.log_filter(), "debug,ttrpc=off");
    }
}
