//! The wait for the first byte of a route that hedges: a race between the first attempt and one at another endpoint.
//!
//! When the first attempt has had the whole request for as long as `Hedging::after` says, and [`crate::hedge`] has no
//! objection, a [`Rival`] is sent. Whoever first has a good head *and* the first piece that goes with it wins and is
//! passed on; the others are given up at once, so that their engines' slots are free, and say nothing about their
//! endpoints. An attempt that fails leaves the race to the others and counts as any failed attempt does. One that is
//! answered by a plea (429, 503, 5xx) has not won while another is open; the first attempt's plea is kept for the case
//! that nobody does better. When all have failed, the last failure is what the retry policy decides about.
//!
//! The client and its deadlines are watched all the time, by whichever holds the client's side: the exchange of the first
//! attempt, or what is left of it when that has failed.
//!
//! Left out: connecting the first attempt (a hedge is due after the request was sent), tunnels, and requests that are
//! not here as a whole.

use std::{
    future::poll_fn,
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use outrigger_config::validated::{self as config, HedgeAfter};
use rand::Rng;

use super::{
    ask::is_json,
    attempt::{
        Lapse, Miss, blame, client_fault, expired, judge_status, lapse_of_dial, lapse_of_wire,
        no_head, plea, settle,
    },
    forward,
};
use crate::{
    clock,
    deadline::{Expiry, Watchdog},
    hedge::{self, Allowance, Denied, Policy, Waiting},
    outcome::Outcome,
    outlier,
    relay::{
        Bounds, Exchange, Fault,
        rival::{Asker, Defeat, Rival},
    },
    request::Request,
    retry::Reason,
    snapshot::Route,
    stream::Kind,
    telemetry::{
        metrics::{HedgeDenied, HedgeResult, RouteMetrics},
        trace::Ending,
    },
    upstream::{Backend, backend::Wanted},
    wire::{ResponseHead, WireError},
};

/// How a route hedges, compiled. Lives as long as its settings do not change.
pub struct Hedging {
    after: HedgeAfter,
    policy: Policy,
    /// What the requests of the route have earned.
    pub allowance: Allowance,
}

impl Hedging {
    /// Hedges under these settings; `retry` bounds all attempts together.
    pub fn new(hedge: &config::Hedge, retry: &config::Retry) -> Self {
        let policy = Policy { max: hedge.max, attempts: retry.attempts };
        Hedging { after: hedge.after, policy, allowance: Allowance::new(hedge.budget) }
    }

    /// How long after the request was sent a hedge is due; `None` while too little has been `learned`.
    fn after(&self, learned: impl FnOnce(f64) -> Option<Duration>) -> Option<Duration> {
        match self.after {
            HedgeAfter::Fixed(after) => Some(after),
            HedgeAfter::Percentile(share) => learned(share),
        }
    }
}

/// One wait for a first byte, and who is in it beside the first attempt.
pub(super) struct Race<'a, R> {
    hedging: &'a Hedging,
    route: &'a Route,
    backend: &'a Arc<Backend>,
    /// What a rival asks for, but for what has been tried.
    wanted: Wanted<'a>,
    /// The head says that it leaves the pod.
    hop_marked: bool,
    bounds: Bounds,
    rng: &'a mut R,
    due: Due,
    runners: Vec<Runner>,
}

/// When the next hedge is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// When the first attempt has the whole request, it will be known.
    Unknown,
    /// At that time, and the next one so long after it.
    At(Instant, Duration),
    /// There will be none.
    Never,
}

/// A rival, and what becomes of it.
struct Runner {
    rival: Box<Rival>,
    ticket: Ticket,
    /// Which attempt of the request it is in its trace.
    number: Option<usize>,
}

impl Runner {
    /// It has ended so, for the request's trace.
    fn ended(&self, request: &mut Request, ending: Ending) {
        if let (Some(trace), Some(number)) = (&mut request.trace, self.number) {
            trace.ends_at(number, ending);
        }
    }
}

/// Counts a hedge by what became of it, however it ends.
struct Ticket {
    metrics: Arc<RouteMetrics>,
    result: HedgeResult,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.metrics.hedged(self.result);
    }
}

/// The first attempt, or what is left of it.
enum Lead<'r, 'c> {
    /// It waits; its head may have come.
    Open(Exchange<'r, 'c>, Option<ResponseHead>),
    /// It was answered that another endpoint should do it.
    Pleading(Exchange<'r, 'c>, ResponseHead),
    /// It has failed.
    Gone(Asker<'r, 'c>),
}

