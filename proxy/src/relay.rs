//! One attempt's exchange with an endpoint, while its client listens: one loop for every protocol pair.
//!
//! Both sides are polled together, so a chunk is passed on in the wake-up that brought it, whichever side it came
//! from; a side that is behind stops the other from being read ([`crate::wire::BACKLOG`]). The client is watched in
//! every phase: when it goes away the exchange ends, and dropping it closes or resets the endpoint's side.
//!
//! What it leaves out: whether there will be another attempt, and what the client is told when there is none.

pub mod load_report;
mod packer;
pub mod progress;
pub mod rival;
pub mod upload;

use std::{
    borrow::Cow,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
pub use packer::Packer;
pub use progress::Progress;
pub use upload::{Upload, UploadError};

use crate::{
    balance::Cost,
    clock,
    compress::{self, Broken, Encoder, Refused},
    deadline::Answer,
    deadline::{Expiry, Next, Watchdog},
    learning::Foresight,
    outlier::stall::Turn,
    request::Request,
    telemetry::metrics::RouteMetrics,
    upstream::{Backend, backend::Place, connect},
    wire::{
        BACKLOG, BodyLength, Downstream, Fields, Frame, ResponseHead, Side, Upstream, WireError,
        hop::strip_hop_by_hop,
    },
};

/// How long an endpoint that seems to have stopped working has for showing that it was us: to read what has come since.
pub const STALL_DOUBT: Duration = Duration::from_millis(100);

/// Why an exchange broke off.
#[derive(Debug)]
pub enum Fault {
    /// The client went away, or broke its connection.
    ClientGone,
    /// The client's request body is not a body.
    ClientInvalid(Cow<'static, str>),
    /// The client's request body is longer than configured.
    TooLarge,
    /// The client's request body can not, or must not, be decompressed.
    Packed(Refused),
    /// The endpoint hung up, refused, or sent nonsense.
    Upstream(WireError),
    /// Something took too long.
    Expired(Expiry),
}

impl From<Option<UploadError>> for Fault {
    fn from(error: Option<UploadError>) -> Self {
        error.map_or(Fault::ClientGone, Fault::from)
    }
}

impl From<Broken> for Fault {
    fn from(_: Broken) -> Self {
        Fault::Upstream(WireError::Invalid("no memory to compress its response"))
    }
}

impl From<UploadError> for Fault {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::TooLong => Fault::TooLarge,
            UploadError::Packed(refused) => Fault::Packed(refused),
            UploadError::Ambiguous(field) => {
                Fault::ClientInvalid(format!("the body names {field:?} more than once").into())
            }
            UploadError::Client(WireError::Invalid(what) | WireError::TooLarge(what)) => {
                Fault::ClientInvalid(what.into())
            }
            UploadError::Client(WireError::Closed(_) | WireError::Refused) => Fault::ClientGone,
        }
    }
}

/// The bounds of one exchange; `None` is no bound.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the request having been sent to the first byte of the response body.
    pub first_byte: Option<Duration>,
    /// Between two pieces of the response.
    pub gap: Option<Duration>,
    /// When all must be over.
    pub total: Option<Instant>,
    /// Between two pieces of the request body.
    pub client_body: Duration,
    /// Between two times that the client reads something.
    pub client_read: Duration,
    /// Load reports of the endpoint are believed.
    pub believes_reports: bool,
}

/// Client and endpoint of one attempt.
pub struct Exchange<'r, 'c> {
    /// The client.
    pub client: &'r mut Downstream<'c>,
    /// The request.
    pub request: &'r mut Request,
    /// The place held at the endpoint.
    pub place: Place,
    watchdog: &'r mut Watchdog,
    upstream: Upstream,
    bounds: Bounds,
    packer: Option<Packer>,
    /// What the endpoint owes, once it has the whole request.
    turn: Option<Turn>,
    /// What is expected of it, where the route learns its deadlines.
    foresight: Option<Foresight>,
    /// A frame that came before its head was passed on.
    early: Option<Frame>,
    state: State,
}

