//! A stream with what was read ahead of it and what waits to be written to it.

use std::{
    future::Future,
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{
    body::{Decoder, Encoding, chunk_head},
    parse::HeadLimits,
};
use crate::wire::{Fields, Frame, WireError, outgoing::Outgoing};

/// The first read of a message; most heads and events fit.
const READ_MIN: usize = 8 * 1024;
/// Reads grow to this size while the peer keeps filling them.
const READ_MAX: usize = 64 * 1024;
/// An idle connection is watched through a buffer on the stack, so that it holds none on the heap.
const PEEK: usize = 4 * 1024;

/// A connection that speaks HTTP/1.1 in either role.
#[derive(Debug)]
pub struct Conn {
    stream: Stream,
    pub(super) input: BytesMut,
    out: Outgoing,
    /// The peer will send no more.
    pub(super) read_closed: bool,
    next_read: usize,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing({})", self.len())
    }
}

impl Conn {
    /// Wraps a stream that has just been accepted or dialled.
    pub fn new(stream: Stream) -> Self {
        Conn {
            stream,
            input: BytesMut::new(),
            out: Outgoing::default(),
            read_closed: false,
            next_read: READ_MIN,
        }
    }

    /// The stream and what was read ahead, for a connection that turned out to speak something else.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.input)
    }

    /// The transport underneath.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Bytes that were read and not yet consumed.
    pub fn input(&self) -> &[u8] {
        &self.input
    }

    /// Reads more into the input; `Ok(0)` is the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read_closed {
            return Poll::Ready(Ok(0));
        }
        self.input.reserve(self.next_read.saturating_sub(self.input.len()).max(READ_MIN / 2));
        let room = self.input.capacity() - self.input.len();
        let count = ready!(pin!(self.stream.read_buf(&mut self.input)).poll(cx))?;
        self.read_closed = count == 0;
        self.next_read = if count == room { READ_MAX } else { READ_MIN.max(self.next_read / 2) };
        Poll::Ready(Ok(count))
    }

    /// Reads more into the input, without holding a buffer while nothing comes; `Ok(0)` is the end of the stream.
    pub fn poll_fill_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read_closed {
            return Poll::Ready(Ok(0));
        }
        let mut bytes = [MaybeUninit::uninit(); PEEK];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        self.read_closed = buffer.filled().is_empty();
        self.input.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Whether a connection at rest may be used again: nothing came, and it was not closed.
    pub fn poll_is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        self.input.is_empty() && self.poll_fill_idle(cx).is_pending()
    }

    pub(super) fn queue_slice(&mut self, bytes: &[u8]) {
        self.out.push_slice(bytes);
    }

    pub(super) fn queue(&mut self, bytes: Bytes) {
        self.out.push(bytes);
    }

    /// Bytes queued and not yet written.
    pub fn queued(&self) -> usize {
        self.out.len()
    }

    /// Writes what is queued; ready when nothing is left.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        self.out.poll_write(&mut self.stream, cx).map_err(WireError::from)
    }

    /// Says that nothing more will be written.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Gives buffers back that a connection at rest does not need.
    pub fn release_buffers(&mut self) {
        self.out.release();
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        self.next_read = READ_MIN;
    }
}

/// What both ends do with bodies.
impl Conn {
    pub(super) fn poll_frame(
        &mut self,
        decoder: &mut Decoder,
        limits: HeadLimits,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Frame, WireError>> {
        loop {
            if let Some(frame) = decoder.decode(&mut self.input, limits)? {
                return Poll::Ready(Ok(frame));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(decoder.close());
            }
        }
    }

    pub(super) fn queue_frame(&mut self, frame: Frame, encoding: &mut Encoding) {
        match (frame, *encoding) {
            (Frame::Data(data), Encoding::Plain) => self.queue(data),
            (Frame::Data(data), Encoding::Chunked) => {
                let (line, len) = chunk_head(data.len());
                self.queue_slice(&line[..len]);
                self.queue(data);
                self.queue_slice(b"\r\n");
            }
            (Frame::Trailers(fields), Encoding::Chunked) => {
                self.queue_slice(b"0\r\n");
                self.queue_fields(&fields);
                self.queue_slice(b"\r\n");
                *encoding = Encoding::Plain;
            }
            (Frame::End, Encoding::Chunked) => self.queue_slice(b"0\r\n\r\n"),
            // Without chunks there is no place for trailers; they may be dropped (RFC 9110, 6.5.1).
            (Frame::Trailers(_) | Frame::End, Encoding::Plain) => {}
        }
    }

    pub(super) fn queue_fields(&mut self, fields: &Fields) {
        self.out.reserve(fields.wire_len());
        for (name, value) in fields.iter() {
            self.queue_slice(name);
            self.queue_slice(b": ");
            self.queue_slice(value);
            self.queue_slice(b"\r\n");
        }
    }
}
