//! The proxy's end of a client connection.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};

use super::{
    Conn,
    body::{Decoder, Encoding},
    parse::{self, HeadLimits},
};
use crate::wire::{
    BodyLength, Frame, RequestHead, ResponseHead, Side, WireError, head::never_has_body,
};

/// Bytes of a pipelined next request that are taken in while the present one runs.
const PIPELINED_MAX: usize = 64 * 1024;

/// A client connection; one request after the other passes over it.
#[derive(Debug)]
pub struct ServerConn {
    conn: Conn,
    limits: HeadLimits,
    /// Bytes of the input already known to hold no end of a head.
    seen: usize,
    decoder: Decoder,
    encoding: Encoding,
    exchange: Exchange,
}

/// What is remembered of the request in progress.
#[derive(Debug)]
struct Exchange {
    version: u8,
    method: http::Method,
    keep_alive: bool,
    head_sent: bool,
    ended: bool,
    /// The connection carries another protocol now, or ends with the response.
    close_after: bool,
}

impl Exchange {
    fn none() -> Self {
        Exchange {
            version: 11,
            method: http::Method::GET,
            keep_alive: false,
            head_sent: false,
            ended: false,
            close_after: false,
        }
    }
}

impl ServerConn {
    /// A connection that has just been accepted.
    pub fn new(conn: Conn, limits: HeadLimits) -> Self {
        ServerConn {
            conn,
            limits,
            seen: 0,
            decoder: Decoder::Done,
            encoding: Encoding::Plain,
            exchange: Exchange::none(),
        }
    }

    /// The connection underneath.
    pub fn conn(&self) -> &Conn {
        &self.conn
    }

    /// Gives the connection up, for one that turned out to speak something else.
    pub fn into_conn(self) -> Conn {
        self.conn
    }

