//! Attempts at endpoints of the chosen arm, until one answers or there is nothing left to try.
//!
//! An attempt is: choose an endpoint, get a connection, send the request, wait for the head of the response. Its
//! failure is told to the endpoint's passive health, and [`crate::retry`] decides whether another one follows. Once a
//! head is passed on there is no way back: the body is relayed to its end or the client sees that it broke off.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use rand::Rng;

use super::{
    answer,
    ask::is_json,
    enter::wait_for_place,
    forward,
    hedge::{Hedging, Race},
    respond,
    route::body_failure,
};
use crate::{
    balance::Ask,
    clock,
    deadline::{Expiry, Limit, Next, Watchdog},
    outcome::Outcome,
    outlier,
    relay::{Bounds, Exchange, Fault, load_report},
    request::{Failure, Request, Retry},
    retry::{self, Decision, Denied, Failed, Reason},
    snapshot::Route,
    stream::Kind,
    telemetry::{
        instruments::Gauge,
        metrics::{RetryDenied, UpstreamConnection},
        trace::{Ending, Trace},
    },
    upstream::{
        Backend,
        backend::{Choice, Place, Wanted},
        connect::{Reuse, connect},
        dial::DialError,
    },
    wire::{Downstream, ResponseHead, Upstream, WireError},
};

/// What every step of an attempt needs.
pub struct Attempts<'a, 'c, R> {
    request: &'a mut Request,
    client: &'a mut Downstream<'c>,
    watchdog: &'a mut Watchdog,
    route: &'a Route,
    /// The backend of its arm.
    backend: Arc<Backend>,
    ask: Ask,
    /// Endpoints that a scheduler in front has chosen.
    destinations: Vec<SocketAddr>,
    /// It has come from another pod, to be served by this one's engine if there is one.
    hopped: bool,
    /// The head says that it leaves the pod.
    hop_marked: bool,
    rng: R,
}

/// An attempt that gave no response to pass on.
pub(super) enum Miss {
    /// The connection had rested too long; the same endpoint is tried on a new one.
    Stale(Place),
    /// Another one follows after this pause.
    Again(Duration),
    /// It failed, and another one may help for this reason.
    Retryable(Reason, Failure),
    /// It failed, and that is that.
    Final(Failure),
}

/// An attempt that ended before its endpoint had answered.
pub(super) struct Lapse {
    /// How.
    pub(super) outcome: Outcome,
    /// What its endpoint is blamed for, if anything.
    pub(super) blamed: Option<outlier::Failure>,
    /// Why another one may help, if it may.
    pub(super) reason: Option<Reason>,
    /// What happened, for the client and the log.
    pub(super) detail: String,
}

impl From<Lapse> for Miss {
    fn from(lapse: Lapse) -> Self {
        let failure = Failure::new(lapse.outcome, lapse.detail);
        match lapse.reason {
            Some(reason) => Miss::Retryable(reason, failure),
            None => Miss::Final(failure),
        }
    }
}

impl Miss {
    /// How the attempt ended, for its trace.
    pub(super) fn note(&self, trace: &mut Trace) {
        match self {
            Miss::Retryable(_, failure) | Miss::Final(failure) => {
                trace.ends(Ending::Outcome(failure.outcome));
            }
            Miss::Again(_) => trace.pleaded(),
            Miss::Stale(_) => trace.ends(Ending::Outcome(Outcome::UpstreamReset)),
        }
    }
}

impl<'a, 'c, R: Rng> Attempts<'a, 'c, R> {
    /// Attempts of this request, which is like `ask`, at endpoints of this backend.
    pub fn new(
        request: &'a mut Request,
        client: &'a mut Downstream<'c>,
        watchdog: &'a mut Watchdog,
        route: &'a Route,
        backend: Arc<Backend>,
        ask: Ask,
        rng: R,
    ) -> Self {
        let destinations = forward::destinations(&request.head.fields, &backend);
        let hopped = forward::has_hopped(&request.head.fields);
        Attempts {
            request,
            client,
            watchdog,
            route,
            backend,
            ask,
            destinations,
            hopped,
            hop_marked: hopped,
            rng,
        }
    }

