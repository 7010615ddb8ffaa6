//! A second attempt of a request while the first one is open: it owns all it needs, so that it can run beside the
//! [`Exchange`] of the first, and take its place when it has won.
//!
//! It connects, sends the request as it was kept, and waits for the head of the response and its first piece. It never
//! looks at the client or the clock: whoever polls it does.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use super::{Bounds, Exchange, Fault, State};
use crate::{
    balance::Cost,
    clock,
    deadline::{Expiry, Next, Watchdog},
    outlier::stall::Turn,
    request::Request,
    telemetry::metrics::UpstreamConnection,
    upstream::{
        Backend,
        backend::Place,
        connect::{Reuse, connect},
        dial::DialError,
    },
    wire::{Downstream, Frame, RequestHead, ResponseHead, Side, Upstream, WireError},
};

use super::upload::Whole;

/// The client's side of an exchange: who asks, for what, and the clock.
pub struct Asker<'r, 'c> {
    /// The client.
    pub client: &'r mut Downstream<'c>,
    /// The request.
    pub request: &'r mut Request,
    /// Its timer.
    pub watchdog: &'r mut Watchdog,
}

impl Asker<'_, '_> {
    /// While nothing is asked of the endpoint any more: the client has left, or all has taken too long.
    pub fn poll_left(&mut self, total: Option<Instant>, cx: &mut Context<'_>) -> Poll<Fault> {
        if self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(Fault::ClientGone);
        }
        let next = Next::never().or(total, Expiry::Total);
        self.watchdog.poll_expired(next, cx).map(Fault::Expired)
    }
}

impl<'r, 'c> Exchange<'r, 'c> {
    /// Waits for the head of the response and, where it `waits_for_piece`, for the first piece. The head is left in
    /// `opened` meanwhile.
    pub(crate) fn poll_opening(
        &mut self,
        opened: &mut Option<ResponseHead>,
        waits_for_piece: impl Fn(&ResponseHead, &Request) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Fault>> {
        let head = match opened.take() {
            Some(head) => head,
            None => ready!(self.poll_head(cx))?,
        };
        if waits_for_piece(&head, self.request) {
            match self.poll_first_piece(cx) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    *opened = Some(head);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(head))
    }

    /// The timer of the request.
    pub(crate) fn watchdog(&mut self) -> &mut Watchdog {
        self.watchdog
    }

    /// As [`Asker::poll_left`], while the response that has come is not passed on.
    pub(crate) fn poll_left(
        &mut self,
        total: Option<Instant>,
        cx: &mut Context<'_>,
    ) -> Poll<Fault> {
        let asker = Asker {
            client: &mut *self.client,
            request: &mut *self.request,
            watchdog: &mut *self.watchdog,
        };
        { asker }.poll_left(total, cx)
    }

    /// The time within which the share `q` of such attempts get their first byte, where that is learned.
    pub(crate) fn quantile(&self, q: f64) -> Option<Duration> {
        self.foresight.as_ref()?.quantile(q)
    }

    /// Another attempt of the request has begun to answer: no more is wanted from this one.
    pub(crate) fn lose(&mut self) {
        if let (Some(foresight), Some(sent_at)) = (&self.foresight, self.sent_at()) {
            let now = clock::now();
            foresight.lost(now.saturating_duration_since(sent_at), now);
        }
        self.place.endpoint().metrics.races_lost.inc();
        self.give_up();
    }

    /// When the endpoint had the whole request.
    pub(crate) fn sent_at(&self) -> Option<Instant> {
        self.state.uploaded.then_some(self.state.waiting_since)
    }

    /// Lets go of the endpoint, which closes or resets its side.
    pub(crate) fn into_asker(self) -> Asker<'r, 'c> {
        Asker { client: self.client, request: self.request, watchdog: self.watchdog }
    }

    /// Goes on with the endpoint of a rival that has begun to answer.
    pub(crate) fn resume(asker: Asker<'r, 'c>, answered: Answered, bounds: Bounds) -> Self {
        let Asker { client, request, watchdog } = asker;
        let mut state = State::new(false);
        (state.waiting_since, state.uploaded) = (answered.sent_at, true);
        let mut exchange = Exchange {
            client,
            request,
            place: answered.place,
            watchdog,
            upstream: answered.upstream,
            bounds,
            packer: None,
            turn: answered.turn,
            foresight: None,
            early: answered.early,
            state,
        };
        exchange.foresee();
        exchange
    }
}

/// A rival that has begun to answer.
pub struct Answered {
    /// The place held at its endpoint.
    pub place: Place,
    /// How long its connection took to make; `None` when it was used again.
    pub connect: Option<Duration>,
    /// When it began to connect.
    pub dialled: Instant,
    upstream: Upstream,
    turn: Option<Turn>,
    early: Option<Frame>,
    sent_at: Instant,
}

/// Why a rival gives no answer.
#[derive(Debug)]
pub enum Defeat {
    /// It found no connection.
    Dial(DialError),
    /// The endpoint hung up, refused, or sent nonsense.
    Wire(WireError),
}

type Dialling =
    Pin<Box<dyn Future<Output = Result<(Upstream, UpstreamConnection), DialError>> + Send>>;

enum Stage {
    Connecting(Dialling),
    Waiting(Upstream),
}

/// A second attempt under way.
pub struct Rival {
    /// The place held at its endpoint.
    pub place: Place,
    backend: Arc<Backend>,
    head: RequestHead,
    body: Whole,
    connect_limit: Option<Duration>,
    stage: Stage,
    /// When it began to connect, and how long that took; `None` on a connection used again.
    dialled: Instant,
    connect: Option<Duration>,
    /// The endpoint takes no more of the body; its answer may be on the way all the same.
    upload_failed: Option<WireError>,
    sent_at: Option<Instant>,
    turn: Option<Turn>,
    response: Option<ResponseHead>,
    early: Option<Frame>,
}

impl Rival {
    /// A second attempt at this place, to be polled.
    pub fn new(
        place: Place,
        backend: Arc<Backend>,
        head: RequestHead,
        body: Whole,
        connect_limit: Option<Duration>,
    ) -> Self {
        let stage = Stage::Connecting(dial(&place, &backend, Reuse::Allowed, connect_limit));
        Rival {
            place,
            backend,
            head,
            body,
            connect_limit,
            stage,
            dialled: clock::now(),
            connect: None,
            upload_failed: None,
            sent_at: None,
            turn: None,
            response: None,
            early: None,
        }
    }