/// What happened next.
enum Event {
    /// The first attempt has begun to answer, or failed.
    Lead(Result<ResponseHead, Fault>),
    /// The client left or all took too long, when the first attempt was not waited for any more.
    Left(Fault),
    /// A rival has begun to answer, or failed.
    Rival(usize, Result<u16, Defeat>),
    /// A rival has waited for too long.
    Late(usize),
    /// A hedge is due.
    Due,
}

/// Who is passed on, or why nobody is.
type Finish<'r, 'c> = Result<(Exchange<'r, 'c>, ResponseHead), Miss>;

impl<'a, R: Rng> Race<'a, R> {
    /// A race with nobody in it yet.
    pub(super) fn new(
        hedging: &'a Hedging,
        route: &'a Route,
        backend: &'a Arc<Backend>,
        wanted: Wanted<'a>,
        hop_marked: bool,
        bounds: Bounds,
        rng: &'a mut R,
    ) -> Self {
        let (due, runners) = (Due::Unknown, Vec::new());
        Race { hedging, route, backend, wanted, hop_marked, bounds, rng, due, runners }
    }

    /// Waits until somebody has won, or everybody has failed.
    ///
    /// # Errors
    /// As of an attempt that gave no response.
    pub(super) async fn run<'r, 'c>(mut self, first: Exchange<'r, 'c>) -> Finish<'r, 'c> {
        let mut lead = Lead::Open(first, None);
        loop {
            let event = poll_fn(|cx| self.poll(&mut lead, cx)).await;
            match self.advance(lead, event) {
                ControlFlow::Continue(next) => lead = next,
                ControlFlow::Break(finish) => return finish,
            }
        }
    }

    fn poll(&mut self, lead: &mut Lead<'_, '_>, cx: &mut Context<'_>) -> Poll<Event> {
        let total = self.bounds.total;
        let led = match lead {
            Lead::Open(exchange, head) => {
                exchange.poll_opening(head, waits_for_piece, cx).map(Event::Lead)
            }
            Lead::Pleading(exchange, _) => exchange.poll_left(total, cx).map(Event::Left),
            Lead::Gone(asker) => asker.poll_left(total, cx).map(Event::Left),
        };
        if led.is_ready() {
            return led;
        }
        let json = is_json(lead.request());
        for (index, runner) in self.runners.iter_mut().enumerate() {
            let waits = |head: &ResponseHead| waits_for_good_piece(head, json);
            if let Poll::Ready(result) = runner.rival.poll(waits, cx) {
                return Poll::Ready(Event::Rival(index, result));
            }
        }
        self.poll_clock(lead, cx)
    }

    fn poll_clock(&mut self, lead: &mut Lead<'_, '_>, cx: &mut Context<'_>) -> Poll<Event> {
        if let (Due::Unknown, Lead::Open(exchange, _)) = (self.due, &*lead)
            && let Some(sent_at) = exchange.sent_at()
        {
            let after = self.hedging.after(|share| exchange.quantile(share));
            self.due = after.map_or(Due::Never, |after| Due::At(sent_at + after, after));
        }
        let watchdog = lead.watchdog();
        if let Due::At(at, _) = self.due
            && watchdog.poll_until(at, cx).is_ready()
        {
            return Poll::Ready(Event::Due);
        }
        for (index, runner) in self.runners.iter().enumerate() {
            if let Some(at) = runner.rival.expires(self.bounds.first_byte)
                && watchdog.poll_until(at, cx).is_ready()
            {
                return Poll::Ready(Event::Late(index));
            }
        }
        Poll::Pending
    }

    fn advance<'r, 'c>(
        &mut self,
        mut lead: Lead<'r, 'c>,
        event: Event,
    ) -> ControlFlow<Finish<'r, 'c>, Lead<'r, 'c>> {
        match event {
            Event::Lead(Ok(head)) => self.first_answered(lead, head),
            Event::Lead(Err(fault)) => self.first_failed(lead, fault),
            Event::Left(fault) => ControlFlow::Break(Err(self.left(lead, fault))),
            Event::Rival(index, Ok(status)) => self.rival_answered(lead, index, status),
            Event::Rival(index, Err(defeat)) => {
                let lapse = self.lapse(index, defeat);
                self.rival_failed(lead, index, lapse)
            }
            Event::Late(index) => {
                let lapse = self.late(lead.request(), index);
                self.rival_failed(lead, index, lapse)
            }
            Event::Due => {
                self.hedge(lead.request_mut());
                ControlFlow::Continue(lead)
            }
        }
    }