    /// Runs attempts until the request has ended.
    ///
    /// # Errors
    /// Why there is no complete response.
    pub async fn run(mut self) -> Result<Outcome, Failure> {
        load_report::ask(&mut self.request.head.fields, &self.backend.settings.signals);
        self.route.budget.deposit(self.request.start);
        if let Some(hedging) = &self.route.hedging {
            hedging.allowance.deposit();
        }
        loop {
            let pause = match self.attempt().await {
                Ok(outcome) => return Ok(outcome),
                Err(Miss::Final(failure)) => return Err(failure),
                Err(Miss::Again(pause)) => pause,
                // A new connection is never stale; were it so, this would be one more attempt.
                Err(Miss::Stale(_)) => Duration::ZERO,
                Err(Miss::Retryable(reason, failure)) => {
                    self.request.note(|trace| trace.retries(reason));
                    match decide(
                        self.request,
                        self.route,
                        &self.backend,
                        reason,
                        None,
                        &mut self.rng,
                    ) {
                        Some(pause) => {
                            self.request.trail.faults += u32::from(reason != Reason::Refused);
                            pause
                        }
                        None => return Err(failure),
                    }
                }
            };
            self.wait(pause).await?;
        }
    }

    async fn attempt(&mut self) -> Result<Outcome, Miss> {
        let place = self.place().await.map_err(Miss::Final)?;
        self.request.trail.attempts += 1;
        self.request.trail.tried.push(place.endpoint().address);
        self.request.trail.endpoint = Some(Arc::clone(place.endpoint()));
        self.request.trail.followed = None;
        if let Some(trace) = &mut self.request.trace {
            trace.attempt(place.endpoint(), &mut self.request.head.fields, &mut self.rng);
        }
        let result = match self.exchange_over(place, Reuse::Allowed).await {
            // The endpoint closed a resting connection just as it was taken: nothing is known about the endpoint.
            Err(Miss::Stale(place)) => {
                self.request.note(Trace::stale);
                self.exchange_over(place, Reuse::Forbidden).await
            }
            result => result,
        };
        self.request.note(|trace| match &result {
            Ok(outcome) => trace.ends(Ending::Outcome(*outcome)),
            Err(miss) => miss.note(trace),
        });
        result
    }

    async fn exchange_over(&mut self, place: Place, reuse: Reuse) -> Result<Outcome, Miss> {
        self.request.upload.rewind();
        let fields = &mut self.request.head.fields;
        self.hop_marked = forward::mark_hop(fields, &place, self.hop_marked);
        let (upstream, place) = self.connect(place, reuse).await?;
        self.exchange(upstream, place).await
    }

    /// A place at an endpoint. The first attempt may wait for one, if the backend has a queue; one that has been promised
    /// a certain endpoint, or has tried others, may not: the place that comes free would not be for it.
    async fn place(&mut self) -> Result<Place, Failure> {
        loop {
            let gate = self.backend.gate.clone();
            let freed = gate.as_ref().map(|gate| gate.freed());
            let chosen = self.choose();
            let may_wait = self.request.trail.tried.is_empty() && !self.hopped;
            match (chosen, gate.zip(freed)) {
                (Err(Failure { outcome: Outcome::Overloaded, .. }), Some((gate, freed)))
                    if may_wait && self.backend.settings.queue.is_some() =>
                {
                    wait_for_place(
                        self.request,
                        self.client,
                        self.watchdog,
                        &self.backend,
                        (&gate, freed),
                    )
                    .await?;
                }
                (chosen, _) => {
                    // Where nobody could serve, those who wait behind are to know it too.
                    if let (Some(permit), true) =
                        (&mut self.request.admitted.backend, chosen.is_ok())
                    {
                        permit.looked();
                    }
                    return chosen;
                }
            }
        }
    }

    fn choose(&mut self) -> Result<Place, Failure> {
        let name = &self.backend.name;
        let wanted = Wanted {
            ask: &self.ask,
            tried: &self.request.trail.tried,
            destinations: &self.destinations,
            hopped: self.hopped,
        };
        match self.backend.choose(wanted, clock::now(), &mut self.rng) {
            Choice::Taken(place) => Ok(place),
            Choice::Open(wait) => {
                let detail = format!("backend {name} fails as a whole and is left alone");
                Err(Failure::new(Outcome::CircuitOpen, detail).retry(Retry::After(wait)))
            }
            Choice::Full => {
                let detail =
                    format!("every endpoint of backend {name} is at its limit, or has no weight");
                Err(Failure::new(Outcome::Overloaded, detail))
            }
            Choice::Nobody => {
                let detail = format!("no endpoint of backend {name} is ready");
                Err(Failure::new(Outcome::NoEndpoint, detail))
            }
        }
    }

