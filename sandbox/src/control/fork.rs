//! An image of a container for a client that makes copies of it, and of its files, meanwhile.
//!
//! ```text
//!   client                        owner
//!     ── the request ──────────>  makes the scratch directory; the container stands still, and
//!     <─ done ──────────────────  there is a picture of its memory
//!   copies the container's files
//!     ── an empty line ────────>  the container goes on; the picture is written
//!     <─ done ──────────────────
//!   starts containers from it
//!     ── hangs up ─────────────>  removes the scratch directory
//! ```
//!
//! Whichever of the two is killed, the other one removes the directory, and the container goes on.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rvm_protocol::ContainerId;
use rvm_protocol::failure::Failure;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::wire::{self, Received};
use super::{
    CHECKPOINT_TIMEOUT, ControlError, MAX_LINE, REQUEST_TIMEOUT, Request, RequestError, Server,
    failed,
};
use crate::dir::SandboxDir;
use crate::sandbox::{CheckpointError, MemoryResult};

/// The directory of the image, in the scratch directory.
const IMAGE: &str = "image";

/// How long the client may take for the container's files, and then for its containers.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(900);

/// An image for copies of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The only container of its machine, which runs or is paused.
    pub id: ContainerId,
    /// The absolute path of a directory that does not exist, and that nobody but the owner makes.
    /// The client works in it, too.
    pub scratch: PathBuf,
}

/// The client's side. Dropping it hangs up.
pub struct Forking {
    /// Removed before the owner is to find it.
    scratch: Scratch,
    stream: BufReader<std::os::unix::net::UnixStream>,
    request: Request,
}

impl Forking {
    /// Has the container stand still.
    pub fn begin(dir: &SandboxDir, fork: Fork) -> Result<Self, ControlError> {
        let stream = dir.connect_to_owner().map_err(ControlError::Owner)?;
        let scratch = fork.scratch.clone();
        let request = Request::Fork(fork);
        let line = wire::encode_request(&request).map_err(|e| ControlError::Owner(e.into()))?;
        let sent = (&stream).write_all(&line);
        sent.map_err(ControlError::Owner)?;
        let mut forking = Self {
            stream: BufReader::new(stream),
            request,
            // The owner makes it, and may be killed before it answers.
            scratch: Scratch(Some(scratch)),
        };
        forking.answer()?;
        Ok(forking)
    }

    /// Lets the container go on. There is an image then.
    pub fn go_on(&mut self) -> Result<(), ControlError> {
        let sent = self.stream.get_mut().write_all(b"\n");
        sent.map_err(ControlError::Owner)?;
        self.answer()
    }

    /// The directory of the image.
    pub fn image(&self) -> PathBuf {
        self.scratch().join(IMAGE)
    }

    /// The scratch directory, which is removed when this is dropped.
    pub fn scratch(&self) -> &Path {
        self.scratch.0.as_deref().unwrap_or(Path::new(""))
    }

    fn answer(&mut self) -> Result<(), ControlError> {
        // One other checkpoint may come first.
        let limit = 2 * CHECKPOINT_TIMEOUT + REQUEST_TIMEOUT;
        let stream = self.stream.get_ref();
        let set = stream.set_read_timeout(Some(limit));
        set.map_err(ControlError::Owner)?;
        let mut line = Vec::new();
        let read = (&mut self.stream)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line);
        match read {
            Ok(0) => Err(ControlError::Owner(io::ErrorKind::UnexpectedEof.into())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(ControlError::TimedOut {
                    request: self.request.to_string(),
                    limit,
                })
            }
            read => {
                read.map_err(ControlError::Owner)?;
                let answer = wire::decode_answer(&line);
                answer.map_err(|error| ControlError::Owner(error.into()))??;
                Ok(())
            }
        }
    }
}

/// A directory that is removed when this is dropped.
struct Scratch(Option<PathBuf>);

impl Scratch {
    fn make(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().mode(0o700).create(path)?;
        Ok(Self(Some(path.to_owned())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Some(path) = self.0.take() else { return };
        match fs::remove_dir_all(&path) {
            // The other side was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("cannot remove {}: {error}", path.display()),
            Ok(()) => {}
        }
    }
}

impl Server<'_> {
    /// Serves a client that makes copies of the container.
    pub(super) async fn fork(
        &self,
        stream: &mut UnixStream,
        received: &Received,
        fork: &Fork,
    ) -> io::Result<()> {
        let scratch = match Scratch::make(&fork.scratch) {
            Ok(scratch) => scratch,
            Err(source) => {
                let refused = failed(RequestError::Scratch {
                    path: fork.scratch.clone(),
                    source,
                });
                return answer(stream, received, Err(refused)).await;
            }
        };
        let result = self.take_image(stream, received, fork).await;
        let may_go_on = result.is_ok();
        let answered = answer(stream, received, result.map_err(failed)).await;
        if may_go_on && answered.is_ok() {
            // It hangs up, or has taken too long.
            let _ = tokio::time::timeout(CLIENT_TIMEOUT, stream.read_u8()).await;
        }
        // There may be much to remove.
        let removed = tokio::task::spawn_blocking(move || drop(scratch)).await;
        answered.and(removed.map_err(io::Error::other))
    }

    async fn take_image(
        &self,
        stream: &mut UnixStream,
        received: &Received,
        fork: &Fork,
    ) -> Result<(), RequestError> {
        let wanted = self.to_save(&fork.id, true)?;
        if wanted.containers.len() > 1 {
            let pod = "shares its machine with others of its pod, of which there are no copies";
            return Err(CheckpointError::Unsupported(pod).into());
        }
        let meanwhile = async {
            let told = answer(stream, received, Ok(())).await;
            let gone = |_| CheckpointError::GivenUp("who wanted copies has gone");
            told.map_err(gone)?;
            let late = |_| CheckpointError::GivenUp("the files were not copied within 900 s");
            let copied = tokio::time::timeout(CLIENT_TIMEOUT, stream.read_u8()).await;
            copied.map_err(late)?.map(drop).map_err(gone)
        };
        let image = fork.scratch.join(IMAGE);
        Ok(self.sandbox.checkpoint(wanted, &image, meanwhile).await?)
    }
}

async fn answer(
    stream: &mut UnixStream,
    received: &Received,
    result: Result<(), Failure>,
) -> io::Result<()> {
    let line = received.encode_answer(result.map(|()| MemoryResult::AsAsked))?;
    tokio::time::timeout(REQUEST_TIMEOUT, stream.write_all(&line)).await?
}
