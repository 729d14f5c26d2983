//! The host's ends of a process's standard streams: the FIFOs, files and logging programs that
//! containerd names.
//!
//! As runc's shim does, this holds a FIFO open in both directions, so that clients may come and go:
//! a reader that leaves is no error to the writer, and standard input ends only after containerd
//! has closed it and the last client has left.

pub mod destination;
pub mod logger;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rvm_protocol::ContainerId;
use rvm_sandbox::guest::stdio::HostStdio;
use rvm_sandbox::host::terminal::WindowSize;

use destination::{Destination, UnknownScheme};
use logger::Logger;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open {} for the container's {stream}", path.display())]
    Open {
        stream: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the container's {stream} is to go to {scheme}://, which is not supported")]
    Scheme {
        stream: &'static str,
        scheme: String,
    },
    #[error("cannot start the logging program {}", path.display())]
    Logger { path: PathBuf, source: io::Error },
}

/// Where a request says that a process's streams are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uris {
    /// The path of a FIFO; empty for no input.
    pub stdin: String,
    /// A path or URI; see [`destination::parse`].
    pub stdout: String,
    /// As `stdout`. Not used with a terminal.
    pub stderr: String,
    /// The process has one terminal in place of three streams.
    pub terminal: bool,
}

/// The streams of a process, open.
pub struct Opened {
    pub host: HostStdio,
    /// A write end of the standard input's FIFO: standard input does not end while it is open.
    pub stdin_writer: Option<OwnedFd>,
    /// The program that reads the output.
    pub logger: Option<Logger>,
}

/// Opens the streams of a process of a container.
pub fn open(uris: &Uris, container: &ContainerId, namespace: &str) -> Result<Opened, OpenError> {
    let (stdin, stdin_writer) = open_input(&uris.stdin)?;
    let outputs = Outputs::open(uris, container, namespace)?;
    let host = match outputs.stderr {
        None => HostStdio::Terminal {
            input: stdin,
            output: outputs.stdout,
            // The size in config.json, which the agent knows, holds until the first resize.
            size: WindowSize::default(),
            // A client's terminal is in raw mode.
            plain_line_feeds: false,
        },
        Some(stderr) => HostStdio::Streams {
            stdin,
            stdout: outputs.stdout,
            stderr,
        },
    };
    Ok(Opened {
        host,
        stdin_writer,
        logger: outputs.logger,
    })
}

/// Where a process's output goes.
struct Outputs {
    stdout: OwnedFd,
    /// None with a terminal: clients name a FIFO then that they do not make.
    stderr: Option<OwnedFd>,
    logger: Option<Logger>,
}

impl Outputs {
    fn open(uris: &Uris, container: &ContainerId, namespace: &str) -> Result<Self, OpenError> {
        const STDOUT: &str = "standard output";
        const STDERR: &str = "standard error";
        let unless_terminal = |open: &dyn Fn() -> Result<OwnedFd, OpenError>| match uris.terminal {
            true => Ok(None),
            false => open().map(Some),
        };
        let (stdout, stderr, logger) = match parse(&uris.stdout, STDOUT)? {
            Destination::Binary(path, arguments) => {
                let started = Logger::start(&path, &arguments, container, namespace);
                let (logger, stdout, stderr) =
                    started.map_err(|source| OpenError::Logger { path, source })?;
                (stdout, (!uris.terminal).then_some(stderr), Some(logger))
            }
            Destination::File(path) => {
                let stderr = unless_terminal(&|| open_file(&path, STDERR))?;
                (open_file(&path, STDOUT)?, stderr, None)
            }
            stdout => {
                let stderr = || open_output(&parse(&uris.stderr, STDERR)?, STDERR);
                let stderr = unless_terminal(&stderr)?;
                (open_output(&stdout, STDOUT)?, stderr, None)
            }
        };
        Ok(Self {
            stdout,
            stderr,
            logger,
        })
    }
}

fn failed(stream: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Open {
        stream,
        path,
        source,
    }
}

fn parse(text: &str, stream: &'static str) -> Result<Destination, OpenError> {
    destination::parse(text).map_err(|UnknownScheme(scheme)| OpenError::Scheme { stream, scheme })
}

fn open_null(stream: &'static str) -> Result<OwnedFd, OpenError> {
    let path = Path::new("/dev/null");
    let mut options = File::options();
    let file = options.read(true).write(true).open(path);
    Ok(file.map_err(failed(stream, path))?.into())
}