    /// A connection to the chosen endpoint: one that rests, or a new one. The client may go away meanwhile.
    async fn connect(&mut self, mut place: Place, reuse: Reuse) -> Result<(Upstream, Place), Miss> {
        let learned = self.request.learning.as_ref().and_then(|learning| learning.connect());
        let start = clock::now();
        let limit = self.connect_limit(learned.as_ref(), start).map_err(Miss::Final)?;
        let endpoint = Arc::clone(place.endpoint());
        let dialled = connect(&endpoint, self.backend.settings.protocol, reuse, limit);
        let mut dialled = std::pin::pin!(dialled);
        let (client, upload) = (&mut *self.client, &mut self.request.upload);
        let result = poll_fn(|cx| match dialled.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Ok(result)),
            Poll::Pending => upload.poll_watch(client, cx).map(Fault::from).map(Err),
        })
        .await;
        match result {
            Err(fault) => Err(Miss::Final(client_fault(self.request, fault))),
            Ok(Ok((upstream, how))) => {
                let opened = how == UpstreamConnection::Opened;
                self.request.trail.connect = opened.then(|| clock::since(start));
                if let Some(took) = self.request.trail.connect {
                    self.request.note(|trace| trace.connected(start, took));
                }
                if let (Some(learning), Some(took)) =
                    (&self.request.learning, self.request.trail.connect)
                {
                    learning.connected(learned.as_ref(), took, start + took);
                }
                self.backend.metrics.connection(how);
                place.reached();
                Ok((upstream, place))
            }
            Ok(Err(error)) => {
                if let (Some(learning), DialError::TimedOut(_)) = (&self.request.learning, &error) {
                    let now = clock::now();
                    learning.not_connected(learned.as_ref(), now - start, now);
                }
                Err(self.dial_failed(&mut place, &error))
            }
        }
    }

    /// The connect deadline, as it was learned if it is, shortened to what is left of the total.
    fn connect_limit(
        &self,
        learned: Option<&Limit>,
        now: Instant,
    ) -> Result<Option<Duration>, Failure> {
        let configured = self.route.settings.deadline.connect.longest();
        let connect = learned.map(|limit| limit.after).or(configured);
        match self.request.allowed.left(now) {
            None => Ok(connect),
            Some(left) if left.is_zero() => Err(expired(self.request, Expiry::Total)),
            Some(left) => Ok(Some(connect.map_or(left, |connect| connect.min(left)))),
        }
    }

    fn dial_failed(&self, place: &mut Place, error: &DialError) -> Miss {
        if self.request.allowed.left(clock::now()).is_some_and(|left| left.is_zero()) {
            // It may have been about to answer.
            place.endpoint().metrics.ended(Outcome::TotalTimeout);
            return Miss::Final(expired(self.request, Expiry::Total));
        }
        let lapse = lapse_of_dial(&place.endpoint().name, error, &self.backend);
        if let Some(failure) = lapse.blamed {
            blame(place, &self.backend, lapse.outcome, failure);
        }
        lapse.into()
    }

    async fn exchange(&mut self, mut upstream: Upstream, place: Place) -> Result<Outcome, Miss> {
        let Request { allowed, head, .. } = &mut *self.request;
        allowed.tell(&mut head.fields, self.route);
        let sent = upstream.send_head(&self.request.head);
        let waiting = Counted::new(&self.route.metrics.awaiting_first_byte);
        let bounds = bounds(self.request, self.route, &self.backend);
        let hedge = hedge_of(self.request, self.route, &place);
        let mut exchange = Exchange::new(
            &mut *self.client,
            &mut *self.request,
            &mut *self.watchdog,
            upstream,
            place,
            bounds,
        );
        let head = match (sent, hedge) {
            (Ok(()), Some(hedging)) => {
                let (ask, destinations) = (&self.ask, &*self.destinations);
                let wanted = Wanted { ask, tried: &[], destinations, hopped: self.hopped };
                let (route, backend, rng) = (self.route, &self.backend, &mut self.rng);
                let race = Race::new(hedging, route, backend, wanted, self.hop_marked, bounds, rng);
                // In a box: routes that do not hedge shall not carry it along.
                let (winner, head) = Box::pin(race.run(exchange)).await?;
                exchange = winner;
                Ok(head)
            }
            (Ok(()), None) => exchange.head().await,
            // The endpoint has not even seen it.
            (Err(WireError::Invalid(what)), _) => {
                return Err(Miss::Final(Failure::new(Outcome::BadRequest, what)));
            }
            (Err(error), _) => Err(Fault::Upstream(error)),
        };
        drop(waiting);
        let head = match head {
            Ok(head) => head,
            Err(Fault::Upstream(WireError::Closed(_))) if exchange.is_stale() => {
                return Err(Miss::Stale(exchange.place));
            }
            Err(fault) => return Err(no_head(&mut exchange, self.route, &self.backend, fault)),
        };
        exchange.request.note(|trace| trace.answered(head.status));
        if let Some((reason, retry_after)) = plea(&head) {
            let (request, rng) = (&*exchange.request, &mut self.rng);
            let again = decide(request, self.route, &self.backend, reason, retry_after, rng);
            if let Some(pause) = again {
                exchange.request.trail.faults += u32::from(reason == Reason::ServerError);
                exchange.request.note(|trace| trace.retries(reason));
                settle(&mut exchange, &self.backend, head.status);
                return Err(Miss::Again(pause));
            }
        }
        if answer::stands_in(exchange.request, head.status).await {
            return Err(replaced(exchange, &self.backend, head.status));
        }
        if can_wait_for_piece(&head, exchange.request, self.route)
            && let Err(fault) = exchange.first_piece().await
        {
            return Err(no_head(&mut exchange, self.route, &self.backend, fault));
        }
        relay(exchange, head, self.route, &self.backend).await.map_err(Miss::Final)
    }

    /// A pause before the next attempt, in which the client may go away and the total may pass.
    async fn wait(&mut self, pause: Duration) -> Result<(), Failure> {
        let until = clock::now() + pause;
        let total = self.request.allowed.until;
        let next = Next::never().or(Some(until), Expiry::Gap).or(total, Expiry::Total);
        let (client, watchdog) = (&mut *self.client, &mut *self.watchdog);
        let upload = &mut self.request.upload;
        let over = poll_fn(|cx| match upload.poll_watch(client, cx) {
            Poll::Ready(left) => Poll::Ready(Err(Fault::from(left))),
            Poll::Pending => watchdog.poll_expired(next, cx).map(Ok),
        });
        match over.await {
            Err(fault) => Err(client_fault(self.request, fault)),
            Ok(Expiry::Total) => Err(expired(self.request, Expiry::Total)),
            Ok(_) => Ok(()),
        }
    }
}

