//! A failure as it crosses a process border: a code for programs and a message for people.
//!
//! The sandbox's owner answers with one over the control socket, the process that stands for a
//! container sends one to its starter, rvm-vmm sends one to the host, and the shim answers
//! containerd with the code.

use serde::{Deserialize, Deserializer, Serialize};

/// The longest message, in bytes: the end of a guest's console and what a hook has said fit in.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// The kind of a failure, with the names and meanings of gRPC's status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// There is no such container, process, sandbox or device.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The container, process or machine is in a state in which this cannot be done.
    FailedPrecondition,
    /// The request can never be carried out as it is.
    InvalidArgument,
    /// The process that would have to do it does not answer, or the host lacks a resource, such as
    /// memory: trying again later may succeed.
    Unavailable,
    /// It was not done in time.
    DeadlineExceeded,
    /// The other side does not know this request, or does not speak this version.
    Unimplemented,
    /// Anything else, and any code that this version does not know.
    #[serde(other)]
    Internal,
}

/// A failure of another process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    code: Code,
    #[serde(deserialize_with = "bounded")]
    message: String,
}

impl Failure {
    /// A failure. A message is cut after [`MAX_MESSAGE`] bytes.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: cut(message.into()),
        }
    }

    /// What kind of failure it is.
    pub fn code(&self) -> Code {
        self.code
    }
}

/// An error that has a code.
pub trait Coded: std::error::Error {
    /// What kind of failure it is.
    fn code(&self) -> Code;
}

impl Coded for Failure {
    fn code(&self) -> Code {
        self.code
    }
}

fn bounded<'de, D: Deserializer<'de>>(text: D) -> Result<String, D::Error> {
    String::deserialize(text).map(cut)
}

fn cut(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way() {
        let failure = Failure::new(Code::NotFound, "container does not exist: a");
        let line = serde_json::to_string(&failure).unwrap();
        let expected = r#"{"code":"not-found","message":"container does not exist: a"}"#;
        assert_eq!(line, expected);
        assert_eq!(serde_json::from_str::<Failure>(&line).unwrap(), failure);
    }

    #[test]
    fn a_code_of_a_later_version_is_an_internal_failure() {
        let line = r#"{"code":"out-of-range","message":"a","detail":1}"#;
        let failure: Failure = serde_json::from_str(line).unwrap();
        assert_eq!(failure, Failure::new(Code::Internal, "a"));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "ä".repeat(MAX_MESSAGE);
        let line = format!(r#"{{"code":"internal","message":"x{long}"}}"#);
        let read: Failure = serde_json::from_str(&line).unwrap();
        assert_eq!(read, Failure::new(Code::Internal, format!("x{long}")));
        assert_eq!(read.to_string().len(), MAX_MESSAGE - 1);
    }
}
