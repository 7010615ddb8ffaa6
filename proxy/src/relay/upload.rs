//! The request body on its way from the client: how much of it is here, and what is kept for another attempt.
//!
//! Bytes are kept from the start of the body up to a bound. While nothing was given up they can be sent again to
//! another endpoint; once the bound is passed, or an endpoint has answered, the body is only passed on.

use std::{
    sync::LazyLock,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use memchr::memmem::Finder;

use crate::{
    compress::{Decoder, Refused},
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
    /// What was received once more, for a copy of the request.
    copy: Option<Copy>,
    /// The body comes compressed and goes on as it was before.
    unpacking: Option<Unpacking>,
}

/// A compressed body on its way in.
struct Unpacking {
    decoder: Decoder,
    /// What has come and is not decoded yet.
    packed: Bytes,
    came_to_end: bool,
    /// All that has come, as it came, for as long as it may still be wanted so.
    original: Option<Vec<Bytes>>,
}

/// So much is decoded at once; other requests have their turn in between.
const UNPACKED_AT_ONCE: usize = 64 * 1024;

impl Unpacking {
    /// The next piece; empty when more has to come first.
    fn next(&mut self) -> Result<Bytes, Refused> {
        let mut out = Vec::new();
        let mut input: &[u8] = &self.packed;
        self.decoder.decode(&mut input, &mut out, UNPACKED_AT_ONCE)?;
        let used = self.packed.len() - input.len();
        self.packed.advance(used);
        if out.is_empty() && self.came_to_end {
            self.decoder.finish()?;
        }
        Ok(out.into())
    }
}

/// A second hold on the pieces of a body, up to a bound.
#[derive(Default)]
struct Copy {
    pieces: Vec<Bytes>,
    bytes: u64,
    limit: u64,
    too_long: bool,
}

impl Copy {
    fn add(&mut self, piece: &Bytes) {
        self.bytes += piece.len() as u64;
        self.too_long |= self.bytes > self.limit;
        match self.too_long {
            true => self.pieces.clear(),
            false => self.pieces.push(piece.clone()),
        }
    }
}

/// A body that is here as a whole, for a second attempt beside the first.
pub struct Whole {
    pieces: Vec<Bytes>,
    trailers: Option<Fields>,
    bytes: u64,
    asks_for_stream: bool,
}

impl Whole {
    /// Queues all of it. The pieces are shared with the first attempt, so nothing is held twice.
    pub fn queue(&self, upstream: &mut Upstream) {
        for piece in &self.pieces {
            upstream.send(Frame::Data(piece.clone()));
        }
        if let Some(fields) = &self.trailers {
            upstream.send(Frame::Trailers(fields.clone()));
        }
        upstream.send(Frame::End);
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// As [`Upload::asks_for_stream`].
    pub fn asks_for_stream(&self) -> bool {
        self.asks_for_stream
    }
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
    /// The body is compressed and can not, or must not, be decompressed.
    Packed(Refused),
}

/// How far from either end of a body its short members are looked for, in bytes.
const ENDS: usize = 2048;

/// The number after one of these names.
fn says_number(text: &[u8]) -> Option<u64> {
    static NAMES: LazyLock<[Finder<'static>; 2]> =
        LazyLock::new(|| ["\"max_tokens\"", "\"max_completion_tokens\""].map(Finder::new));
    NAMES.iter().find_map(|name| {
        let at = name.find(text)? + name.needle().len();
        let value = text[at..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        let digits = value.iter().take_while(|b| b.is_ascii_digit()).count();
        std::str::from_utf8(&value[..digits]).ok()?.parse().ok()
    })
}

/// Whether the text has `"stream": true`.
fn says_stream(text: &[u8]) -> bool {
    static NAME: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"stream\""));
    NAME.find_iter(text).any(|at| {
        let value = text[at + NAME.needle().len()..].trim_ascii_start();
        value.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"true"))
    })
}

impl Upload {
    /// A body of at most `limit` bytes, of which the first `keep_limit` are kept for another attempt.
    pub fn new(empty: bool, expects_continue: bool, limit: u64, keep_limit: u64) -> Self {
        Upload { ended: empty, expects_continue, limit, keep_limit, ..Self::default() }
    }

    /// A body that is here as a whole.
    pub fn given(body: Bytes) -> Self {
        let bytes = body.len() as u64;
        let kept = if body.is_empty() { Vec::new() } else { vec![body] };
        let (keep_limit, limit) = (u64::MAX, u64::MAX);
        Upload {
            kept,
            kept_bytes: bytes,
            keep_limit,
            ended: true,
            received: bytes,
            limit,
            ..Self::default()
        }
    }

    /// The body comes compressed; what it holds takes its place, also of what has been received of it. How it came is
    /// not forgotten before [`Upload::stay_unpacked`].
    pub fn unpack_by(&mut self, decoder: Decoder) {
        let packed: Bytes = self.kept.concat().into();
        let came_to_end = std::mem::take(&mut self.ended);
        let original = Some(std::mem::take(&mut self.kept));
        self.unpacking = Some(Unpacking { decoder, packed, came_to_end, original });
        (self.kept_bytes, self.scanner) = (0, None);
    }

    /// The body is what it was before [`Upload::unpack_by`], with what has been received since.
    pub fn pack_again(&mut self) {
        let Some(Unpacking { came_to_end, original: Some(original), .. }) = self.unpacking.take()
        else {
            return;
        };
        (self.ended, self.scanner) = (came_to_end, None);
        self.kept_bytes = original.iter().map(|piece| piece.len() as u64).sum();
        self.kept = original;
    }