    /// Sends a rival, unless something speaks against it; then none will be sent later either.
    fn hedge(&mut self, request: &mut Request) {
        let now = clock::now();
        let wanted = Wanted { tried: &request.trail.tried, ..self.wanted };
        let place = self.backend.choose_rival(wanted, now, self.rng);
        let body = request.upload.second_copy();
        let waiting = Waiting {
            hedges: request.trail.hedges,
            attempts: request.trail.attempts,
            replayable: body.is_some(),
            endpoint_left: place.is_some(),
        };
        let budget = || self.route.budget.try_withdraw(now);
        let decided = hedge::decide(self.hedging.policy, &waiting, &self.hedging.allowance, budget);
        let (Ok(()), Some(place), Some(body)) = (decided, place, body) else {
            if let Err(why) = decided {
                self.deny(why);
            }
            self.due = Due::Never;
            return;
        };
        self.backend.hedge_sent(&place);
        let trail = &mut request.trail;
        (trail.attempts, trail.hedges) = (trail.attempts + 1, trail.hedges + 1);
        trail.tried.push(place.endpoint().address);
        trail.hedge = Some(HedgeResult::GivenUp);
        let mut head = request.head.clone();
        forward::mark_hop(&mut head.fields, &place, self.hop_marked);
        request.allowed.tell(&mut head.fields, self.route);
        let number = request
            .trace
            .as_mut()
            .map(|trace| trace.hedge(place.endpoint(), &mut head.fields, &mut *self.rng));
        let connect = self.route.settings.deadline.connect.longest();
        let limit = connect.into_iter().chain(request.allowed.left(now)).min();
        let rival = Rival::new(place, Arc::clone(self.backend), head, body, limit);
        let metrics = Arc::clone(&self.route.metrics);
        let ticket = Ticket { metrics, result: HedgeResult::GivenUp };
        self.runners.push(Runner { rival: Box::new(rival), ticket, number });
        self.due = match self.due {
            Due::At(_, after) if trail.hedges < self.hedging.policy.max => {
                Due::At(now + after, after)
            }
            Due::At(..) | Due::Unknown | Due::Never => Due::Never,
        };
    }

    fn deny(&self, why: Denied) {
        let reason = match why {
            // It has had what was agreed.
            Denied::Max => return,
            Denied::Attempts => HedgeDenied::Attempts,
            Denied::Buffer => HedgeDenied::Buffer,
            Denied::NoEndpoint => HedgeDenied::NoEndpoint,
            Denied::Share => HedgeDenied::Share,
            Denied::Budget => HedgeDenied::Budget,
        };
        self.route.metrics.hedge_denied(reason);
    }

    fn first_answered<'r, 'c>(
        &mut self,
        lead: Lead<'r, 'c>,
        head: ResponseHead,
    ) -> ControlFlow<Finish<'r, 'c>, Lead<'r, 'c>> {
        let Lead::Open(exchange, _) = lead else { return ControlFlow::Continue(lead) };
        if plea(&head).is_some() && !self.runners.is_empty() {
            return ControlFlow::Continue(Lead::Pleading(exchange, head));
        }
        while !self.runners.is_empty() {
            self.lose(0, exchange.request);
        }
        ControlFlow::Break(Ok((exchange, head)))
    }

    fn first_failed<'r, 'c>(
        &mut self,
        lead: Lead<'r, 'c>,
        fault: Fault,
    ) -> ControlFlow<Finish<'r, 'c>, Lead<'r, 'c>> {
        let Lead::Open(mut exchange, _) = lead else { return ControlFlow::Continue(lead) };
        let stale = matches!(fault, Fault::Upstream(WireError::Closed(_))) && exchange.is_stale();
        if stale && self.runners.is_empty() {
            return ControlFlow::Break(Err(Miss::Stale(exchange.place)));
        }
        if !of_endpoint(&fault) {
            return ControlFlow::Break(Err(self.left(Lead::Open(exchange, None), fault)));
        }
        if stale {
            // Nothing is known about the endpoint; the rival has the request by now.
            exchange.give_up();
            return ControlFlow::Continue(Lead::Gone(exchange.into_asker()));
        }
        let miss = no_head(&mut exchange, self.route, self.backend, fault);
        exchange.request.note(|trace| miss.note(trace));
        if self.runners.is_empty() {
            return ControlFlow::Break(Err(miss));
        }
        let refused = matches!(miss, Miss::Retryable(Reason::Refused, _));
        exchange.request.trail.faults += u32::from(!refused);
        ControlFlow::Continue(Lead::Gone(exchange.into_asker()))
    }

