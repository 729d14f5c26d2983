//! The bounds of what an agent may send, applied to each frame before ttrpc decodes it.
//!
//! ```text
//!   agent ──frames──> BoundedFrames ──frames within the bounds──> ttrpc's client
//! ```
//!
//! A frame of ttrpc is a header of ten bytes (length, stream id, type, flags) and a message. A
//! frame that exceeds a bound becomes a failure of its own call: a container that has too many
//! processes to list goes on running, and the connection can be used for other calls. What no
//! ttrpc server sends ends the connection.

mod elements;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ttrpc::proto::{
    Codec, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_DATA, MESSAGE_TYPE_RESPONSE,
    MessageHeader,
};
use ttrpc::{Code, Response};

use crate::host::rate::Rate;

/// The longest message that is read, in bytes. ttrpc itself takes 4 MiB, which can hold two million
/// empty messages that cost root's process 200 times their length when they are decoded.
const MAX_ANSWER: usize = 64 * 1024;

/// The longest message while the answer of a call is awaited that lists processes or statistics, in
/// bytes: some 2,000 processes beside the arguments that the agent sends. The costliest message of
/// this length is one of unknown fields, which take 4 bytes each and together 24 MiB once decoded.
const MAX_LONG_ANSWER: usize = 384 * 1024;

/// The longest event, in bytes: it holds two ids and some numbers.
const MAX_EVENT: usize = 4096;

/// The most events a second. ttrpc queues events without a bound, faster than they are published: a
/// flood of OOM reports grew root's process by 70 MiB a second. The answers of a guest that sends
/// more wait with them.
const MAX_EVENTS: u32 = 256;

/// The most frames a second. One that nobody waits for costs root's process time.
const MAX_FRAMES: u32 = 2048;

/// How many bytes are read at a time.
const CHUNK: usize = 4096;

/// Calls whose answers may be long, while they are awaited.
#[derive(Clone, Debug, Default)]
pub(super) struct LongAnswers(Arc<AtomicUsize>);

impl LongAnswers {
    /// Admits long answers until the value is dropped.
    pub(super) fn admit(&self) -> Admission<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Admission(&self.0)
    }

    fn are_admitted(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// A long answer is awaited.
pub(super) struct Admission<'a>(&'a AtomicUsize);

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection to an agent whose frames are within the bounds.
pub(super) struct BoundedFrames<S> {
    inner: S,
    long_answers: LongAnswers,
    /// What has arrived of a frame, its header included.
    frame: Vec<u8>,
    /// How many bytes of a complete frame the reader has taken; None while the frame arrives.
    taken: Option<usize>,
    /// The bytes still to pass over of a message that is too long.
    excess: usize,
    events: Rate,
    frames: Rate,
}

impl<S: AsyncRead + Unpin> BoundedFrames<S> {
    pub(super) fn new(inner: S, long_answers: LongAnswers) -> Self {
        Self {
            inner,
            long_answers,
            frame: Vec::new(),
            taken: None,
            excess: 0,
            events: Rate::new(MAX_EVENTS),
            frames: Rate::new(MAX_FRAMES),
        }
    }