struct State {
    /// Since when the endpoint has owed us something.
    waiting_since: Instant,
    /// An upgrade is asked for: nothing but the head may be sent before the answer.
    hold_upload: bool,
    tunnel: bool,
    uploaded: bool,
    /// The endpoint takes no more of the body; its answer may be on the way all the same.
    upload_failed: Option<WireError>,
    /// When the client's side last moved: its body came, or it read something.
    client_moved: Option<Instant>,
    client_behind: bool,
    responding: bool,
    /// The status of the response is a success.
    succeeding: bool,
    /// The endpoint seemed to have stopped working, and has the benefit of the doubt until then.
    doubt_until: Option<Instant>,
    download_ended: bool,
}

impl State {
    fn new(hold_upload: bool) -> Self {
        State {
            waiting_since: clock::now(),
            hold_upload,
            tunnel: false,
            uploaded: false,
            upload_failed: None,
            client_moved: None,
            client_behind: false,
            responding: false,
            succeeding: false,
            doubt_until: None,
            download_ended: false,
        }
    }
}

impl<'r, 'c> Exchange<'r, 'c> {
    /// Both sides, with the head of the request already queued to the endpoint.
    pub fn new(
        client: &'r mut Downstream<'c>,
        request: &'r mut Request,
        watchdog: &'r mut Watchdog,
        upstream: Upstream,
        place: Place,
        bounds: Bounds,
    ) -> Self {
        // Without a body, nothing may follow an upgrade before it is answered.
        let upgrade = request.head.fields.contains("upgrade");
        let state = State::new(upgrade && request.head.body == BodyLength::Empty);
        let mut exchange = Exchange {
            client,
            request,
            place,
            watchdog,
            upstream,
            bounds,
            packer: None,
            turn: None,
            foresight: None,
            early: None,
            state,
        };
        exchange.set_limits();
        if exchange.request.upload.has_ended() {
            exchange.foresee();
        }
        exchange
    }

    fn set_limits(&mut self) {
        let trail = &mut self.request.trail;
        (trail.first_byte_limit, trail.gap_limit) = (self.bounds.first_byte, self.bounds.gap);
    }

    /// Sets the deadlines as they were learned, where they are, once the whole request is here: what it asks for stands
    /// in its body.
    fn foresee(&mut self) {
        if let Some(learning) = &self.request.learning {
            let upload = &self.request.upload;
            let answer = match upload.asks_for_stream() {
                true => Answer::Streamed,
                false => Answer::Whole { most: upload.most_tokens() },
            };
            let foresight = learning.foresee(&self.place, answer, clock::now());
            let allowed = &self.request.allowed;
            if let Some(limit) = foresight.first_byte() {
                self.bounds.first_byte = allowed.first_byte(Some(limit));
            }
            if let Some(limit) = foresight.gap() {
                self.bounds.gap = allowed.gap(Some(limit));
            }
            self.foresight = Some(foresight);
            self.set_limits();
        }
    }

