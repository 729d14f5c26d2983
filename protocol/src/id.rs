//! The ids of containers and processes, checked where they are made.
//!
//! On the wire a container's id is a string, and a process is named by its container's id and an
//! exec id, which is empty for the init process.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// The longest container id, in bytes. Names are made of it that may have 255: `rvm-ID` among the
/// guest's cgroups, `rvm-ID.scope` among systemd's units.
pub const MAX_CONTAINER_ID: usize = 245;

/// A string that is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Holds the id as it was given.
    #[error(
        "invalid container ID format: {0:?} (letters, digits and _ + - . are allowed, at most \
         {MAX_CONTAINER_ID} of them)"
    )]
    Container(String),
    /// Only the init process has no exec id.
    #[error("the exec id is empty")]
    EmptyExec,
}

/// The id of a container, unique on the host. It is a plain file name: 1 to [`MAX_CONTAINER_ID`] of
/// `[A-Za-z0-9_+.-]`, neither `.` nor `..`, as runc has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "vmm",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks a string.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidId> {
        let id = id.into();
        let is_legal = |c: u8| c.is_ascii_alphanumeric() || b"_+.-".contains(&c);
        let fits = (1..=MAX_CONTAINER_ID).contains(&id.len());
        match fits && id.bytes().all(is_legal) && id != "." && id != ".." {
            true => Ok(Self(id)),
            false => Err(InvalidId::Container(id)),
        }
    }

    /// The id as it is on the wire and in paths.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of a process that was added to a container, unique in the container and not empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecId(String);

impl ExecId {
    /// Checks a string.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidId> {
        let id = id.into();
        match id.is_empty() {
            true => Err(InvalidId::EmptyExec),
            false => Ok(Self(id)),
        }
    }

    /// The id as it is on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A process of a container: the init process, or one that was added.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// The container that the process belongs to.
    pub container: ContainerId,
    /// `None` for the init process.
    pub exec: Option<ExecId>,
}

impl ProcessId {
    /// The init process of a container.
    pub fn init(container: ContainerId) -> Self {
        Self {
            container,
            exec: None,
        }
    }

    /// Reads the two strings of a message.
    pub fn from_wire(
        container: impl Into<String>,
        exec: impl Into<String>,
    ) -> Result<Self, InvalidId> {
        Ok(Self {
            container: ContainerId::new(container)?,
            // Empty is the init process.
            exec: ExecId::new(exec).ok(),
        })
    }

    /// The exec id for a message: empty for the init process.
    pub fn exec_on_wire(&self) -> &str {
        self.exec.as_ref().map_or("", ExecId::as_str)
    }
}

/// `web` or, of an exec'd process, `web/3`.
impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            None => self.container.fmt(f),
            Some(exec) => write!(f, "{}/{exec}", self.container),
        }
    }
}

/// What both kinds of ids can do as strings.
macro_rules! id_string {
    ($id:ident) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $id {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        // The hash and the order are the string's, so maps are searched by `&str`.
        impl Borrow<str> for $id {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $id {
            type Err = InvalidId;

            fn from_str(id: &str) -> Result<Self, InvalidId> {
                Self::new(id)
            }
        }

        impl TryFrom<String> for $id {
            type Error = InvalidId;

            fn try_from(id: String) -> Result<Self, InvalidId> {
                Self::new(id)
            }
        }

        impl From<$id> for String {
            fn from(id: $id) -> Self {
                id.0
            }
        }
    };
}

id_string!(ContainerId);
id_string!(ExecId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_name() {
        for id in ["a", "8f3-x_Y.z+1", "a.b", &"x".repeat(MAX_CONTAINER_ID)] {
            assert!(ContainerId::new(id).is_ok(), "{id}");
        }
        for id in ["", "a/b", "a b", "ü", &"x".repeat(MAX_CONTAINER_ID + 1)] {
            assert!(ContainerId::new(id).is_err(), "{id}");
        }
    }

    #[test]
    fn an_id_is_no_directory_of_every_directory() {
        assert!(ContainerId::new(".").is_err());
        assert!(ContainerId::new("..").is_err());
        assert!(ContainerId::new("...").is_ok());
    }

    #[test]
    fn an_empty_exec_id_on_the_wire_is_the_init_process() {
        let init = ProcessId::from_wire("web", "").unwrap();
        assert_eq!(init, ProcessId::init(ContainerId::new("web").unwrap()));
        assert_eq!(
            (init.exec_on_wire(), init.to_string()),
            ("", "web".to_owned())
        );
        let exec = ProcessId::from_wire("web", "3").unwrap();
        assert_eq!(
            (exec.exec_on_wire(), exec.to_string()),
            ("3", "web/3".to_owned())
        );
        assert!(ExecId::new("").is_err());
    }
}