fn open_input(path: &str) -> Result<(OwnedFd, Option<OwnedFd>), OpenError> {
    let stream = "standard input";
    if path.is_empty() {
        return Ok((open_null(stream)?, None));
    }
    let path = Path::new(path);
    let open = |flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    // The first open does not wait for a writer; the second makes one.
    let opened = open(OFlags::RDONLY | OFlags::NONBLOCK).and_then(|reader| {
        let writer = open(OFlags::WRONLY | OFlags::NONBLOCK)?;
        fcntl_setfl(&reader, OFlags::empty())?;
        Ok((reader, Some(writer)))
    });
    opened.map_err(|errno| failed(stream, path)(errno.into()))
}

fn open_output(destination: &Destination, stream: &'static str) -> Result<OwnedFd, OpenError> {
    match destination {
        Destination::Null => open_null(stream),
        Destination::File(path) => open_file(path, stream),
        Destination::Path(path) => {
            let is_fifo = fs::metadata(path).map_err(failed(stream, path))?;
            let is_fifo = is_fifo.file_type().is_fifo();
            let mut options = File::options();
            // Open for reading too, a FIFO waits for no reader and survives those that leave.
            options.read(is_fifo).write(true).append(!is_fifo);
            Ok(options.open(path).map_err(failed(stream, path))?.into())
        }
        Destination::Binary(..) => Err(OpenError::Scheme {
            stream,
            scheme: "binary".to_owned(),
        }),
    }
}

fn open_file(path: &Path, stream: &'static str) -> Result<OwnedFd, OpenError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed(stream, path))?;
    }
    let mut options = File::options();
    options.append(true).create(true).mode(0o644);
    Ok(options.open(path).map_err(failed(stream, path))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    fn id() -> ContainerId {
        ContainerId::new("box").unwrap()
    }

    fn fifo(dir: &Path, name: &str) -> String {
        let path = dir.join(name);
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn streams(opened: Opened) -> (File, File, File, Option<OwnedFd>) {
        let HostStdio::Streams {
            stdin,
            stdout,
            stderr,
        } = opened.host
        else {
            panic!("no terminal was asked for")
        };
        let writer = opened.stdin_writer;
        (stdin.into(), stdout.into(), stderr.into(), writer)
    }

    #[test]
    fn standard_input_ends_when_containerd_says_so_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let stdin = fifo(dir.path(), "in");
        let uris = Uris {
            stdin: stdin.clone(),
            ..Default::default()
        };
        let (mut input, _, _, writer) = streams(open(&uris, &id(), "space").unwrap());
        for text in ["one", "two"] {
            // Each is a client that comes and goes.
            let mut client = File::options().write(true).open(&stdin).unwrap();
            client.write_all(text.as_bytes()).unwrap();
            drop(client);
            let mut read = [0; 3];
            input.read_exact(&mut read).unwrap();
            assert_eq!(read, text.as_bytes());
        }
        drop(writer);
        assert_eq!(input.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn output_survives_a_reader_that_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let uris = Uris {
            stdout: fifo(dir.path(), "out"),
            ..Default::default()
        };
        let (_, mut output, _, _) = streams(open(&uris, &id(), "space").unwrap());
        drop(File::open(&uris.stdout).unwrap());
        output.write_all(b"kept").unwrap();
        let mut client = File::open(&uris.stdout).unwrap();
        drop(output);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");
    }

    #[test]
    fn a_file_takes_both_outputs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/box.log");
        let uris = Uris {
            stdout: format!("file://{}", path.display()),
            ..Default::default()
        };
        let (_, mut stdout, mut stderr, _) = streams(open(&uris, &id(), "space").unwrap());
        stdout.write_all(b"out ").unwrap();
        stderr.write_all(b"err").unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "out err");
    }

    #[test]
    fn a_terminal_has_no_standard_error_whatever_the_request_names() {
        let dir = tempfile::tempdir().unwrap();
        for stdout in [fifo(dir.path(), "out"), "file:///dev/null".to_owned()] {
            let uris = Uris {
                stdout,
                stderr: "/nonexistent/fifo".to_owned(),
                terminal: true,
                ..Default::default()
            };
            let opened = open(&uris, &id(), "space").unwrap();
            assert!(matches!(opened.host, HostStdio::Terminal { .. }));
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let uris = Uris {
            stdout: "/nonexistent/fifo".to_owned(),
            ..Default::default()
        };
        let error = open(&uris, &id(), "space").err().unwrap().to_string();
        assert!(error.contains("/nonexistent/fifo") && error.contains("output"));
    }
}
