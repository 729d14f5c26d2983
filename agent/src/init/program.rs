//! Finding the program as the user who runs it, and executing it.

use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::io::Write as _;

use super::plan::ProcessPlan;
use super::{EXIT_FAILED, Failure, Stage as _, lookup, privileges, user};
use crate::sys::{clone, errno_text};

/// A program with its arguments and environment, ready for execve(2).
pub struct Program {
    path: String,
    path_c: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// Why there is no program to execute.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error(transparent)]
    Lookup(#[from] lookup::LookupError),
    /// An entry of the environment is not of the form `NAME=value`.
    #[error("invalid environment variable {0:?}")]
    Environment(String),
    #[error("process.args or process.env contains a NUL")]
    Nul(#[from] NulError),
    #[error("process.args is empty")]
    NoArguments,
}

impl Program {
    /// Finds the program by its future environment. The caller has its root and its rights already.
    pub fn find(process: &ProcessPlan) -> Result<Self, ProgramError> {
        let mut env = environment(&process.env)?;
        if !env
            .iter()
            .any(|(name, value)| name == "HOME" && !value.is_empty())
        {
            env.retain(|(name, _)| name != "HOME");
            env.push(("HOME".to_owned(), user::home(process.uid)));
        }
        let name = process.args.first().ok_or(ProgramError::NoArguments)?;
        let search = env
            .iter()
            .find(|(name, _)| name == "PATH")
            .map(|(_, value)| value.as_str());
        let path = lookup::find(name, search.unwrap_or_default())?;
        let to_c = |text: &String| CString::new(text.as_str());
        Ok(Self {
            path_c: CString::new(path.as_str())?,
            path,
            args: process.args.iter().map(to_c).collect::<Result<_, _>>()?,
            env: env
                .iter()
                .map(|(name, value)| CString::new(format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The program's environment.
    pub fn environment(&self) -> Vec<String> {
        let entries = self.env.iter().map(|entry| entry.to_string_lossy());
        entries.map(String::from).collect()
    }

    /// Installs the system call filter, if there is one, and executes the program.
    ///
    /// No other call comes between the two, not even one for memory: of all that was done for the
    /// process so far, the filter needs to allow execve(2) alone.
    ///
    /// The container has started by now, so a failure to execute, such as a script without an
    /// interpreter line, goes to its standard error, as with runc.
    pub fn execute(self, process: &ProcessPlan, filter: &[u8]) -> Result<Infallible, Failure> {
        let pointers = |strings: &[CString]| {
            let mut pointers: Vec<_> = strings.iter().map(|text| text.as_ptr()).collect();
            pointers.push(std::ptr::null());
            pointers
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        privileges::install_filter(process, filter).stage("seccomp")?;
        // SAFETY: both arrays end in null and point into strings that live across the call.
        #[allow(unsafe_code)]
        let errno = unsafe { clone::execute(&self.path_c, &args, &env) };
        let line = format!("exec {}: {}\n", self.path, errno_text(errno));
        let _ = std::io::stderr().write_all(line.as_bytes());
        clone::exit_now(EXIT_FAILED)
    }
}

/// Names and values. The last value of a name takes the place of the first.
fn environment(entries: &[String]) -> Result<Vec<(String, String)>, ProgramError> {
    let mut env: Vec<(String, String)> = Vec::with_capacity(entries.len() + 1);
    for entry in entries {
        match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                match env.iter_mut().find(|(other, _)| other == name) {
                    Some(earlier) => value.clone_into(&mut earlier.1),
                    None => env.push((name.to_owned(), value.to_owned())),
                }
            }
            _ => return Err(ProgramError::Environment(entry.clone())),
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[&str]) -> Result<Vec<(String, String)>, ProgramError> {
        environment(
            &list
                .iter()
                .map(|entry| (*entry).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn the_last_value_of_a_variable_holds() {
        let env = entries(&["A=1", "B=x=y", "A=2"]).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(env, [pair("A", "2"), pair("B", "x=y")]);
    }

    #[test]
    fn a_variable_has_a_name_and_a_value() {
        for bad in ["A", "=x", ""] {
            assert!(entries(&[bad]).is_err(), "{bad:?}");
        }
    }
}
