//! The endpoint's side of one attempt, whatever protocol version it speaks.

use std::task::{Context, Poll};

use super::{Frame, RequestHead, ResponseHead, Side, WireError, h1::ClientConn, h2::ClientStream};
use crate::probes::Span;

/// The endpoint of one attempt.
pub enum Upstream {
    /// HTTP/1.1: the connection is this attempt's until it goes back to the pool.
    H1(Box<ClientConn>),
    /// HTTP/2: one stream on a shared connection.
    H2(Box<ClientStream>),
}

impl Upstream {
    /// Queues the head of the request.
    ///
    /// # Errors
    /// What HTTP/2 can not carry, or a connection that takes no more streams.
    pub fn send_head(&mut self, head: &RequestHead) -> Result<(), WireError> {
        match self {
            Upstream::H1(conn) => conn.send_head(head),
            Upstream::H2(stream) => stream.send_head(head)?,
        }
        Ok(())
    }

    /// The next response head, informational ones included.
    ///
    /// # Errors
    /// The endpoint hung up, refused, or does not speak HTTP.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, WireError>> {
        match self {
            Upstream::H1(conn) => conn.poll_head(cx),
            Upstream::H2(stream) => stream.poll_head(cx),
        }
    }

    /// Whether anything at all came back for the present request.
    pub fn has_heard(&self) -> bool {
        match self {
            Upstream::H1(conn) => conn.has_heard(),
            Upstream::H2(stream) => stream.has_heard(),
        }
    }

    /// Which bytes of its connection the present request is so far, where the kernel tells what becomes of them.
    pub fn span(&self, complete: bool) -> Option<Span> {
        match self {
            Upstream::H1(conn) => conn.span(complete),
            Upstream::H2(_) => None,
        }
    }

    /// Tells the endpoint to stop: a stream is reset; a connection that is dropped is closed.
    pub fn cancel(&mut self) {
        if let Upstream::H2(stream) = self {
            stream.cancel();
        }
    }
}

impl Side for Upstream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, WireError>> {
        match self {
            Upstream::H1(conn) => conn.poll_frame(cx),
            Upstream::H2(stream) => stream.poll_frame(cx),
        }
    }

    fn send(&mut self, frame: Frame) {
        match self {
            Upstream::H1(conn) => conn.send(frame),
            Upstream::H2(stream) => stream.send(frame),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        match self {
            Upstream::H1(conn) => conn.poll_flush(cx),
            Upstream::H2(stream) => stream.poll_flush(cx),
        }
    }

    fn queued(&self) -> usize {
        match self {
            Upstream::H1(conn) => conn.queued(),
            Upstream::H2(stream) => stream.queued(),
        }
    }
}
