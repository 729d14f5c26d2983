//! The agent's parameters on the kernel command line.

use rvm_protocol::{PARAM_LOG, PARAM_SHARED};

use super::BootError;
use crate::sys::Doing as _;

/// The file system by which the host shares its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    VirtioFs,
    NineP,
}

/// Parameters of the kernel command line that begin with `rvm.`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Params {
    shared: Option<Shared>,
    log: Option<String>,
}

impl Params {
    /// Reads /proc/cmdline.
    pub fn read() -> Result<Self, BootError> {
        let line = std::fs::read_to_string("/proc/cmdline").doing(|| "read /proc/cmdline")?;
        Self::parse(&line)
    }

    fn parse(line: &str) -> Result<Self, BootError> {
        let mut params = Self::default();
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some((PARAM_SHARED, "virtiofs")) => params.shared = Some(Shared::VirtioFs),
                Some((PARAM_SHARED, "9p")) => params.shared = Some(Shared::NineP),
                Some((PARAM_SHARED, other)) => {
                    return Err(BootError::UnknownShared(other.to_owned()));
                }
                Some((PARAM_LOG, filter)) => params.log = Some(filter.trim_matches('"').to_owned()),
                _ => {}
            }
        }
        Ok(params)
    }

    /// `None` for a guest without a shared directory.
    pub fn shared(&self) -> Option<Shared> {
        self.shared
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
        let params = Params::parse("console=ttyS0 rvm.shared=9p quiet rvm.log=debug,ttrpc=off\n");
        let params = params.unwrap();
        assert_eq!(params.shared(), Some(Shared::NineP));
        assert_eq!(params.log_filter(), "debug,ttrpc=off");
    }

    #[test]
    fn an_unknown_shared_file_system_is_refused() {
        let error = Params::parse("rvm.shared=nfs").unwrap_err();
        assert_eq!(
            error.to_string(),
            "kernel parameter rvm.shared=nfs: neither virtiofs nor 9p"
        );
    }
}
