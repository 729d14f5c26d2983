//! The part of QEMU's monitor protocol that controls the balloon. Each line is a JSON object: a
//! command, the answer to one, or an event.
//!
//! <https://www.qemu.org/docs/master/interop/qmp-spec.html>. A guest may have
//! taken QEMU over, so a line is bounded, and nothing but a number is used of it.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// The longest line that is read, in bytes. QEMU's own lines have some hundred.
const MAX_LINE: usize = 16 * 1024;

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    /// The beginning of a line whose end has not arrived.
    begun: Mutex<Vec<u8>>,
    balloon: watch::Sender<Balloon>,
}

/// The state of the balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Balloon {
    /// QEMU has reported nothing since the last command.
    Unknown,
    /// The guest has this many bytes.
    Leaves(u64),
    /// The machine has no balloon.
    Missing,
}

impl Qmp {
    /// A connection, and QEMU's end of it. Called within a tokio runtime.
    pub(super) fn pair() -> io::Result<(Self, StdStream)> {
        let (own, qemus) = StdStream::pair()?;
        own.set_nonblocking(true)?;
        let monitor = Self {
            stream: UnixStream::from_std(own)?,
            begun: Mutex::default(),
            balloon: watch::Sender::new(Balloon::Unknown),
        };
        Ok((monitor, qemus))
    }

    /// Has the guest give back all memory beyond `bytes`.
    pub(super) fn set_memory(&self, bytes: u64) -> io::Result<()> {
        self.balloon.send_replace(Balloon::Unknown);
        // QEMU sends events only after qmp_capabilities, and answers its repetition with an error
        // that does no harm. There is no event if the balloon has this size already, hence the
        // query.
        let commands = format!(
            r#"{{"execute":"qmp_capabilities"}}
{{"execute":"balloon","arguments":{{"value":{bytes}}}}}
{{"execute":"query-balloon"}}
"#
        );
        match rustix::io::write(&self.stream, commands.as_bytes())? {
            written if written == commands.len() => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Waits until the guest has `bytes`, which may be never. False if the machine has no balloon.
    /// [`Self::listen`] must be awaited meanwhile.
    pub(super) async fn has_memory(&self, bytes: u64) -> bool {
        let mut balloon = self.balloon.subscribe();
        let known =
            balloon.wait_for(|it| matches!(it, Balloon::Missing) || *it == Balloon::Leaves(bytes));
        // It fails only if this is dropped.
        known.await.is_ok_and(|it| *it != Balloon::Missing)
    }

    /// Receives events and answers for ever. Cancel safe.
    pub(super) async fn listen(&self) -> Infallible {
        let mut part = [0; 1024];
        while self.stream.readable().await.is_ok() {
            match self.stream.try_read(&mut part) {
                Ok(count @ 1..) => self.received(&part[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break,
            }
        }
        // QEMU's end is noticed by its pidfd.
        std::future::pending().await
    }

    fn received(&self, part: &[u8]) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.extend_from_slice(part);
        while let Some(end) = begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = begun.drain(..=end).collect();
            if let Some(balloon) = serde_json::from_slice(&line).ok().and_then(Line::balloon) {
                self.balloon.send_replace(balloon);
            }
        }
        if begun.len() > MAX_LINE {
            begun.clear();
        }
    }
}

/// The fields of a line that are used.
#[derive(Deserialize)]
struct Line {
    event: Option<String>,
    data: Option<Actual>,
    #[serde(rename = "return")]
    answer: Option<Actual>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Actual {
    actual: Option<u64>,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
}

impl Line {
    fn balloon(self) -> Option<Balloon> {
        if self
            .error
            .is_some_and(|error| error.class == "DeviceNotActive")
        {
            return Some(Balloon::Missing);
        }
        let change = self
            .data
            .filter(|_| self.event.as_deref() == Some("BALLOON_CHANGE"));
        let actual = self.answer.or(change)?.actual?;
        Some(Balloon::Leaves(actual))
    }
}

/// Receives bytes as QEMU's, in parts whose length is the first of them.
///
/// However they are cut, the balloon is then as the last line has it that says something of it.
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub fn receive_any(input: &[u8]) {
    let Some((&cut, sent)) = input.split_first() else {
        return;
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().build().unwrap();
    let _guard = runtime.enter();
    let (monitor, _qemu) = Qmp::pair().unwrap();
    for part in sent.chunks(usize::from(cut).max(1)) {
        monitor.received(part);
        assert!(monitor.begun.lock().unwrap().len() <= MAX_LINE);
    }
    if sent.len() <= MAX_LINE {
        let lines = sent.split_inclusive(|byte| *byte == b'\n');
        let whole = lines.filter(|line| line.ends_with(b"\n"));
        let mut states =
            whole.filter_map(|line| serde_json::from_slice::<Line>(line).ok()?.balloon());
        let last = states.next_back().unwrap_or(Balloon::Unknown);
        assert_eq!(*monitor.balloon.borrow(), last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    async fn has(monitor: &Qmp, bytes: u64) -> Option<bool> {
        tokio::select! {
            biased;
            has = monitor.has_memory(bytes) => Some(has),
            never = monitor.listen() => match never {},
            () = tokio::time::sleep(Duration::from_millis(50)) => None,
        }
    }

    #[tokio::test]
    async fn the_guest_has_what_it_was_asked_to_have_once_qemu_says_so() {
        let (monitor, mut qemu) = Qmp::pair().unwrap();
        qemu.write_all(b"{\"QMP\":{\"version\":{}}}\r\n").unwrap();
        monitor.set_memory(128).unwrap();
        let mut commands = [0; 1024];
        let count = qemu.read(&mut commands).unwrap();
        let commands = std::str::from_utf8(&commands[..count]).unwrap();
        assert_eq!(commands.lines().count(), 3, "{commands}");
        assert!(
            commands
                .lines()
                .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
        );

        qemu.write_all(b"{\"return\":{}}\r\n{\"return\":{}}\r\n{\"return\":{\"actual\":256}}\r\n")
            .unwrap();
        assert_eq!(has(&monitor, 128).await, None);
        qemu.write_all(b"{\"event\":\"BALLOON_CHANGE\",\"data\":{\"act")
            .unwrap();
        assert_eq!(has(&monitor, 128).await, None);
        qemu.write_all(b"ual\":128}}\r\n").unwrap();
        assert_eq!(has(&monitor, 128).await, Some(true));
    }

    #[tokio::test]
    async fn a_machine_without_a_balloon_keeps_its_memory() {
        let (monitor, mut qemu) = Qmp::pair().unwrap();
        qemu.write_all(b"{\"error\":{\"class\":\"DeviceNotActive\",\"desc\":\"No balloon\"}}\r\n")
            .unwrap();
        assert_eq!(has(&monitor, 128).await, Some(false));
    }

    #[tokio::test]
    async fn nonsense_is_passed_over_and_a_line_without_end_is_not_kept() {
        let (monitor, mut qemu) = Qmp::pair().unwrap();
        qemu.write_all(&[b'x'; 3 * MAX_LINE]).unwrap();
        assert_eq!(has(&monitor, 128).await, None);
        assert!(monitor.begun.lock().unwrap().len() <= MAX_LINE);
        qemu.write_all(
            b"\n{}\n[7]\n{\"return\":{\"actual\":\"128\"}}\n{\"return\":{\"actual\":128}}\n",
        )
        .unwrap();
        assert_eq!(has(&monitor, 128).await, Some(true));
    }
}
