//! The proxy's end of a connection to an endpoint.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Buf;

use super::{
    Conn,
    body::{Decoder, Encoding},
    parse::{self, HeadLimits, MAX_FIELDS},
};
use crate::{
    probes::{Span, Watch},
    wire::{BodyLength, Frame, RequestHead, ResponseHead, Side, WireError},
};

/// Engines are trusted further than clients, yet not without bound.
const LIMITS: HeadLimits = HeadLimits { bytes: 256 * 1024, fields: MAX_FIELDS };

/// A connection to an endpoint; one request after the other passes over it.
#[derive(Debug)]
pub struct ClientConn {
    conn: Conn,
    decoder: Decoder,
    encoding: Encoding,
    seen: usize,
    method: http::Method,
    upgrading: bool,
    upgraded: bool,
    request_ended: bool,
    keep_alive: bool,
    answered: bool,
    /// The kernel tells what the endpoint does with what is sent.
    watch: Option<Watch>,
}

impl ClientConn {
    /// A connection that has just been dialled, and is followed or not.
    pub fn new(conn: Conn, watch: Option<Watch>) -> Self {
        ClientConn {
            conn,
            watch,
            decoder: Decoder::Done,
            encoding: Encoding::Plain,
            seen: 0,
            method: http::Method::GET,
            upgrading: false,
            upgraded: false,
            request_ended: false,
            keep_alive: false,
            answered: false,
        }
    }

    /// Whether a pooled connection may carry another request: it is silent and open.
    pub fn poll_is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        self.conn.poll_is_quiet(cx)
    }

    /// Queues the head of a request. `head.fields` must hold no hop-by-hop fields but `upgrade` and `te`.
    pub fn send_head(&mut self, head: &RequestHead) {
        if let Some(watch) = &mut self.watch {
            watch.begin();
        }
        self.method = head.method.clone();
        self.upgrading = head.fields.contains("upgrade");
        (self.upgraded, self.request_ended, self.answered) = (false, false, false);
        self.encoding = Encoding::Plain;
        self.conn.queue_slice(self.method.as_str().as_bytes());
        self.conn.queue_slice(b" ");
        self.conn.queue_slice(head.target().as_bytes());
        self.conn.queue_slice(b" HTTP/1.1\r\n");
        self.conn.queue_fields(&head.fields);
        self.queue_framing(head);
        self.conn.queue_slice(b"\r\n");
    }

    fn queue_framing(&mut self, head: &RequestHead) {
        if self.upgrading {
            self.conn.queue_slice(b"connection: upgrade\r\n");
        } else if head.fields.contains("te") {
            self.conn.queue_slice(b"connection: te\r\n");
        }
        let declared = head.fields.contains("content-length");
        match head.body {
            BodyLength::Exact(length) if !declared => {
                self.conn.queue_slice(format!("content-length: {length}\r\n").as_bytes());
            }
            BodyLength::Unknown => {
                self.encoding = Encoding::Chunked;
                self.conn.queue_slice(b"transfer-encoding: chunked\r\n");
            }
            BodyLength::Exact(_) | BodyLength::Empty => {}
        }
    }

    /// The next response head, informational ones included.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the endpoint hung up, [`WireError::Invalid`] when it does not speak HTTP.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, WireError>> {
        loop {
            if let Some(head) = self.take_head()? {
                return Poll::Ready(Ok(head));
            }
            if ready!(self.conn.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(WireError::truncated()));
            }
        }
    }

    fn take_head(&mut self) -> Result<Option<ResponseHead>, WireError> {
        let input = &self.conn.input;
        if !b"HTTP/".starts_with(&input[..input.len().min(5)]) {
            return Err(WireError::Invalid("endpoint answered with something that is not HTTP"));
        }
        if input.len() <= LIMITS.bytes && !parse::has_head_end(input, self.seen) {
            self.seen = input.len();
            return Ok(None);
        }
        let Some((head, len)) = parse::response(input, &self.method, LIMITS)? else {
            self.seen = input.len();
            return Ok(None);
        };
        self.conn.input.advance(len);
        self.seen = 0;
        if !head.is_informational() {
            self.begin(&head)?;
        }
        Ok(Some(head))
    }

    fn begin(&mut self, head: &ResponseHead) -> Result<(), WireError> {
        self.answered = true;
        self.upgraded = head.status == 101;
        if self.upgraded && !self.upgrading {
            return Err(WireError::Invalid("endpoint switched protocols without being asked"));
        }
        self.decoder = match self.upgraded {
            true => Decoder::UntilClose,
            false => Decoder::new(head.body, head.fields.contains("transfer-encoding")),
        };
        self.keep_alive = parse::keeps_alive(head.version, &head.fields)
            && !matches!(self.decoder, Decoder::UntilClose);
        Ok(())
    }

    /// Whether anything at all came back for the present request.
    pub fn has_heard(&self) -> bool {
        self.answered || self.seen > 0 || !self.conn.input.is_empty()
    }

    /// Whether another request may follow on this connection.
    pub fn is_reusable(&self) -> bool {
        self.keep_alive
            && self.answered
            && self.request_ended
            && self.decoder.is_done()
            && self.conn.queued() == 0
            && self.conn.input.is_empty()
            && !self.conn.read_closed
    }

    /// Which bytes of the connection the present request is so far, if that is followed.
    pub fn span(&self, complete: bool) -> Option<Span> {
        self.watch.as_ref().map(|watch| watch.span(complete))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        let Some(watch) = &mut self.watch else { return self.conn.poll_flush(cx) };
        let before = self.conn.queued();
        if before > 0 {
            watch.sends();
        }
        let result = self.conn.poll_flush(cx);
        watch.sent(before - self.conn.queued());
        result
    }

    /// Gives buffers back before the connection rests in the pool.
    pub fn rest(&mut self) {
        self.conn.release_buffers();
    }

    /// Says that nothing more will be written.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.conn.poll_shutdown(cx)
    }
}

impl Side for ClientConn {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, WireError>> {
        self.conn.poll_frame(&mut self.decoder, LIMITS, cx)
    }

    fn send(&mut self, frame: Frame) {
        self.request_ended |= matches!(frame, Frame::End);
        self.conn.queue_frame(frame, &mut self.encoding);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        ready!(self.poll_write(cx))?;
        if self.upgraded && self.request_ended {
            ready!(self.conn.poll_shutdown(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn queued(&self) -> usize {
        self.conn.queued()
    }
}