    /// Reads more of what comes; `false` when nothing will.
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.conn.poll_fill_idle(cx).map(|count| matches!(count, Ok(1..)))
    }

    /// Whether bytes of a next request are already here.
    pub fn has_input(&self) -> bool {
        !self.conn.input.is_empty()
    }

    /// Waits for the first bytes of a request; `false` when the client closed instead.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            while let [b'\r' | b'\n', ..] = self.conn.input[..] {
                self.conn.input.advance(1);
            }
            if self.has_input() {
                return Poll::Ready(true);
            }
            if !matches!(ready!(self.conn.poll_fill_idle(cx)), Ok(1..)) {
                return Poll::Ready(false);
            }
        }
    }

    /// Reads a request head whose first bytes are here.
    ///
    /// # Errors
    /// What [`parse::request`] refuses, or that the client closed in the middle.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<RequestHead, WireError>> {
        loop {
            if !starts_like_http(&self.conn.input) {
                return Poll::Ready(Err(WireError::Invalid("not HTTP")));
            }
            if let Some(head) = self.take_head()? {
                return Poll::Ready(Ok(head));
            }
            if ready!(self.conn.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(WireError::truncated()));
            }
        }
    }

    fn take_head(&mut self) -> Result<Option<RequestHead>, WireError> {
        if self.conn.input.len() <= self.limits.bytes
            && !parse::has_head_end(&self.conn.input, self.seen)
        {
            self.seen = self.conn.input.len();
            return Ok(None);
        }
        let Some((head, len)) = parse::request(&self.conn.input, self.limits)? else {
            self.seen = self.conn.input.len();
            return Ok(None);
        };
        self.conn.input.advance(len);
        self.begin(&head);
        Ok(Some(head))
    }

    fn begin(&mut self, head: &RequestHead) {
        self.seen = 0;
        self.decoder = Decoder::new(head.body, true);
        self.encoding = Encoding::Plain;
        self.exchange = Exchange {
            version: head.version,
            method: head.method.clone(),
            keep_alive: parse::keeps_alive(head.version, &head.fields),
            ..Exchange::none()
        };
    }

    /// Whether the request body has been read to its end.
    pub fn request_is_read(&self) -> bool {
        self.decoder.is_done()
    }

    /// Ready when the client has gone away while it should wait for the response.
    ///
    /// A pipelined next request is taken in meanwhile, up to a bound.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.conn.input.len() < PIPELINED_MAX {
            if !matches!(ready!(self.conn.poll_fill_idle(cx)), Ok(1..)) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Asks the client to send the body that it holds back.
    pub fn send_continue(&mut self) {
        if !self.exchange.head_sent {
            self.conn.queue_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// The connection will not be used again after this response.
    pub fn close_after_response(&mut self) {
        self.exchange.keep_alive = false;
    }

    /// Queues an informational head.
    pub fn send_informational(&mut self, head: &ResponseHead) {
        if self.exchange.version >= 11 {
            self.write_head(head, &[]);
        }
    }

    /// Queues the head of the response. `head.fields` must hold no hop-by-hop fields.
    pub fn send_head(&mut self, head: &ResponseHead) {
        debug_assert!(!self.exchange.head_sent);
        self.exchange.head_sent = true;
        if head.status == 101 {
            return self.send_switch(head);
        }
        let mut own = Vec::with_capacity(64);
        self.frame_body(head, &mut own);
        if !self.decoder.is_done() {
            self.exchange.keep_alive = false;
        }
        match (self.exchange.keep_alive, self.exchange.version) {
            (false, _) => own.extend_from_slice(b"connection: close\r\n"),
            (true, 10) => own.extend_from_slice(b"connection: keep-alive\r\n"),
            (true, _) => {}
        }
        self.write_head(head, &own);
    }

    fn frame_body(&mut self, head: &ResponseHead, own: &mut Vec<u8>) {
        let declared = head.fields.contains("content-length");
        match head.body {
            _ if never_has_body(&self.exchange.method, head.status) => {}
            BodyLength::Empty if !declared => own.extend_from_slice(b"content-length: 0\r\n"),
            BodyLength::Exact(length) if !declared => {
                own.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
            }
            BodyLength::Empty | BodyLength::Exact(_) => {}
            BodyLength::Unknown if self.exchange.version >= 11 => {
                self.encoding = Encoding::Chunked;
                own.extend_from_slice(b"transfer-encoding: chunked\r\n");
            }
            BodyLength::Unknown => self.exchange.keep_alive = false,
        }
    }

    fn send_switch(&mut self, head: &ResponseHead) {
        self.exchange.keep_alive = false;
        self.exchange.close_after = true;
        self.decoder = Decoder::UntilClose;
        self.write_head(head, b"connection: upgrade\r\n");
    }

    fn write_head(&mut self, head: &ResponseHead, own: &[u8]) {
        let conn = &mut self.conn;
        let status = head.status;
        match http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()) {
            Some("OK") => conn.queue_slice(b"HTTP/1.1 200 OK\r\n"),
            reason => conn.queue_slice(
                format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or_default()).as_bytes(),
            ),
        }
        conn.queue_fields(&head.fields);
        conn.queue_slice(own);
        conn.queue_slice(b"\r\n");
    }

    /// Whether the head of the response has been queued.
    pub fn head_sent(&self) -> bool {
        self.exchange.head_sent
    }

    /// Whether the next request may follow on this connection.
    pub fn is_reusable(&self) -> bool {
        self.exchange.keep_alive
            && self.exchange.ended
            && self.decoder.is_done()
            && self.conn.queued() == 0
            && !self.conn.read_closed
    }

    /// Gives buffers back before the connection waits for its next request.
    pub fn rest(&mut self) {
        self.conn.release_buffers();
    }

    /// Says that nothing more will be written.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.conn.poll_shutdown(cx)
    }

    /// Reads and drops what the client still sends, so that the response survives the close; `true` at its end.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.conn.input = BytesMut::new();
        match ready!(self.conn.poll_fill_idle(cx)) {
            Ok(0) | Err(_) => Poll::Ready(true),
            Ok(_) => Poll::Ready(false),
        }
    }
}

/// Tells a TLS handshake or other noise from the start of a request line without waiting for a whole line.
fn starts_like_http(input: &[u8]) -> bool {
    input.iter().take(16).take_while(|b| **b != b' ').all(u8::is_ascii_graphic)
}

impl Side for ServerConn {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, WireError>> {
        self.conn.poll_frame(&mut self.decoder, self.limits, cx)
    }

    fn send(&mut self, frame: Frame) {
        self.exchange.ended |= matches!(frame, Frame::End);
        self.conn.queue_frame(frame, &mut self.encoding);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        ready!(self.conn.poll_flush(cx))?;
        if self.exchange.close_after && self.exchange.ended {
            ready!(self.conn.poll_shutdown(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn queued(&self) -> usize {
        self.conn.queued()
    }
}
