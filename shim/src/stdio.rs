//! The host's ends of a process's standard streams, as containerd names them.
//!
//! A FIFO is held open in both directions as runc's shim does it, so that clients may come and go:
//! a reader that leaves is no error to the writer, and standard input ends only when containerd says
//! so and the last client has gone.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rvm_sandbox::guest::stdio::HostStdio;
use rvm_sandbox::host::terminal::WindowSize;

use crate::logger::Logger;
use crate::uri::{self, Uri};

/// A stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or FIFO.
    #[error("cannot open {} for the container's {stream}", path.display())]
    Open {
        /// Which stream.
        stream: &'static str,
        /// Which path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Something else.
    #[error("the container's {stream} is to go to {scheme}://, which is not supported")]
    Scheme {
        /// Which stream.
        stream: &'static str,
        /// What it is to go to.
        scheme: String,
    },
    /// A program that logs.
    #[error("cannot start the logging program {}", path.display())]
    Logger {
        /// Which one.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// What containerd says of a process's streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uris {
    /// The path of a FIFO, or nothing.
    pub stdin: String,
    /// See [`Uri`].
    pub stdout: String,
    /// Likewise.
    pub stderr: String,
    /// One terminal in place of three streams.
    pub terminal: bool,
}

/// Streams that are open.
pub struct Opened {
    /// The host's ends.
    pub host: HostStdio,
    /// Keeps standard input from ending as long as it is held.
    pub keeper: Option<OwnedFd>,
    /// The program that takes the output.
    pub logger: Option<Logger>,
}

/// Opens the streams of a process of a container.
pub fn open(uris: &Uris, container_id: &str, namespace: &str) -> Result<Opened, OpenError> {
    let (stdin, keeper) = open_input(&uris.stdin)?;
    let (stdout, stderr, logger) = match destination(&uris.stdout, "standard output")? {
        Uri::Binary(path, arguments) => {
            let started = Logger::start(&path, &arguments, container_id, namespace);
            let (logger, stdout, stderr) =
                started.map_err(|source| OpenError::Logger { path, source })?;
            (stdout, stderr, Some(logger))
        }
        Uri::File(path) => {
            let stdout = open_file(&path, "standard output")?;
            let stderr = open_file(&path, "standard error")?;
            (stdout, stderr, None)
        }
        stdout => (
            open_output(&stdout, "standard output")?,
            open_output(
                &destination(&uris.stderr, "standard error")?,
                "standard error",
            )?,
            None,
        ),
    };
    let host = match uris.terminal {
        true => HostStdio::Terminal {
            input: stdin,
            output: stdout,
            // The agent takes config.json's until it is told another.
            size: WindowSize::default(),
        },
        false => HostStdio::Streams {
            stdin,
            stdout,
            stderr,
        },
    };
    Ok(Opened {
        host,
        keeper,
        logger,
    })
}

fn failed(stream: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Open {
        stream,
        path,
        source,
    }
}

fn destination(text: &str, stream: &'static str) -> Result<Uri, OpenError> {
    uri::parse(text).map_err(|scheme| OpenError::Scheme { stream, scheme })
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
    // Without waiting for a writer; the one that is opened next is one.
    let opened = open(OFlags::RDONLY | OFlags::NONBLOCK).and_then(|reader| {
        let keeper = open(OFlags::WRONLY | OFlags::NONBLOCK)?;
        fcntl_setfl(&reader, OFlags::empty())?;
        Ok((reader, Some(keeper)))
    });
    opened.map_err(|errno| failed(stream, path)(errno.into()))
}

fn open_output(destination: &Uri, stream: &'static str) -> Result<OwnedFd, OpenError> {
    match destination {
        Uri::None => open_null(stream),
        Uri::File(path) => open_file(path, stream),
        Uri::Path(path) => {
            let is_fifo = fs::metadata(path).map_err(failed(stream, path))?;
            let is_fifo = is_fifo.file_type().is_fifo();
            let mut options = File::options();
            // A FIFO that is open for reading too waits for no reader, and outlives those there are.
            options.read(is_fifo).write(true).append(!is_fifo);
            Ok(options.open(path).map_err(failed(stream, path))?.into())
        }
        Uri::Binary(..) => Err(OpenError::Scheme {
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
        (stdin.into(), stdout.into(), stderr.into(), opened.keeper)
    }

    #[test]
    fn standard_input_ends_when_containerd_says_so_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let stdin = fifo(dir.path(), "in");
        let uris = Uris {
            stdin: stdin.clone(),
            ..Default::default()
        };
        let (mut input, _, _, keeper) = streams(open(&uris, "box", "space").unwrap());
        for text in ["one", "two"] {
            // Each is a client that comes and goes.
            let mut client = File::options().write(true).open(&stdin).unwrap();
            client.write_all(text.as_bytes()).unwrap();
            drop(client);
            let mut read = [0; 3];
            input.read_exact(&mut read).unwrap();
            assert_eq!(read, text.as_bytes());
        }
        drop(keeper);
        assert_eq!(input.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn output_survives_a_reader_that_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let uris = Uris {
            stdout: fifo(dir.path(), "out"),
            ..Default::default()
        };
        let (_, mut output, _, _) = streams(open(&uris, "box", "space").unwrap());
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
        let (_, mut stdout, mut stderr, _) = streams(open(&uris, "box", "space").unwrap());
        stdout.write_all(b"out ").unwrap();
        stderr.write_all(b"err").unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "out err");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let uris = Uris {
            stdout: "/nonexistent/fifo".to_owned(),
            ..Default::default()
        };
        let error = open(&uris, "box", "space").err().unwrap().to_string();
        assert!(error.contains("/nonexistent/fifo") && error.contains("output"));
    }
}