    /// The client is gone, or its time is up: nobody is waited for any more.
    fn left(&self, lead: Lead<'_, '_>, fault: Fault) -> Miss {
        let miss = match lead {
            Lead::Open(mut exchange, _) => no_head(&mut exchange, self.route, self.backend, fault),
            Lead::Pleading(mut exchange, head) => {
                settle(&mut exchange, self.backend, head.status);
                Miss::Final(client_fault(exchange.request, fault))
            }
            Lead::Gone(asker) => Miss::Final(client_fault(asker.request, fault)),
        };
        if let Miss::Final(failure) = &miss {
            for runner in &self.runners {
                runner.rival.place.endpoint().metrics.ended(failure.outcome);
            }
        }
        miss
    }

    fn rival_answered<'r, 'c>(
        &mut self,
        lead: Lead<'r, 'c>,
        index: usize,
        status: u16,
    ) -> ControlFlow<Finish<'r, 'c>, Lead<'r, 'c>> {
        let alone = self.runners.len() == 1 && matches!(lead, Lead::Gone(_));
        if is_plea(status) && !alone {
            let lapse = self.pleads(index, status);
            return self.rival_failed(lead, index, lapse);
        }
        self.rival_wins(lead, index, status)
    }

    fn rival_wins<'r, 'c>(
        &mut self,
        lead: Lead<'r, 'c>,
        index: usize,
        status: u16,
    ) -> ControlFlow<Finish<'r, 'c>, Lead<'r, 'c>> {
        let Runner { rival, mut ticket, number } = self.runners.remove(index);
        let Some((answered, head)) = rival.into_answer() else {
            return ControlFlow::Continue(lead);
        };
        ticket.result = if is_plea(status) { HedgeResult::Failed } else { HedgeResult::Won };
        let asker = self.dismiss(lead);
        while !self.runners.is_empty() {
            self.lose(0, asker.request);
        }
        if ticket.result == HedgeResult::Won {
            self.backend.hedge_won(&answered.place, self.wanted.ask, clock::now());
        }
        if let (Some(trace), Some(number)) = (&mut asker.request.trace, number) {
            trace.wins(number, status);
            if let Some(took) = answered.connect {
                trace.connected(answered.dialled, took);
            }
        }
        let trail = &mut asker.request.trail;
        trail.hedge = Some(ticket.result);
        trail.endpoint = Some(Arc::clone(answered.place.endpoint()));
        trail.connect = answered.connect;
        let exchange = Exchange::resume(asker, answered, self.bounds);
        ControlFlow::Break(Ok((exchange, head)))
    }

    /// The first attempt is not needed any more.
    fn dismiss<'r, 'c>(&self, lead: Lead<'r, 'c>) -> Asker<'r, 'c> {
        match lead {
            Lead::Open(mut exchange, _) => {
                exchange.lose();
                exchange.into_asker()
            }
            Lead::Pleading(mut exchange, head) => {
                settle(&mut exchange, self.backend, head.status);
                exchange.request.trail.faults += u32::from(!is_busy(head.status));
                exchange.request.note(|trace| {
                    trace.answered(head.status);
                    trace.pleaded();
                });
                exchange.into_asker()
            }
            Lead::Gone(asker) => asker,
        }
    }

    /// A rival is not needed any more.
    fn lose(&mut self, index: usize, request: &mut Request) {
        let mut runner = self.runners.remove(index);
        runner.rival.cancel();
        runner.rival.place.endpoint().metrics.races_lost.inc();
        runner.ticket.result = HedgeResult::Lost;
        request.trail.hedge = Some(HedgeResult::Lost);
        runner.ended(request, Ending::Lost);
    }