/// How this attempt is hedged, if it may be: no tunnel, and no probe, which is to tell how its own endpoint does.
fn hedge_of<'a>(request: &Request, route: &'a Route, place: &Place) -> Option<&'a Hedging> {
    let hedging = route.hedging.as_deref()?;
    (!place.is_probe() && !request.head.fields.contains("upgrade")).then_some(hedging)
}

fn bounds(request: &Request, route: &Route, backend: &Backend) -> Bounds {
    let (deadline, allowed) = (&route.settings.deadline, &request.allowed);
    let limits = &request.snapshot.config.limits;
    Bounds {
        first_byte: allowed.first_byte(deadline.first_byte.longest()),
        gap: allowed.gap(deadline.gap.longest()),
        total: allowed.until,
        client_body: limits.body_timeout,
        client_read: limits.write_timeout,
        believes_reports: backend.settings.signals.orca,
    }
}

/// Whether another attempt follows, and after which pause.
fn decide(
    request: &Request,
    route: &Route,
    backend: &Backend,
    reason: Reason,
    retry_after: Option<Duration>,
    rng: &mut impl Rng,
) -> Option<Duration> {
    let policy = route.retry.as_ref()?;
    let now = clock::now();
    let failed = Failed {
        reason,
        attempts: request.trail.attempts,
        response_started: false,
        replayable: request.upload.is_replayable(),
        circuit_open: backend.is_shut(now),
        endpoint_left: backend.has_untried(&request.trail.tried),
        retry_after,
    };
    match retry::decide(policy, &failed, rng, || route.budget.try_withdraw(now)) {
        Decision::Retry { after } => {
            route.metrics.retried(reason);
            Some(after)
        }
        Decision::Stop { why } => {
            if let Some(why) = denied(why) {
                route.metrics.retry_denied(why);
            }
            None
        }
    }
}

