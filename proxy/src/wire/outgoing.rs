//! What waits to be written to one connection.
//!
//! Small pieces are copied together, so that a head, a chunk and its frame leave in one write; large ones are kept
//! as they are and written beside the small ones by one vectored write.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use pingora_core::protocols::Stream;
use tokio::io::AsyncWrite;

/// Pieces below this size are copied; the copy is cheaper than another entry of a vectored write.
const COPY_BELOW: usize = 4 * 1024;
/// The first allocation: a head and a small body.
const FIRST: usize = 2 * 1024;
/// Entries handed to one vectored write.
const SLICES: usize = 16;

#[derive(Default)]
pub(super) struct Outgoing {
    sealed: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Outgoing {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push_slice(&mut self, bytes: &[u8]) {
        if self.tail.capacity() == 0 {
            self.tail.reserve(FIRST.max(bytes.len()));
        }
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Makes room for so many bytes in small pieces.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.tail.reserve(bytes);
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < COPY_BELOW {
            return self.push_slice(&bytes);
        }
        self.len += bytes.len();
        if !self.tail.is_empty() {
            self.sealed.push_back(self.tail.split().freeze());
        }
        self.sealed.push_back(bytes);
    }

    /// Gives the buffer back to the allocator; for a connection that goes idle.
    pub(super) fn release(&mut self) {
        debug_assert_eq!(self.len, 0);
        self.tail = BytesMut::new();
        self.sealed = VecDeque::new();
    }

    pub(super) fn poll_write(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.len > 0 {
            let written = ready!(self.poll_write_some(stream, cx))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_some(
        &self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.sealed.is_empty() {
            return Pin::new(stream).poll_write(cx, &self.tail);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let pieces = self.sealed.iter().map(|b| &b[..]).chain([&self.tail[..]]);
        let mut used = 0;
        for (slot, piece) in slices.iter_mut().zip(pieces) {
            *slot = IoSlice::new(piece);
            used += 1;
        }
        Pin::new(stream).poll_write_vectored(cx, &slices[..used])
    }

    fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(first) = self.sealed.front_mut() {
            if written < first.len() {
                return first.advance(written);
            }
            written -= first.len();
            self.sealed.pop_front();
        }
        self.tail.advance(written);
        if self.tail.is_empty() {
            self.tail.clear();
        }
    }
}