    /// Receives until a frame is complete. False at the end of the connection.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let mut chunk = [0; CHUNK];
            let wanted = match self.excess {
                0 => self.missing(),
                excess => excess,
            };
            let mut chunk = ReadBuf::new(&mut chunk[..wanted.min(CHUNK)]);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut chunk))?;
            let received = chunk.filled();
            if received.is_empty() {
                return Poll::Ready(Ok(false));
            }
            if self.excess > 0 {
                self.excess -= received.len();
                continue;
            }
            self.frame.extend_from_slice(received);
            self.check()?;
            if self.taken.is_some() {
                return Poll::Ready(Ok(true));
            }
        }
    }

    fn header(&self) -> Option<MessageHeader> {
        let header = self.frame.get(..MESSAGE_HEADER_LENGTH)?;
        Some(MessageHeader::from(header))
    }

    /// How many bytes of the header, or of the message, have not arrived.
    fn missing(&self) -> usize {
        let end = self.header().map_or(0, |header| header.length as usize);
        (MESSAGE_HEADER_LENGTH + end).saturating_sub(self.frame.len())
    }

    /// Replaces a frame that exceeds a bound, and marks a complete one.
    fn check(&mut self) -> io::Result<()> {
        let Some(header) = self.header() else {
            return Ok(());
        };
        let (length, limit) = (header.length as usize, self.limit(header.type_));
        let is_known = matches!(header.type_, MESSAGE_TYPE_RESPONSE | MESSAGE_TYPE_DATA);
        if !is_known || length > MESSAGE_LENGTH_MAX {
            let reason = "the sandbox's agent does not speak ttrpc";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        if length > limit {
            let excess = self.missing();
            self.fail(
                &header,
                &format!(
                    "the sandbox's agent has answered with {length} bytes, more than the {limit} \
                     that are read"
                ),
            )?;
            self.excess = excess;
        } else if self.missing() == 0 {
            let message = &self.frame[MESSAGE_HEADER_LENGTH..];
            if let Err(reason) = elements::check(message) {
                self.fail(&header, &reason.to_string())?;
            }
            self.taken = Some(0);
        }
        Ok(())
    }

    fn limit(&self, kind: u8) -> usize {
        match kind {
            MESSAGE_TYPE_DATA => MAX_EVENT,
            _ if self.long_answers.are_admitted() => MAX_LONG_ANSWER,
            _ => MAX_ANSWER,
        }
    }

    /// Puts the failure of a call in the place of the frame that answers it.
    fn fail(&mut self, header: &MessageHeader, reason: &str) -> io::Result<()> {
        let mut answer = Response::new();
        answer.set_status(ttrpc::get_status(Code::RESOURCE_EXHAUSTED, reason));
        let answer = answer.encode().map_err(io::Error::other)?;
        let length = u32::try_from(answer.len()).map_err(io::Error::other)?;
        self.frame = MessageHeader::new_response(header.stream_id, length).into();
        self.frame.extend_from_slice(&answer);
        self.taken = Some(0);
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedFrames<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.taken.is_none() && !ready!(this.poll_frame(cx))? {
            return Poll::Ready(Ok(()));
        }
        let taken = this.taken.unwrap_or(0);
        if taken == 0 {
            let is_event = this
                .header()
                .is_some_and(|it| it.type_ == MESSAGE_TYPE_DATA);
            let rate = match is_event {
                true => &mut this.events,
                false => &mut this.frames,
            };
            ready!(rate.poll_admit(cx));
        }
        let rest = &this.frame[taken..];
        let part = &rest[..rest.len().min(out.remaining())];
        out.put_slice(part);
        let taken = taken + part.len();
        this.taken = Some(taken).filter(|taken| *taken < this.frame.len());
        if this.taken.is_none() {
            this.frame = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BoundedFrames<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn frame(header: MessageHeader, message: &[u8]) -> Vec<u8> {
        [Vec::from(header).as_slice(), message].concat()
    }

    /// What a client reads of these bytes if they arrive in pieces of `size`.
    async fn read(bytes: Vec<u8>, size: usize) -> Vec<u8> {
        let (mut peer, own) = duplex(size);
        let write = tokio::spawn(async move { peer.write_all(&bytes).await });
        let mut frames = BoundedFrames::new(own, LongAnswers::default());
        let mut read = Vec::new();
        frames.read_to_end(&mut read).await.unwrap();
        write.await.unwrap().unwrap();
        read
    }

    #[tokio::test]
    async fn frames_within_the_bounds_arrive_unchanged_however_they_are_cut() {
        let mut answer = Response::new();
        // Some thousand fields of the number 1 with the value 8.
        answer.set_payload(vec![8; 10_000]);
        let answer = answer.encode().unwrap();
        let sent = [
            frame(MessageHeader::new_response(1, 0), &[]),
            frame(MessageHeader::new_data(3, 4), &[0x12, 2, 0x0a, 0]),
            frame(MessageHeader::new_response(5, answer.len() as u32), &answer),
        ]
        .concat();
        for size in [1, 9, 10, 11, CHUNK + 1, 1 << 20] {
            assert!(read(sent.clone(), size).await == sent, "pieces of {size}");
        }
    }

    #[tokio::test]
    async fn what_follows_a_frame_that_is_too_long_arrives() {
        let long = vec![0; MAX_EVENT + 1];
        let next = frame(MessageHeader::new_response(9, 0), &[]);
        let header = MessageHeader::new_data(7, long.len() as u32);
        let sent = [frame(header, &long), next.clone()].concat();
        for size in [1, CHUNK, 1 << 20] {
            let read = read(sent.clone(), size).await;
            let refusal = MessageHeader::from(&read[..MESSAGE_HEADER_LENGTH]);
            assert_eq!((refusal.stream_id, refusal.type_), (7, 2));
            let end = MESSAGE_HEADER_LENGTH + refusal.length as usize;
            let refused = Response::decode(&read[MESSAGE_HEADER_LENGTH..end]).unwrap();
            assert!(refused.status().message().contains("4097 bytes"));
            assert_eq!(read[end..], next);
        }
    }
}
