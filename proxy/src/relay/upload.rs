//! The request body on its way from the client: how much of it is here, and what is kept for another attempt.
//!
//! Bytes are kept from the start of the body up to a bound. While nothing was given up they can be sent again to
//! another endpoint; once the bound is passed, or an endpoint has answered, the body is only passed on.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::{
    scan::Scanner,
    wire::{BACKLOG, Downstream, Fields, Frame, Side, Upstream, WireError},
};

/// The body of one request.
#[derive(Default)]
pub struct Upload {
    kept: Vec<Bytes>,
    kept_bytes: u64,
    keep_limit: u64,
    /// Bytes of the body were passed on and not kept.
    gave_up: bool,
    trailers: Option<Fields>,
    ended: bool,
    received: u64,
    limit: u64,
    expects_continue: bool,
    /// Looks for the fields that decide about the request.
    scanner: Option<Scanner>,
    /// How many of the kept pieces the present attempt has sent.
    sent: usize,
    end_sent: bool,
}

/// Why the body does not come through.
#[derive(Debug)]
pub enum UploadError {
    /// The client broke off, or sent something that is no body.
    Client(WireError),
    /// The body is longer than configured.
    TooLong,
    /// The body names a field twice that decides where it goes: routing and engine may not mean the same one.
    Ambiguous(String),
}

impl Upload {
    /// A body of at most `limit` bytes, of which the first `keep_limit` are kept for another attempt.
    pub fn new(empty: bool, expects_continue: bool, limit: u64, keep_limit: u64) -> Self {
        Upload { ended: empty, expects_continue, limit, keep_limit, ..Self::default() }
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether the client has sent all of it.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether another attempt could send all that has been sent.
    pub fn is_replayable(&self) -> bool {
        !self.gave_up
    }

    /// What was received, while all of it is kept.
    pub fn kept(&self) -> &[Bytes] {
        &self.kept
    }

    /// Looks for these top-level fields of a JSON body from now on, to its end.
    pub fn scan(&mut self, fields: &[&str]) {
        let mut scanner = Scanner::new(fields);
        for piece in &self.kept {
            scanner.feed(piece);
        }
        self.scanner = Some(scanner);
    }

    /// What was found so far.
    pub fn scanner(&self) -> Option<&Scanner> {
        self.scanner.as_ref()
    }

    /// Puts other bytes in the place of those kept.
    pub fn replace_kept(&mut self, bytes: Bytes) {
        self.kept_bytes = bytes.len() as u64;
        self.kept = vec![bytes];
    }

    /// How many bytes are kept for another attempt from now on.
    pub fn keep(&mut self, limit: u64) {
        self.keep_limit = limit;
    }

    /// Receives the next piece and keeps it; `false` at the end of the body.
    ///
    /// # Errors
    /// The client broke off, or sent too much.
    pub fn poll_receive(
        &mut self,
        client: &mut Downstream<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, UploadError>> {
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        if std::mem::take(&mut self.expects_continue) {
            client.send_continue();
            // A client that does not take it is noticed when its body does not come.
            let _ = client.poll_flush(cx);
        }
        let Poll::Ready(frame) = client.poll_frame(cx) else { return Poll::Pending };
        match frame.map_err(UploadError::Client)? {
            Frame::Data(data) => {
                self.received += data.len() as u64;
                if self.received > self.limit {
                    return Poll::Ready(Err(UploadError::TooLong));
                }
                self.look_at(&data)?;
                self.kept_bytes += data.len() as u64;
                self.kept.push(data);
            }
            Frame::Trailers(fields) => self.trailers = Some(fields),
            Frame::End => self.ended = true,
        }
        Poll::Ready(Ok(!self.ended))
    }

    /// Ready when the client has left, or sends what is no body, while nothing can be sent on. What comes of the body
    /// meanwhile is taken in, up to a bound; beyond it, and while the client waits for `100 Continue`, it is not heard.
    pub fn poll_watch(
        &mut self,
        client: &mut Downstream<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<UploadError>> {
        while !self.ended {
            if self.expects_continue || self.kept_bytes > BACKLOG as u64 {
                return Poll::Pending;
            }
            if let Err(error) = ready!(self.poll_receive(client, cx)) {
                return Poll::Ready(Some(error));
            }
        }
        client.poll_gone(cx).map(|()| None)
    }

    fn look_at(&mut self, data: &[u8]) -> Result<(), UploadError> {
        let Some(scanner) = &mut self.scanner else { return Ok(()) };
        scanner.feed(data);
        match scanner.ambiguous() {
            Some(field) => Err(UploadError::Ambiguous(field.to_owned())),
            None => Ok(()),
        }
    }

    /// A new attempt sends the body from its start.
    pub fn rewind(&mut self) {
        debug_assert!(self.is_replayable());
        (self.sent, self.end_sent) = (0, false);
    }

    /// An endpoint has answered: no other attempt will be made.
    pub fn commit(&mut self) {
        self.keep_limit = 0;
        self.forget_sent();
    }

    /// The connection carries another protocol from here on, in which both sides speak at will.
    pub fn become_tunnel(&mut self) {
        self.commit();
        (self.ended, self.end_sent, self.limit) = (false, false, u64::MAX);
    }

    /// Moves as much as both sides take; ready when all of it has been queued to the endpoint.
    ///
    /// # Errors
    /// As [`Upload::poll_receive`].
    pub fn poll_send(
        &mut self,
        client: &mut Downstream<'_>,
        upstream: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
        while !self.end_sent {
            if upstream.queued() > BACKLOG {
                return Poll::Pending;
            }
            if let Some(piece) = self.kept.get(self.sent) {
                upstream.send(Frame::Data(piece.clone()));
                self.sent += 1;
                self.forget_beyond_limit();
            } else if self.ended {
                self.send_end(upstream);
            } else {
                match self.poll_receive(client, cx) {
                    Poll::Ready(result) => _ = result?,
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn send_end(&mut self, upstream: &mut Upstream) {
        if let Some(fields) = &self.trailers {
            upstream.send(Frame::Trailers(fields.clone()));
        }
        upstream.send(Frame::End);
        self.end_sent = true;
    }

    fn forget_beyond_limit(&mut self) {
        if self.kept_bytes > self.keep_limit {
            self.forget_sent();
        }
    }

    fn forget_sent(&mut self) {
        self.gave_up |= self.sent > 0;
        self.kept_bytes -= self.kept.drain(..self.sent).map(|b| b.len() as u64).sum::<u64>();
        self.sent = 0;
    }
}
