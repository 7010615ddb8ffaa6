//! Requests that travel together: where a route has micro-batching, those that arrive close to each other and could
//! share a call do, and each gets its part of the answer.
//!
//! Who waits for whom, how bodies are merged and answers split is [`crate::batch`]'s; this file makes the call. Whatever
//! goes wrong with it ends the batch and not the requests: each of them then goes its own way as if there were no
//! batching, with all attempts that the route allows. A request that finds no mate goes its own way from the start.

mod call;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use outrigger_config::validated as config;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    answer,
    ask::is_json,
    attempt::expired,
    respond,
    route::{body_failure, read_body_while},
};
use crate::{
    batch::{Api, Ask, Batch, Call, Closing, Ended, Key, Lobby, Ticket, Turn, Window},
    clock,
    deadline::{Expiry, Watchdog},
    endpoint::Endpoint,
    outcome::Outcome,
    relay::{Fault, load_report},
    request::{Failure, Request},
    snapshot::Route,
    telemetry::metrics::{BatchMetrics, Batched},
    upstream::Backend,
    wire::{BodyLength, Downstream, Fields, ResponseHead},
};
use call::send;

/// The micro-batching of one route.
pub struct Batcher {
    settings: config::Batch,
    lobby: Mutex<Lobby<Seat>>,
    metrics: Arc<BatchMetrics>,
}

/// A request that waits for its part.
struct Seat {
    ask: Ask,
    answer: oneshot::Sender<Part>,
}

/// One request's part of an answer.
struct Part {
    status: u16,
    fields: Fields,
    body: Bytes,
    endpoint: Arc<Endpoint>,
}

/// How a request goes on.
pub enum Way {
    /// It was answered in a batch.
    Answered(Outcome),
    /// By itself.
    Alone(Option<Solo>),
}

/// A request that goes by itself though it could have shared a call: how long that takes is worth knowing.
pub struct Solo {
    batcher: Arc<Batcher>,
    call: Option<Call>,
    start: Instant,
    answered: bool,
}

impl Solo {
    fn new(batcher: &Arc<Batcher>, batch: Batch<Seat>) -> Self {
        batcher.metrics.counted(Batched::Alone, 1);
        let (call, start) = (Some(batch.call), clock::now());
        Solo { batcher: Arc::clone(batcher), call, start, answered: false }
    }

    /// It was answered.
    pub fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for Solo {
    fn drop(&mut self) {
        let Some(call) = self.call.take() else { return };
        let now = clock::now();
        let ended = match self.answered {
            true => Ended::Answered(now - self.start),
            false => Ended::Failed,
        };
        self.batcher.lobby.lock().finished(call, ended, now);
    }
}

impl Batcher {
    /// Batching within these bounds.
    pub fn new(settings: &config::Batch, metrics: Arc<BatchMetrics>) -> Self {
        let window =
            Window { wait: settings.window, requests: settings.requests, bytes: settings.bytes };
        Batcher { settings: settings.clone(), lobby: Mutex::new(Lobby::new(window)), metrics }
    }
}

/// Serves a request in a batch, if its route has batches and it finds mates.
///
/// # Errors
/// What went wrong with the client or its body; never what went wrong with a batch.
pub async fn serve(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Arc<Route>,
    backend: &Arc<Backend>,
) -> Result<Way, Failure> {
    let Some(batcher) = &route.batcher else { return Ok(Way::Alone(None)) };
    let Some(ask) = could_share(request, client, watchdog, batcher).await? else {
        return Ok(Way::Alone(None));
    };
    let mut waiting = Waiting::enter(batcher, ask, request, route, backend);
    loop {
        match waiting.woken(request, client, watchdog).await? {
            Woken::Part(part) => {
                return deliver(part, request, client, watchdog, route, backend).await;
            }
            Woken::Due(batch) if batch.items.len() == 1 => {
                return Ok(Way::Alone(Some(Solo::new(batcher, batch))));
            }
            Woken::Due(batch) => send(batch, request, route, backend),
            Woken::Alone => return Ok(Way::Alone(None)),
        }
    }
}

/// What the request asks for, if it can share a call at all. Its whole body is read then.
async fn could_share(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    batcher: &Batcher,
) -> Result<Option<Ask>, Failure> {
    let most = batcher.settings.bytes;
    let too_long = matches!(request.head.body, BodyLength::Exact(length) if length > most);
    let fits = request.head.method == Method::POST && is_json(request) && !too_long;
    if !fits || Api::of(request.head.path()).is_none() {
        return Ok(None);
    }
    read_body_while(request, client, watchdog, |upload| upload.received() <= most).await?;
    if !request.upload.has_ended() || !request.upload.is_replayable() {
        return Ok(None);
    }
    match Ask::parse(request.head.target(), request.upload.whole()) {
        Ok(ask) if ask.size().bytes <= most => Ok(Some(ask)),
        Ok(_) => Ok(None),
        Err(reason) => {
            tracing::debug!(id = request.id, reason = reason.as_str(), "not batched");
            batcher.metrics.counted(Batched::NotPossible, 1);
            Ok(None)
        }
    }
}

/// What all requests of a batch have in common: besides their terms, who asks, and which arm they go to.
fn key(ask: &Ask, request: &Request, backend: &Backend) -> Key {
    let mut headers = HeaderMap::new();
    for (name, value) in request.head.fields.iter() {
        let pair = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value));
        if let (Ok(name), Ok(value)) = pair {
            headers.append(name, value);
        }
    }
    let mut key = ask.key().clone();
    key.extend(b"arm", backend.name.as_bytes());
    key.headers(&headers);
    key
}