    /// Nobody will want the body as it came.
    pub fn stay_unpacked(&mut self) {
        if let Some(unpacking) = &mut self.unpacking {
            unpacking.original = None;
        }
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

    /// All of it, where it has ended and is kept.
    pub fn second_copy(&self) -> Option<Whole> {
        (self.ended && !self.gave_up).then(|| Whole {
            pieces: self.kept.clone(),
            trailers: self.trailers.clone(),
            bytes: self.received,
            asks_for_stream: self.asks_for_stream(),
        })
    }

    /// Whether fields came after it.
    pub fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }

    /// What was received, while all of it is kept, in one piece.
    pub fn whole(&self) -> Bytes {
        match &*self.kept {
            [one] => one.clone(),
            pieces => pieces.concat().into(),
        }
    }

    /// What was received, while all of it is kept.
    pub fn kept(&self) -> &[Bytes] {
        &self.kept
    }

    /// How many bytes are kept.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// Whether a JSON body asks for a stream of events, as far as what is kept of it shows: the member stands near one
    /// end of the body, where the prompt is not.
    pub fn asks_for_stream(&self) -> bool {
        self.ends().is_some_and(|ends| ends.into_iter().any(says_stream))
    }

    /// The most tokens that a JSON body allows for the answer, where that shows likewise.
    pub fn most_tokens(&self) -> Option<u64> {
        self.ends()?.into_iter().find_map(says_number)
    }

    /// What is kept of the two ends of the body; of a short one the whole twice over would say no more than once.
    fn ends(&self) -> Option<[&[u8]; 2]> {
        let (first, last) = (self.kept.first()?, self.kept.last()?);
        if self.kept.len() == 1 && first.len() <= 2 * ENDS {
            return Some([first, &[]]);
        }
        Some([&first[..first.len().min(ENDS)], &last[last.len().saturating_sub(ENDS)..]])
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

    /// Holds what was and will be received once more, up to `limit` bytes, for [`Upload::take_copy`].
    pub fn copy(&mut self, limit: u64) {
        let mut copy = Copy { limit, ..Copy::default() };
        self.kept.iter().for_each(|piece| copy.add(piece));
        self.copy = Some(copy);
    }

    /// What was held; the inner `None` when it was too long.
    pub fn take_copy(&mut self) -> Option<Option<Vec<Bytes>>> {
        self.copy.take().map(|copy| (!copy.too_long).then_some(copy.pieces))
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
        if let Some(piece) = self.unpack()? {
            self.keep_piece(piece)?;
            return Poll::Ready(Ok(true));
        }
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        match ready!(client.poll_frame(cx)).map_err(UploadError::Client)? {
            Frame::Data(data) => {
                self.received += data.len() as u64;
                if self.received > self.limit {
                    return Poll::Ready(Err(UploadError::TooLong));
                }
                match &mut self.unpacking {
                    Some(unpacking) => {
                        if let Some(original) = &mut unpacking.original {
                            original.push(data.clone());
                        }
                        unpacking.packed = data;
                    }
                    None => self.keep_piece(data)?,
                }
            }
            Frame::Trailers(fields) => self.trailers = Some(fields),
            Frame::End => match &mut self.unpacking {
                // There may be more inside than has been seen.
                Some(unpacking) if !unpacking.came_to_end => unpacking.came_to_end = true,
                _ => self.ended = true,
            },
        }
        Poll::Ready(Ok(!self.ended))
    }

    /// The next piece of what a compressed body holds, if what has come is enough for one.
    fn unpack(&mut self) -> Result<Option<Bytes>, UploadError> {
        let Some(unpacking) = &mut self.unpacking else { return Ok(None) };
        let piece = unpacking.next().map_err(UploadError::Packed)?;
        if piece.is_empty() && unpacking.came_to_end {
            self.ended = true;
        }
        Ok((!piece.is_empty()).then_some(piece))
    }

    fn keep_piece(&mut self, piece: Bytes) -> Result<(), UploadError> {
        self.look_at(&piece)?;
        if let Some(copy) = &mut self.copy {
            copy.add(&piece);
        }
        self.kept_bytes += piece.len() as u64;
        self.kept.push(piece);
        Ok(())
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
        (self.unpacking, self.copy) = (None, None);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(pieces: &[&str]) -> Upload {
        let pieces = pieces.iter().map(|piece| Bytes::copy_from_slice(piece.as_bytes()));
        Upload { kept: pieces.collect(), ..Upload::default() }
    }

    #[test]
    fn the_most_tokens_are_found_near_either_end() {
        let prompt = "word ".repeat(2_000);
        for (pieces, most) in [
            (vec![r#"{"max_tokens": 12, "prompt": "x"}"#.to_owned()], Some(12)),
            (vec![format!(r#"{{"prompt":"{prompt}","max_completion_tokens":7}}"#)], Some(7)),
            (vec![r#"{"max_tokens":5,"#.to_owned(), prompt.clone()], Some(5)),
            (vec![prompt.clone(), r#""max_tokens" :9}"#.to_owned()], Some(9)),
            (vec![r#"{"max_tokens":null}"#.to_owned()], None),
            (vec![r#"{"max_tokens":99999999999999999999999}"#.to_owned()], None),
            (vec![], None),
        ] {
            let pieces: Vec<_> = pieces.iter().map(String::as_str).collect();
            assert_eq!(kept(&pieces).most_tokens(), most, "{pieces:?}");
        }
    }
}
