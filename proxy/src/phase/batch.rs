//! Requests that travel together: where a route has micro-batching, those that arrive close to each other and could
//! share a call do, and each gets its part of the answer.
//!
//! Who waits for whom, how bodies are merged and answers split is [`crate::batch`]'s; this file makes the call. Whatever
//! goes wrong with it ends the batch and not the requests: each of them then goes its own way as if there were no
//! batching, with all attempts that the route allows. A request that finds no mate goes its own way from the start.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use outrigger_config::validated as config;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    ask::is_json,
    attempt::expired,
    respond,
    route::{body_failure, read_body_while},
};
use crate::{
    balance::{self, Cost},
    batch::{
        Api, Ask, Batch, Call, Cause, Closing, Ended, Key, Lobby, Ticket, Turn, Verdict, Window,
        merge, split,
    },
    deadline::{Expiry, Watchdog},
    endpoint::Endpoint,
    gateway,
    outcome::Outcome,
    outlier,
    relay::{Fault, Upload},
    request::{Failure, Request},
    snapshot::Route,
    telemetry::metrics::{BatchMetrics, Batched},
    upstream::{
        Backend,
        backend::{Choice, Place, Wanted},
        connect::{Reuse, connect, rest},
        fetch::{Fetched, fetch},
    },
    wire::{BodyLength, Downstream, Fields, RequestHead, ResponseHead},
};

/// The most that the answer to a batch may have.
const MAX_ANSWER: usize = 256 << 20;

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
        let (call, start) = (Some(batch.call), Instant::now());
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
        let now = Instant::now();
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
            Woken::Part(part) => return deliver(part, request, client, watchdog, route).await,
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
    match Ask::parse(request.head.target(), whole(&request.upload)) {
        Ok(ask) if ask.size().bytes <= most => Ok(Some(ask)),
        Ok(_) => Ok(None),
        Err(reason) => {
            tracing::debug!(id = request.id, reason = reason.as_str(), "not batched");
            batcher.metrics.counted(Batched::NotPossible, 1);
            Ok(None)
        }
    }
}

