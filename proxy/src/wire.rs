//! HTTP on the wire: the two sides of the relay, HTTP/1.1 and HTTP/2, behind one vocabulary.
//!
//! Why it exists: pingora's sessions copy every body chunk, drop HTTP/1.1 trailers, quietly repair a request that
//! carries both `Content-Length` and `Transfer-Encoding`, and send head and body in two writes. A relay that owes
//! its users all of that, at the cost of HAProxy, has to hold the bytes itself. So this module speaks HTTP on
//! pingora's [`Stream`](pingora_core::protocols::Stream), one layer below its sessions.
//!
//! What it decides: framing (where a body ends), what is refused as ambiguous, and when bytes leave.
//! What it leaves out: routing, deadlines, retries; it never looks at a clock.
//!
//! Every side can be polled, so that one loop can wait for both of them at once, and every side queues what it is
//! given, so that a head and the body that is already there leave in one write.

pub mod audience;
mod downstream;
pub mod fields;
pub mod h1;
pub mod h2;
pub mod head;
pub mod hop;
mod outgoing;
mod upstream;

use std::task::{Context, Poll};

use bytes::Bytes;

pub use downstream::Downstream;
pub use fields::Fields;
pub use head::{BodyLength, RequestHead, ResponseHead};
pub use upstream::Upstream;

/// Bytes queued towards one side above which the relay stops reading from the other.
pub const BACKLOG: usize = 256 * 1024;

/// A piece of a message body.
#[derive(Debug)]
pub enum Frame {
    /// Some bytes; never empty.
    Data(Bytes),
    /// The fields after the body. The end follows.
    Trailers(Fields),
    /// The body is complete.
    End,
}

/// Why a side of the relay can not go on.
#[derive(Debug)]
pub enum WireError {
    /// The peer closed, reset or broke the connection.
    Closed(std::io::Error),
    /// The peer sent bytes that are not HTTP, or HTTP that must not be passed on.
    Invalid(&'static str),
    /// A head or a trailer section is larger than configured.
    TooLarge(&'static str),
    /// The peer refused this stream before it did any work (`REFUSED_STREAM`, `GOAWAY`).
    Refused,
}

impl WireError {
    /// The peer closed in the middle of a message.
    pub(crate) fn truncated() -> Self {
        WireError::Closed(std::io::ErrorKind::UnexpectedEof.into())
    }
}

impl From<std::io::Error> for WireError {
    fn from(error: std::io::Error) -> Self {
        WireError::Closed(error)
    }
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WireError::Closed(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                f.write_str("closed in the middle of a message")
            }
            WireError::Closed(error) => write!(f, "connection lost: {error}"),
            WireError::Invalid(what) | WireError::TooLarge(what) => f.write_str(what),
            WireError::Refused => f.write_str("refused the request before working on it"),
        }
    }
}

impl std::error::Error for WireError {}

/// One side of the relay while bodies pass: something to read frames from and to queue frames to.
pub trait Side {
    /// The next frame from the peer. After [`Frame::End`] it must not be polled again.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, WireError>>;

    /// Queues a frame for the peer; nothing leaves before [`Side::poll_flush`].
    fn send(&mut self, frame: Frame);

    /// Writes what is queued; ready when nothing is left.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>>;

    /// Bytes that are queued and not yet written.
    fn queued(&self) -> usize;
}