    /// A rival is out; its failure has been counted.
    fn rival_failed<'r, 'c>(
        &mut self,
        mut lead: Lead<'r, 'c>,
        index: usize,
        lapse: Lapse,
    ) -> ControlFlow<Finish<'r, 'c>, Lead<'r, 'c>> {
        let mut runner = self.runners.remove(index);
        runner.rival.cancel();
        runner.ticket.result = HedgeResult::Failed;
        runner.ended(lead.request_mut(), Ending::Outcome(lapse.outcome));
        let trail = &mut lead.request_mut().trail;
        trail.hedge = Some(HedgeResult::Failed);
        let last = self.runners.is_empty();
        match lead {
            Lead::Gone(asker) if last => {
                asker.request.trail.endpoint = Some(Arc::clone(runner.rival.place.endpoint()));
                ControlFlow::Break(Err(lapse.into()))
            }
            Lead::Pleading(exchange, head) if last => ControlFlow::Break(Ok((exchange, head))),
            mut lead => {
                lead.request_mut().trail.faults += u32::from(lapse.blamed.is_some());
                ControlFlow::Continue(lead)
            }
        }
    }

    /// What the end of a rival without an answer means for its endpoint.
    fn lapse(&mut self, index: usize, defeat: Defeat) -> Lapse {
        let name = self.runners[index].rival.place.endpoint().name.clone();
        let lapse = match defeat {
            Defeat::Dial(error) => lapse_of_dial(&name, &error, self.backend),
            Defeat::Wire(error) => lapse_of_wire(&name, error),
        };
        self.hold_against(index, lapse)
    }

    fn late(&mut self, request: &Request, index: usize) -> Lapse {
        let failure = expired(request, Expiry::FirstByte);
        let lapse = Lapse {
            outcome: failure.outcome,
            blamed: Some(outlier::Failure::FirstByteTimeout),
            reason: Some(Reason::FirstByte),
            detail: failure.detail,
        };
        self.hold_against(index, lapse)
    }

    /// Its endpoint says that another one should do it.
    fn pleads(&mut self, index: usize, status: u16) -> Lapse {
        let place = &mut self.runners[index].rival.place;
        place.endpoint().metrics.ended(Outcome::of_upstream_status(status));
        judge_status(place, self.backend, status);
        Lapse {
            outcome: Outcome::of_upstream_status(status),
            blamed: (!is_busy(status)).then_some(outlier::Failure::ServerError),
            reason: None,
            detail: String::new(),
        }
    }

    fn hold_against(&mut self, index: usize, lapse: Lapse) -> Lapse {
        let place = &mut self.runners[index].rival.place;
        match lapse.blamed {
            Some(failure) => blame(place, self.backend, lapse.outcome, failure),
            None => place.endpoint().metrics.ended(lapse.outcome),
        }
        lapse
    }
}

impl Lead<'_, '_> {
    fn request(&self) -> &Request {
        match self {
            Lead::Open(exchange, _) | Lead::Pleading(exchange, _) => exchange.request,
            Lead::Gone(asker) => asker.request,
        }
    }

    fn request_mut(&mut self) -> &mut Request {
        match self {
            Lead::Open(exchange, _) | Lead::Pleading(exchange, _) => exchange.request,
            Lead::Gone(asker) => asker.request,
        }
    }

    fn watchdog(&mut self) -> &mut Watchdog {
        match self {
            Lead::Open(exchange, _) | Lead::Pleading(exchange, _) => exchange.watchdog(),
            Lead::Gone(asker) => asker.watchdog,
        }
    }
}

/// Whether the fault is the endpoint's, so that another one may do better.
fn of_endpoint(fault: &Fault) -> bool {
    matches!(fault, Fault::Upstream(_) | Fault::Expired(Expiry::FirstByte | Expiry::Stalled))
}

/// A status by which an endpoint says that another one should do it; see [`plea`].
fn is_plea(status: u16) -> bool {
    is_busy(status) || matches!(status, 500 | 502 | 504)
}

/// Busy, which is no failure.
fn is_busy(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// Whether a head alone is no answer yet. Who is still sending may wait for it; who only listens may too.
fn waits_for_piece(head: &ResponseHead, request: &Request) -> bool {
    request.upload.has_ended() && waits_for_good_piece(head, is_json(request))
}

/// Engines send the head of a stream before they have begun to work on it. `json`: a prompt was sent.
fn waits_for_good_piece(head: &ResponseHead, json: bool) -> bool {
    let kind = Kind::of(head.fields.get("content-type"), None);
    !is_plea(head.status) && (json || kind != Kind::EventStream)
}