/// What is counted: attempts that the route wants and that were not made all the same.
fn denied(why: Denied) -> Option<RetryDenied> {
    match why {
        Denied::Budget => Some(RetryDenied::Budget),
        Denied::Attempts => Some(RetryDenied::Attempts),
        Denied::Buffer => Some(RetryDenied::Buffer),
        Denied::CircuitOpen => Some(RetryDenied::CircuitOpen),
        Denied::NoEndpoint => Some(RetryDenied::NoEndpoint),
        Denied::ResponseStarted | Denied::NotRetryable | Denied::RetryAfterTooLong => None,
    }
}

/// Whether to hold the head of a stream back until its first event: where another endpoint could serve it instead. A
/// client that sent a prompt waits for events; one that only listens may wait for the head.
fn can_wait_for_piece(head: &ResponseHead, request: &Request, route: &Route) -> bool {
    let kind = Kind::of(head.fields.get("content-type"), None);
    head.status == 200
        && kind == Kind::EventStream
        && route.retry.is_some()
        && is_json(request)
        && request.upload.is_replayable()
}

/// A status by which the endpoint says that another one should do it, and when to come back.
pub(super) fn plea(head: &ResponseHead) -> Option<(Reason, Option<Duration>)> {
    let reason = match head.status {
        429 | 503 => Reason::Overloaded,
        500 | 502 | 504 => Reason::ServerError,
        _ => return None,
    };
    let exact = head.fields.get("retry-after-ms").and_then(retry::parse_retry_after_ms);
    let coarse = || {
        let value = head.fields.get("retry-after")?;
        retry::parse_retry_after(value, SystemTime::now())
    };
    Some((reason, exact.or_else(coarse)))
}

/// What an answer of this status says about its endpoint, when it is not passed on.
pub(super) fn settle(exchange: &mut Exchange<'_, '_>, backend: &Backend, status: u16) {
    exchange.place.endpoint().metrics.ended(Outcome::of_upstream_status(status));
    judge_status(&mut exchange.place, backend, status);
    exchange.give_up();
}

/// The endpoint failed with this status, and there is a stored answer that can stand in.
fn replaced(mut exchange: Exchange<'_, '_>, backend: &Backend, status: u16) -> Miss {
    settle(&mut exchange, backend, status);
    exchange.request.admitted.leave(Outcome::ServerError, Some(status));
    let detail = format!("endpoint {} answered {status}", exchange.place.endpoint().name);
    Miss::Final(Failure::new(Outcome::ServerError, detail))
}

/// No head came: what that says about the endpoint, and whether another one may help.
pub(super) fn no_head(
    exchange: &mut Exchange<'_, '_>,
    route: &Route,
    backend: &Backend,
    fault: Fault,
) -> Miss {
    let hangs = exchange.learn(Some(&fault));
    let endpoint = exchange.place.endpoint().name.clone();
    let lapse = match fault {
        Fault::Upstream(error) => lapse_of_wire(&endpoint, error),
        Fault::Expired(Expiry::Stalled) => Lapse {
            outcome: Outcome::Stalled,
            blamed: Some(outlier::Failure::Stalled),
            reason: Some(Reason::Stalled),
            detail: stalled(&endpoint),
        },
        Fault::Expired(Expiry::FirstByte) => {
            let failure = expired(exchange.request, Expiry::FirstByte);
            // One that hangs has lost the request; one that is slow with it works on it still.
            let wanted = route.retry.as_ref().is_some_and(|it| it.on.contains(Reason::FirstByte));
            let reason = if hangs && !wanted { Reason::Stalled } else { Reason::FirstByte };
            let blamed = Some(outlier::Failure::FirstByteTimeout);
            let (outcome, detail) = (failure.outcome, failure.detail);
            Lapse { outcome, blamed, reason: Some(reason), detail }
        }
        fault => {
            let failure = client_fault(exchange.request, fault);
            exchange.place.endpoint().metrics.ended(failure.outcome);
            exchange.give_up();
            return Miss::Final(failure);
        }
    };
    match lapse.blamed {
        Some(failure) => blame(&mut exchange.place, backend, lapse.outcome, failure),
        None => exchange.place.endpoint().metrics.ended(lapse.outcome),
    }
    exchange.give_up();
    lapse.into()
}