    /// Sends the request and waits for the head of the response.
    ///
    /// # Errors
    /// [`Fault`]; nothing of a response has been sent to the client then, but informational heads.
    pub async fn head(&mut self) -> Result<ResponseHead, Fault> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Fault>> {
        self.advance_upload(cx)?;
        loop {
            match self.upstream.poll_head(cx) {
                Poll::Ready(Ok(head)) if head.is_informational() => self.inform(head),
                Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.upstream_fault(error))),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(_)) = self.client.poll_flush(cx) {
            return Poll::Ready(Err(Fault::ClientGone));
        }
        self.poll_client_and_clock(cx)
    }

    /// `100` was answered by us when we asked for the body; the others are the client's to see.
    fn inform(&mut self, mut head: ResponseHead) {
        if head.status != 100 {
            strip_hop_by_hop(&mut head.fields);
            self.client.send_informational(&head);
        }
    }

    /// Waits for the first piece of the response, so that it can still come from elsewhere if there is none: engines
    /// send the head of a stream before they have begun to work on it.
    ///
    /// # Errors
    /// As [`Exchange::head`].
    pub async fn first_piece(&mut self) -> Result<(), Fault> {
        poll_fn(|cx| self.poll_first_piece(cx)).await
    }

    fn poll_first_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if self.early.is_some() {
            return Poll::Ready(Ok(()));
        }
        self.advance_upload(cx)?;
        match self.upstream.poll_frame(cx) {
            Poll::Ready(Ok(frame)) => {
                self.early = Some(frame);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.upstream_fault(error))),
            Poll::Pending => self.poll_client_and_clock(cx),
        }
    }

    /// The body of the response goes to the client in this coding.
    pub fn pack(&mut self, encoder: Encoder, metrics: Arc<RouteMetrics>) {
        self.packer = Some(Packer::new(encoder, metrics));
    }

    /// The endpoint has answered with this head, which goes to the client; no other attempt follows.
    ///
    /// # Errors
    /// [`Fault::ClientGone`].
    pub fn begin_response(&mut self, head: &ResponseHead) -> Result<(), Fault> {
        if head.status == 101 {
            self.state.tunnel = true;
            self.request.upload.become_tunnel();
        } else {
            self.request.upload.commit();
        }
        self.state.hold_upload = false;
        self.state.uploaded &= !self.state.tunnel;
        self.state.responding = true;
        self.state.succeeding = (200..300).contains(&head.status);
        self.client.send_head(head).map_err(|_| Fault::ClientGone)
    }

    /// Passes the body on until its end.
    ///
    /// # Errors
    /// [`Fault`]; the response is incomplete then.
    pub async fn body(&mut self) -> Result<(), Fault> {
        poll_fn(|cx| self.poll_body(cx)).await
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            let full = self.advance_download(cx)?;
            let before = self.client.queued();
            match self.client.poll_flush(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::ClientGone)),
                Poll::Ready(Ok(())) if self.is_over() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => self.note_client_keeps_up(),
                Poll::Pending => self.note_client_behind(before),
            }
            // The backlog is gone: there may be more to read that nobody would wake us for.
            if !(full && self.client.queued() <= BACKLOG) {
                break;
            }
        }
        self.advance_upload(cx)?;
        // The upload may have been the last thing that a tunnel waited for.
        if self.is_over() && self.client.queued() == 0 {
            return self.client.poll_flush(cx).map_err(|_| Fault::ClientGone);
        }
        self.poll_client_and_clock(cx)
    }

    /// A response ends with its last byte; a tunnel when both sides have said everything.
    fn is_over(&self) -> bool {
        self.state.download_ended && (!self.state.tunnel || self.state.uploaded)
    }

    /// Queues what the endpoint has sent; `true` when it stopped because the client is behind.
    fn advance_download(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        while !self.state.download_ended {
            if self.client.queued() > BACKLOG {
                self.request.progress.hold_up();
                return Ok(true);
            }
            let early = self.early.take().map(|frame| Poll::Ready(Ok(frame)));
            let Poll::Ready(frame) = early.unwrap_or_else(|| self.upstream.poll_frame(cx)) else {
                // Nothing more for the moment: the client is to have what there is.
                if let Some(packer) = &mut self.packer {
                    packer.flush(self.client)?;
                }
                return Ok(false);
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return Err(self.upstream_fault(error)),
            };
            self.pass_on(frame)?;
        }
        Ok(false)
    }

    fn note_data(&mut self, data: &Bytes) {
        let now = clock::now();
        if let Some(recording) = &mut self.request.recording {
            recording.data(data, now);
        }
        if let Some(turn) = &mut self.turn {
            turn.bytes(now);
        }
        if self.request.progress.data(data, now) {
            // What an error took to say so teaches nothing about answers.
            let after = self.state.succeeding.then(|| now - self.state.waiting_since);
            if let (Some(after), Some(foresight)) = (after, &self.foresight) {
                foresight.served(&self.place, after, now);
            }
            let transition = self.place.first_byte(after, now);
            self.place.endpoint().announce(transition);
            if let Some(after) = after.filter(|_| self.request.progress.is_event_stream()) {
                self.request.admitted.stream_began(after, self.request.upload.received());
            }
            if let (Some(after), Some(turn)) = (after, &self.turn)
                && self.request.progress.is_event_stream()
            {
                self.place.stream_began(after, turn.prompts(), now);
            }
        }
    }

    fn pass_on(&mut self, frame: Frame) -> Result<(), Fault> {
        match frame {
            Frame::Data(data) => {
                self.note_data(&data);
                match &mut self.packer {
                    Some(packer) => packer.data(&data, self.client)?,
                    None => self.client.send(Frame::Data(data)),
                }
            }
            Frame::Trailers(mut fields) => {
                self.note_trailers(&mut fields);
                if self.packer.is_some() {
                    compress::drop_digests(&mut fields);
                }
                self.end_packing()?;
                self.client.send(Frame::Trailers(fields));
            }
            Frame::End => {
                self.note_end();
                self.end_packing()?;
                self.client.send(Frame::End);
            }
        }
        Ok(())
    }

    fn end_packing(&mut self) -> Result<(), Fault> {
        match self.packer.take() {
            Some(packer) => packer.end(self.client).map_err(Fault::from),
            None => Ok(()),
        }
    }

    /// A load report may come at the end, when it is known.
    fn note_trailers(&mut self, fields: &mut Fields) {
        if let Some(recording) = &mut self.request.recording {
            recording.trailers();
        }
        if self.bounds.believes_reports {
            load_report::learn(fields, self.place.endpoint());
            if self.request.report_asked.is_none() {
                load_report::strip(fields);
            }
        }
    }

    fn note_end(&mut self) {
        self.state.download_ended = true;
        if let Some(recording) = &mut self.request.recording {
            recording.end();
        }
        if self.state.tunnel {
            self.state.client_moved = Some(clock::now());
        }
    }

    fn note_client_keeps_up(&mut self) {
        if std::mem::take(&mut self.state.client_behind)
            && let Some(turn) = &mut self.turn
        {
            turn.resume(clock::now());
        }
    }

    /// The client has not taken all; the clock runs from the last time that it took something.
    fn note_client_behind(&mut self, before: usize) {
        if !self.state.client_behind || self.client.queued() < before {
            self.state.client_behind = true;
            self.state.client_moved = Some(clock::now());
            if let Some(turn) = &mut self.turn {
                turn.hold();
            }
        }
    }

    /// Moves the request body on. An endpoint that stops taking it may still answer, so its answer decides.
    fn advance_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        while self.state.upload_failed.is_none() {
            let full = self.queue_upload(cx)?;
            match self.upstream.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => self.state.upload_failed = Some(error),
                Poll::Pending => break,
            }
            // The backlog is gone: there may be more to read that nobody would wake us for.
            if !full {
                break;
            }
        }
        Ok(())
    }

    /// Queues what the client has sent; `true` when it stopped because the endpoint is behind.
    fn queue_upload(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        if self.state.uploaded || self.state.hold_upload {
            return Ok(false);
        }
        let before = self.request.upload.received();
        let sent = self.request.upload.poll_send(self.client, &mut self.upstream, cx);
        if self.request.upload.received() != before {
            let now = clock::now();
            (self.state.client_moved, self.state.waiting_since) = (Some(now), now);
        }
        if let Poll::Ready(result) = sent {
            result?;
            self.state.uploaded = true;
            if self.foresight.is_none() && !self.state.responding {
                self.foresee();
            }
            self.begin_turn();
        }
        Ok(self.upstream.queued() > BACKLOG)
    }

    fn begin_turn(&mut self) {
        if !self.state.tunnel && self.turn.is_none() {
            let tokens = Cost::tokens_of(self.request.upload.received());
            let streams = self.request.upload.asks_for_stream();
            self.turn = self.place.begin_turn(tokens, streams, clock::now());
        }
    }

    fn upstream_fault(&mut self, error: WireError) -> Fault {
        match (error, self.state.upload_failed.take()) {
            // The write failed first and says more than the end of the stream does.
            (WireError::Closed(_), Some(first)) => Fault::Upstream(first),
            (error, _) => Fault::Upstream(error),
        }
    }

    fn poll_client_and_clock<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Fault>> {
        let listening = self.request.upload.has_ended() && !self.state.tunnel;
        if listening && self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Fault::ClientGone));
        }
        loop {
            let next = self.next_deadline();
            match ready!(self.watchdog.poll_expired(next, cx)) {
                // When it was us who paused, bytes of other answers wait to be read: they have their turn first.
                Expiry::Stalled if self.state.doubt_until.is_none() => {
                    self.state.doubt_until = Some(clock::now() + STALL_DOUBT);
                }
                expiry => return Poll::Ready(Err(Fault::Expired(expiry))),
            }
        }
    }

    fn next_deadline(&self) -> Next {
        let bounds = &self.bounds;
        let next = Next::never().or(bounds.total, Expiry::Total);
        if self.state.client_behind {
            let at = self.state.client_moved.map(|at| at + bounds.client_read);
            return next.or(at, Expiry::ClientRead);
        }
        if self.state.tunnel {
            // A tunnel may be silent for as long as it likes, but not half closed.
            let since = self.state.client_moved.filter(|_| self.state.download_ended);
            return next.or(since.map(|at| at + bounds.client_body), Expiry::ClientBody);
        }
        if !self.request.upload.has_ended() && self.upstream.queued() == 0 && !self.state.responding
        {
            let since = self.state.client_moved.unwrap_or(self.state.waiting_since);
            return next.or(Some(since + bounds.client_body), Expiry::ClientBody);
        }
        match self.request.progress.last_data() {
            None => {
                let at = bounds.first_byte.map(|limit| self.state.waiting_since + limit);
                let stalls = self.turn.as_ref().and_then(|_| self.place.stalls_at());
                let stalls =
                    stalls.map(|at| self.state.doubt_until.map_or(at, |until| at.max(until)));
                next.or(at, Expiry::FirstByte).or(stalls, Expiry::Stalled)
            }
            Some(last) => next.or(bounds.gap.map(|gap| last + gap), Expiry::Gap),
        }
    }

    /// From the last piece of the request sent to the first piece of the response.
    pub fn first_byte(&self) -> Option<Duration> {
        self.request.progress.first_byte_after(self.state.waiting_since)
    }

    /// Whether the connection had served before and closed on this request without a word: then it was closed for
    /// its age, not for what was asked, and the request can be sent again.
    pub fn is_stale(&self) -> bool {
        let reused = self.request.trail.connect.is_none();
        reused && !self.upstream.has_heard() && self.request.upload.is_replayable()
    }

    /// What the kernel has seen so far of it can be asked from here on.
    pub fn follow(&mut self) {
        self.request.trail.followed = self.upstream.span(false);
    }

    /// The response is complete: the connection goes back to rest, if it can carry another request.
    pub fn finish(self, backend: &Backend) {
        self.request.trail.followed = self.upstream.span(true);
        connect::rest(self.upstream, self.place.endpoint(), &backend.settings);
    }

    /// Learns from how it ended: well, or by this fault. `true` when the endpoint gave nobody a first byte for longer than
    /// this one was expected to take.
    pub fn learn(&mut self, fault: Option<&Fault>) -> bool {
        let Some(foresight) = &self.foresight else { return false };
        let (place, now) = (&self.place, clock::now());
        let cut_short = matches!(
            fault,
            Some(Fault::ClientGone | Fault::Expired(Expiry::FirstByte | Expiry::Total))
        );
        match (self.request.progress.last_data(), fault) {
            (None, _) if cut_short && self.state.uploaded => {
                let waited = now.saturating_duration_since(self.state.waiting_since);
                return foresight.cut_off(place, waited, now);
            }
            (Some(last), Some(Fault::Expired(Expiry::Gap))) => {
                foresight.gap_cut_off(place, now.saturating_duration_since(last), now);
            }
            (Some(_), None) if self.state.succeeding && !self.state.tunnel => {
                foresight.ended(place, self.request.progress.longest_gap(), now);
            }
            _ => {}
        }
        false
    }

    /// What encodes the response, for the last words of one that broke off.
    pub fn take_packer(&mut self) -> Option<Packer> {
        self.packer.take()
    }

    /// No more is wanted from the endpoint; dropping its connection or stream tells it so.
    pub fn give_up(&mut self) {
        self.request.trail.followed = self.upstream.span(false);
        self.upstream.cancel();
    }
}
