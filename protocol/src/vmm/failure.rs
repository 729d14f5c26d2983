//! Failures as they cross the control socket: a code for programs and a message for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A failure of `rvm-vmm` that the host must act on or report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of failure, which the host maps to its own errors.
    pub code: FailureCode,
    /// What failed and why, in one line.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

/// The kind of a [`Failure`], with the names and meanings of gRPC's status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCode {
    /// The request names a device that does not exist.
    NotFound,
    /// The machine's state or limits do not allow the request.
    FailedPrecondition,
    /// The request or configuration contradicts itself or lacks a descriptor.
    InvalidArgument,
    /// The host lacks a resource at the time, such as memory; trying again later may succeed.
    Unavailable,
    /// Anything else, and every code that this version does not know.
    #[serde(other)]
    Internal,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_code_and_message() {
        for code in [
            FailureCode::NotFound,
            FailureCode::FailedPrecondition,
            FailureCode::InvalidArgument,
            FailureCode::Unavailable,
            FailureCode::Internal,
        ] {
            let sent = Failure {
                code,
                message: "no such network card".to_owned(),
            };
            let bytes = serde_json::to_vec(&sent).unwrap();
            assert_eq!(serde_json::from_slice::<Failure>(&bytes).unwrap(), sent);
        }
    }

    #[test]
    fn an_unknown_code_is_internal() {
        let text = r#"{"code":"data-loss","message":"the disk is gone"}"#;
        let failure: Failure = serde_json::from_str(text).unwrap();
        assert_eq!(failure.code, FailureCode::Internal);
        assert_eq!(failure.message, "the disk is gone");
    }
}