/// The endpoint broke off before it had answered.
pub(super) fn lapse_of_wire(endpoint: &str, error: WireError) -> Lapse {
    let (outcome, blamed, reason, detail) = match error {
        WireError::Refused => (
            Outcome::UpstreamReset,
            None,
            Some(Reason::Refused),
            format!("endpoint {endpoint} refused the request"),
        ),
        error @ WireError::Closed(_) => (
            Outcome::UpstreamReset,
            Some(outlier::Failure::Reset),
            Some(Reason::Reset),
            format!("endpoint {endpoint} sent no response: {error}"),
        ),
        error => (
            Outcome::UpstreamInvalid,
            Some(outlier::Failure::Invalid),
            None,
            format!("endpoint {endpoint}: {error}"),
        ),
    };
    Lapse { outcome, blamed, reason, detail }
}

/// There was no connection.
pub(super) fn lapse_of_dial(endpoint: &str, error: &DialError, backend: &Backend) -> Lapse {
    let (outcome, blamed, how) = match error {
        DialError::Failed(_) => {
            (Outcome::ConnectFailed, outlier::Failure::ConnectRefused, UpstreamConnection::Failed)
        }
        DialError::TimedOut(_) => {
            (Outcome::ConnectTimeout, outlier::Failure::ConnectTimeout, UpstreamConnection::Timeout)
        }
    };
    backend.metrics.connection(how);
    let detail = format!("could not connect to endpoint {endpoint}: {error}");
    Lapse { outcome, blamed: Some(blamed), reason: Some(Reason::Connect), detail }
}

/// A fault that is the client's, or that is the same for every endpoint.
pub(super) fn client_fault(request: &Request, fault: Fault) -> Failure {
    match fault {
        Fault::ClientGone => client_gone(),
        Fault::Expired(Expiry::ClientRead) => {
            Failure::new(Outcome::ClientTimeout, "the client does not read its response")
        }
        Fault::Expired(expiry @ (Expiry::Total | Expiry::Gap | Expiry::FirstByte)) => {
            expired(request, expiry)
        }
        fault => body_failure(request, fault),
    }
}

/// Passes the response on and settles what it means for the endpoint and its connection.
async fn relay(
    mut exchange: Exchange<'_, '_>,
    mut head: ResponseHead,
    route: &Route,
    backend: &Backend,
) -> Result<Outcome, Failure> {
    let status = head.status;
    // Before the client can send its next request, or it would look like two clients.
    if let Some(mut solo) = exchange.request.solo.take() {
        solo.answered();
    }
    judge_status(&mut exchange.place, backend, status);
    if backend.settings.signals.orca {
        load_report::learn(&head.fields, exchange.place.endpoint());
    }
    let kind = Kind::of(head.fields.get("content-type"), head.fields.get("content-encoding"));
    let gaps = exchange.request.metrics.gaps();
    exchange.request.progress.begin(kind, gaps);
    answer::record(exchange.request, route, &head);
    if route.settings.expose.timing {
        exchange.follow();
    }
    respond::prepare(&mut head, exchange.request, route);
    let (signals, endpoint) = (&backend.settings.signals, exchange.place.endpoint());
    load_report::answer(&mut head.fields, exchange.request, route, signals, endpoint);
    if let Some(encoder) = respond::pack(&mut head, exchange.request, route) {
        exchange.pack(encoder, Arc::clone(&route.metrics));
    }
    exchange.request.trail.status = Some(status);
    let result = match exchange.begin_response(&head) {
        Ok(()) => exchange.body().await,
        Err(fault) => Err(fault),
    };
    let first_byte = exchange.first_byte();
    let endpoint = Arc::clone(exchange.place.endpoint());
    if let Some(first_byte) = first_byte {
        endpoint.metrics.first_byte.observe(first_byte);
    }
    exchange.learn(result.as_ref().err());
    match result {
        Ok(()) => {
            let outcome = Outcome::of_upstream_status(status);
            if let Some(first_byte) = first_byte
                && outcome == Outcome::Ok
                && !exchange.request.progress.is_event_stream()
            {
                let request = &*exchange.request;
                let summary = request.progress.summary();
                request.admitted.whole_answer(first_byte, request.upload.received(), &summary);
            }
            endpoint.metrics.ended(outcome);
            let transition = exchange.place.succeeded(clock::now());
            endpoint.announce(transition);
            exchange.finish(backend);
            Ok(outcome)
        }
        Err(fault) => Err(broken_off(exchange, backend, fault)),
    }
}