    /// Ready when the endpoint has begun to answer: with a head and, where that `waits_for_piece`, the first piece.
    pub fn poll(
        &mut self,
        waits_for_piece: impl Fn(&ResponseHead) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<u16, Defeat>> {
        loop {
            if let Stage::Connecting(dialling) = &mut self.stage {
                let connected = ready!(dialling.as_mut().poll(cx)).map_err(Defeat::Dial);
                self.send(connected?).map_err(Defeat::Wire)?;
            }
            match ready!(self.poll_answer(&waits_for_piece, cx)) {
                Ok(status) => return Poll::Ready(Ok(status)),
                // Closed for its age, as of the first attempt.
                Err(WireError::Closed(_)) if self.is_stale() => {
                    let reuse = Reuse::Forbidden;
                    let dialling = dial(&self.place, &self.backend, reuse, self.connect_limit);
                    self.stage = Stage::Connecting(dialling);
                    self.dialled = clock::now();
                }
                Err(error) => return Poll::Ready(Err(Defeat::Wire(error))),
            }
        }
    }

    fn send(
        &mut self,
        (mut upstream, how): (Upstream, UpstreamConnection),
    ) -> Result<(), WireError> {
        self.backend.metrics.connection(how);
        self.place.reached();
        let opened = how == UpstreamConnection::Opened;
        self.connect = opened.then(|| clock::since(self.dialled));
        upstream.send_head(&self.head)?;
        self.body.queue(&mut upstream);
        (self.upload_failed, self.sent_at, self.turn) = (None, None, None);
        self.stage = Stage::Waiting(upstream);
        Ok(())
    }

    fn poll_answer(
        &mut self,
        waits_for_piece: impl Fn(&ResponseHead) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<u16, WireError>> {
        let Stage::Waiting(upstream) = &mut self.stage else { return Poll::Pending };
        if self.upload_failed.is_none() && self.sent_at.is_none() {
            match upstream.poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    let now = clock::now();
                    let tokens = Cost::tokens_of(self.body.bytes());
                    self.sent_at = Some(now);
                    self.turn = self.place.begin_turn(tokens, self.body.asks_for_stream(), now);
                }
                Poll::Ready(Err(error)) => self.upload_failed = Some(error),
                Poll::Pending => {}
            }
        }
        let answer =
            poll_answer(upstream, &mut self.response, &mut self.early, waits_for_piece, cx);
        answer.map_err(|error| match (error, self.upload_failed.take()) {
            // The write failed first and says more than the end of the stream does.
            (WireError::Closed(_), Some(first)) => first,
            (error, _) => error,
        })
    }

    fn is_stale(&self) -> bool {
        let Stage::Waiting(upstream) = &self.stage else { return false };
        self.connect.is_none() && !upstream.has_heard()
    }

    /// When it will have waited for too long.
    pub fn expires(&self, first_byte: Option<Duration>) -> Option<Instant> {
        Some(self.sent_at? + first_byte?)
    }

    /// No more is wanted from its endpoint.
    pub fn cancel(&mut self) {
        if let Stage::Waiting(upstream) = &mut self.stage {
            upstream.cancel();
        }
    }

    /// What has come of the answer; `None` before [`Rival::poll`] was ready.
    pub fn into_answer(self) -> Option<(Answered, ResponseHead)> {
        let Stage::Waiting(upstream) = self.stage else { return None };
        let answered = Answered {
            place: self.place,
            connect: self.connect,
            dialled: self.dialled,
            upstream,
            turn: self.turn,
            early: self.early,
            // It may answer before it has read everything.
            sent_at: self.sent_at.unwrap_or_else(clock::now),
        };
        Some((answered, self.response?))
    }
}

fn dial(place: &Place, backend: &Backend, reuse: Reuse, limit: Option<Duration>) -> Dialling {
    let (endpoint, protocol) = (Arc::clone(place.endpoint()), backend.settings.protocol);
    Box::pin(async move { connect(&endpoint, protocol, reuse, limit).await })
}

fn poll_answer(
    upstream: &mut Upstream,
    response: &mut Option<ResponseHead>,
    early: &mut Option<Frame>,
    waits_for_piece: impl Fn(&ResponseHead) -> bool,
    cx: &mut Context<'_>,
) -> Poll<Result<u16, WireError>> {
    while response.as_ref().is_none_or(ResponseHead::is_informational) {
        // What it informs about is the client's to know of the answer that it gets.
        *response = Some(ready!(upstream.poll_head(cx))?);
    }
    let Some(head) = response else { return Poll::Pending };
    if early.is_none() && waits_for_piece(head) {
        *early = Some(ready!(upstream.poll_frame(cx))?);
    }
    Poll::Ready(Ok(head.status))
}