fn whole(upload: &Upload) -> Bytes {
    match upload.kept() {
        [one] => one.clone(),
        pieces => {
            let mut whole = BytesMut::new();
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            whole.freeze()
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

fn total_of(request: &Request, route: &Route) -> Option<Instant> {
    route.settings.deadline.total.map(|total| request.start + total)
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
    route: &'a Route,
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
        route: &'a Arc<Route>,
        backend: &Arc<Backend>,
    ) -> Self {
        let key = key(&ask, request, backend);
        let (answer, part) = oneshot::channel();
        let (size, total) = (ask.size(), total_of(request, route));
        let seat = Seat { ask, answer };
        let turn = batcher.lobby.lock().join(Instant::now(), key, size, total, seat);
        match turn {
            Turn::Send(batch) => {
                Waiting { batcher, route, total, place: None, due: Some(batch), part }
            }
            Turn::Wait { ticket, closes, pushed_out } => {
                // It is of others, who wait for it.
                if let Some(batch) = pushed_out {
                    send(batch, request, route, backend);
                }
                Waiting { batcher, route, total, place: Some((ticket, closes)), due: None, part }
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
            Fault::Expired(_) => expired(request, self.route, Expiry::Total),
            fault => body_failure(request, fault),
        })
    }

    /// Ready with the batch when it is time to send it, unless somebody else does.
    fn poll_close(&mut self, watchdog: &mut Watchdog, cx: &mut Context<'_>) -> Poll<Batch<Seat>> {
        while let Some((ticket, closes)) = &mut self.place {
            ready!(watchdog.poll_until(*closes, cx));
            match self.batcher.lobby.lock().close(ticket, Instant::now()) {
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

/// Makes the call of a batch, on behalf of all its requests and none in particular.
fn send(batch: Batch<Seat>, request: &Request, route: &Arc<Route>, backend: &Arc<Backend>) {
    let Some(batcher) = route.batcher.clone() else { return };
    let (head, route, backend) = (request.head.clone(), Arc::clone(route), Arc::clone(backend));
    tokio::spawn(async move {
        let start = Instant::now();
        let (seats, batch_call) = (batch.items, batch.call);
        let Some(merged) = merge(seats.iter().map(|seat| &seat.ask)) else { return };
        let count = seats.len() as u64;
        let answer = call(&head, merged.body, &route, &backend).await;
        let verdict = answer.as_ref().ok().map(|(answer, _)| {
            let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
            split(&merged.plan, status, &answer.body)
        });
        let ended = match &verdict {
            Some(Verdict::Split(_) | Verdict::Same) => Ended::Answered(start.elapsed()),
            Some(Verdict::RetryAlone(cause)) => {
                let reason = cause.as_str();
                tracing::debug!(backend = %backend.name, reason, count, "batch not usable");
                // A server that is busy may well take batches.
                if *cause == Cause::Unavailable { Ended::Failed } else { Ended::RetryAlone }
            }
            None => Ended::Failed,
        };
        batcher.lobby.lock().finished(batch_call, ended, Instant::now());
        let together = matches!(ended, Ended::Answered(_));
        batcher
            .metrics
            .counted(if together { Batched::Together } else { Batched::SentAgain }, count);
        batcher.metrics.batches.inc();
        if let (Ok((answer, endpoint)), Some(verdict)) = (answer, verdict) {
            deal_out(seats, &answer, &endpoint, verdict);
        }
    });
}

/// Gives each request its part. A seat that is dropped instead goes by itself.
fn deal_out(seats: Vec<Seat>, answer: &Fetched, endpoint: &Arc<Endpoint>, verdict: Verdict) {
    let part = |body: Bytes| Part {
        status: answer.status,
        fields: answer.fields.clone(),
        body,
        endpoint: Arc::clone(endpoint),
    };
    match verdict {
        Verdict::Split(bodies) => {
            for (seat, body) in seats.into_iter().zip(bodies) {
                // Its client may be gone.
                let _ = seat.answer.send(part(body));
            }
        }
        Verdict::Same => {
            for seat in seats {
                let _ = seat.answer.send(part(answer.body.clone()));
            }
        }
        Verdict::RetryAlone(_) => {}
    }
}

/// One attempt; nothing is tried again, since every request has attempts of its own.
async fn call(
    head: &RequestHead,
    body: Bytes,
    route: &Route,
    backend: &Backend,
) -> Result<(Fetched, Arc<Endpoint>), Outcome> {
    let start = Instant::now();
    let ask = balance::Ask { cost: Cost::of_prompt(body.len() as u64), ..Default::default() };
    let wanted = Wanted { ask: &ask, tried: &[], destinations: &[], hopped: false };
    let Choice::Taken(mut place) = backend.choose(wanted, start, &mut gateway::rng()) else {
        return Err(Outcome::NoEndpoint);
    };
    let endpoint = Arc::clone(place.endpoint());
    let mut head = head.clone();
    // The answer is to be read here.
    head.fields.remove("accept-encoding");
    head.fields.remove("content-length");
    head.body = BodyLength::Exact(body.len() as u64);
    let limit = route.settings.deadline.first_byte;
    let made = bounded(limit, exchange(&endpoint, &head, body, route, backend)).await;
    match made {
        Ok(answer) => {
            let good = (200..300).contains(&answer.status);
            let after = good.then(|| answer.first_byte.saturating_duration_since(start));
            endpoint.announce(place.first_byte(after, answer.first_byte));
            endpoint.metrics.ended(Outcome::of_upstream_status(answer.status));
            judge(&mut place, backend, answer.status);
            Ok((answer, endpoint))
        }
        Err((outcome, failure)) => {
            endpoint.metrics.ended(outcome);
            endpoint.announce(place.failed(failure, backend, Instant::now()));
            Err(outcome)
        }
    }
}

fn judge(place: &mut Place, backend: &Backend, status: u16) {
    let now = Instant::now();
    let transition = match status {
        500 | 502 | 504 => place.failed(outlier::Failure::ServerError, backend, now),
        _ => place.succeeded(now),
    };
    place.endpoint().announce(transition);
}

type Missed = (Outcome, outlier::Failure);

async fn exchange(
    endpoint: &Endpoint,
    head: &RequestHead,
    body: Bytes,
    route: &Route,
    backend: &Backend,
) -> Result<Fetched, Missed> {
    let (protocol, limit) = (backend.settings.protocol, route.settings.deadline.connect);
    let (mut upstream, how) = connect(endpoint, protocol, Reuse::Allowed, limit)
        .await
        .map_err(|_| (Outcome::ConnectFailed, outlier::Failure::ConnectRefused))?;
    backend.metrics.connection(how);
    let reset = |_| (Outcome::UpstreamReset, outlier::Failure::Reset);
    let answer = fetch(&mut upstream, head, body, MAX_ANSWER).await.map_err(reset)?;
    rest(upstream, endpoint, &backend.settings);
    Ok(answer)
}

async fn bounded<T>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Missed>>,
) -> Result<T, Missed> {
    let late = (Outcome::FirstByteTimeout, outlier::Failure::FirstByteTimeout);
    match limit {
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or(Err(late)),
        None => work.await,
    }
}

/// Answers with a part.
async fn deliver(
    part: Part,
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Route,
) -> Result<Way, Failure> {
    let mut head = ResponseHead::new(part.status);
    head.fields = part.fields;
    request.trail.attempts = 1;
    request.trail.endpoint = Some(part.endpoint);
    respond::prepare(&mut head, request, route);
    respond::whole(request, client, watchdog, head, part.body).await?;
    Ok(Way::Answered(Outcome::of_upstream_status(part.status)))
}