/// What a request that waits is woken by.
enum Woken {
    /// Its part of an answer.
    Part(Part),
    /// The batch that it is in has to be sent.
    Due(Batch<Seat>),
    /// The batch has no answer for it.
    Alone,
}

/// A request among those that wait. It leaves with its client.
struct Waiting<'a> {
    batcher: &'a Batcher,
    /// When it must be over.
    total: Option<Instant>,
    /// Its place, and when the batch closes, while nobody has sent it.
    place: Option<(Ticket, Instant)>,
    due: Option<Batch<Seat>>,
    part: oneshot::Receiver<Part>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some((ticket, _)) = self.place.take() {
            self.batcher.lobby.lock().leave(&ticket);
        }
    }
}

impl<'a> Waiting<'a> {
    fn enter(
        batcher: &'a Batcher,
        ask: Ask,
        request: &Request,
        route: &Arc<Route>,
        backend: &Arc<Backend>,
    ) -> Self {
        let key = key(&ask, request, backend);
        let (answer, part) = oneshot::channel();
        let (size, total) = (ask.size(), request.allowed.until);
        let seat = Seat { ask, answer };
        let turn = batcher.lobby.lock().join(clock::now(), key, size, total, seat);
        match turn {
            Turn::Send(batch) => Waiting { batcher, total, place: None, due: Some(batch), part },
            Turn::Wait { ticket, closes, pushed_out } => {
                // It is of others, who wait for it.
                if let Some(batch) = pushed_out {
                    send(batch, request, route, backend);
                }
                Waiting { batcher, total, place: Some((ticket, closes)), due: None, part }
            }
        }
    }

    /// Waits for an answer, for the batch to close, or for the client to leave.
    async fn woken(
        &mut self,
        request: &mut Request,
        client: &mut Downstream<'_>,
        watchdog: &mut Watchdog,
    ) -> Result<Woken, Failure> {
        if let Some(batch) = self.due.take() {
            return Ok(Woken::Due(batch));
        }
        let total = self.total;
        let upload = &mut request.upload;
        let woken = poll_fn(|cx| {
            if let Poll::Ready(part) = pin!(&mut self.part).poll(cx) {
                // Whoever had its seat dropped it: there is no answer for it in the batch.
                self.place = None;
                return Poll::Ready(Ok(part.map_or(Woken::Alone, Woken::Part)));
            }
            if let Poll::Ready(batch) = self.poll_close(watchdog, cx) {
                return Poll::Ready(Ok(Woken::Due(batch)));
            }
            if total.is_some_and(|total| watchdog.poll_until(total, cx).is_ready()) {
                return Poll::Ready(Err(Fault::Expired(Expiry::Total)));
            }
            upload.poll_watch(client, cx).map(Fault::from).map(Err)
        })
        .await;
        woken.map_err(|fault| match fault {
            Fault::Expired(_) => expired(request, Expiry::Total),
            fault => body_failure(request, fault),
        })
    }

    /// Ready with the batch when it is time to send it, unless somebody else does.
    fn poll_close(&mut self, watchdog: &mut Watchdog, cx: &mut Context<'_>) -> Poll<Batch<Seat>> {
        while let Some((ticket, closes)) = &mut self.place {
            ready!(watchdog.poll_until(*closes, cx));
            match self.batcher.lobby.lock().close(ticket, clock::now()) {
                Closing::NotYet(later) => *closes = later,
                Closing::Due(batch) => {
                    self.place = None;
                    return Poll::Ready(batch);
                }
                Closing::Gone => self.place = None,
            }
        }
        Poll::Pending
    }
}

/// Answers with a part.
async fn deliver(
    part: Part,
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Route,
    backend: &Backend,
) -> Result<Way, Failure> {
    let mut head = ResponseHead::new(part.status);
    head.fields = part.fields;
    if head.fields.contains("x-request-id") {
        head.fields.set("x-request-id", &request.id);
    }
    request.trail.attempts = 1;
    request.trail.endpoint = Some(Arc::clone(&part.endpoint));
    answer::record_whole(request, route, &head, &part.body);
    respond::prepare(&mut head, request, route);
    let signals = &backend.settings.signals;
    load_report::answer(&mut head.fields, request, route, signals, &part.endpoint);
    respond::whole(request, client, watchdog, route, head, part.body).await?;
    Ok(Way::Answered(Outcome::of_upstream_status(part.status)))
}