/// The response broke off in the middle.
fn broken_off(mut exchange: Exchange<'_, '_>, backend: &Backend, fault: Fault) -> Failure {
    exchange.request.packer = exchange.take_packer();
    let endpoint = exchange.place.endpoint().name.clone();
    let failure = match fault {
        Fault::Upstream(WireError::Invalid(what) | WireError::TooLarge(what)) => {
            Failure::new(Outcome::UpstreamInvalid, format!("endpoint {endpoint}: {what}"))
        }
        Fault::Upstream(error) => Failure::new(
            Outcome::UpstreamReset,
            format!("endpoint {endpoint} broke off its response: {error}"),
        ),
        Fault::Expired(Expiry::Stalled) => Failure::new(Outcome::Stalled, stalled(&endpoint)),
        fault => client_fault(exchange.request, fault),
    };
    exchange.place.endpoint().metrics.ended(failure.outcome);
    let blamed = match failure.outcome {
        Outcome::Stalled => Some(outlier::Failure::Stalled),
        Outcome::UpstreamReset => Some(outlier::Failure::Reset),
        Outcome::UpstreamInvalid => Some(outlier::Failure::Invalid),
        Outcome::FirstByteTimeout | Outcome::GapTimeout => Some(outlier::Failure::FirstByteTimeout),
        _ => None,
    };
    if let Some(blamed) = blamed {
        let transition = exchange.place.failed(blamed, backend, clock::now());
        exchange.place.endpoint().announce(transition);
    }
    exchange.give_up();
    failure
}

fn stalled(endpoint: &str) -> String {
    format!("endpoint {endpoint} has stopped working on everything it has")
}

/// A status by which the endpoint says that it failed. (429 and 503 say that it is busy, which is no failure.)
pub(super) fn judge_status(place: &mut Place, backend: &Backend, status: u16) {
    if matches!(status, 500 | 502 | 504) {
        let transition = place.failed(outlier::Failure::ServerError, backend, clock::now());
        place.endpoint().announce(transition);
    }
}

pub(super) fn blame(
    place: &mut Place,
    backend: &Backend,
    outcome: Outcome,
    failure: outlier::Failure,
) {
    place.endpoint().metrics.ended(outcome);
    let transition = place.failed(failure, backend, clock::now());
    place.endpoint().announce(transition);
}

fn client_gone() -> Failure {
    Failure::new(Outcome::ClientGone, "the client went away")
}

/// A deadline of the request has passed.
pub fn expired(request: &Request, expiry: Expiry) -> Failure {
    let (trail, allowed) = (&request.trail, &request.allowed);
    let (outcome, name, limit) = match expiry {
        Expiry::FirstByte => (Outcome::FirstByteTimeout, "first_byte", trail.first_byte_limit),
        Expiry::Gap => (Outcome::GapTimeout, "gap", trail.gap_limit),
        Expiry::Stalled => (Outcome::Stalled, "stall", None),
        Expiry::Total | Expiry::ClientBody | Expiry::ClientRead => {
            (Outcome::TotalTimeout, allowed.whose_total(), allowed.total)
        }
    };
    let limit = limit.unwrap_or_default();
    let after = clock::since(request.start);
    let detail = format!("the {name} deadline of {limit:?} passed, {after:.1?} after the request");
    Failure::new(outcome, detail)
}

/// Counts something for as long as it lasts.
pub struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    /// One more, until this is dropped.
    pub fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Counted(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
