//! What a request that is traced carries: what happened to it when, as the path of a request notes it.
//!
//! Noting is pushing to a short list; words, attributes and spans are made of it by another thread ([`super::spans`]).

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use opentelemetry::{SpanId, TraceId};
use outrigger_probes::Write;
use rand::Rng;

use super::{
    context::{TRACEPARENT, id, traceparent},
    export::Outbox,
};
use crate::{
    clock,
    endpoint::Endpoint,
    outcome::Outcome,
    probes::{Timeline, monotonic},
    retry::Reason,
    telemetry::{access_log::Kept, metrics::Scope},
    wire::Fields,
};

/// The record of a request under way.
pub struct Trace {
    outbox: Arc<Outbox>,
    pub(super) id: TraceId,
    /// The span of the request as a whole.
    pub(super) span: SpanId,
    /// It is only part of that, a call of our own for a request that tells of itself.
    pub(super) is_part: bool,
    /// The one that it is part of; invalid when it begins the trace.
    pub(super) parent: SpanId,
    pub(super) state: Option<Box<str>>,
    pub(super) waits: Vec<Wait>,
    pub(super) attempts: Vec<Attempt>,
    /// The attempt whose answer is passed on, or the last one.
    pub(super) current: usize,
    /// Why there will be another attempt.
    next: Why,
    pub(super) events: Vec<Event>,
}

/// Time in a queue.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) scope: Scope,
    pub(super) name: Box<str>,
    pub(super) from: Instant,
    pub(super) to: Instant,
}

/// One try at one endpoint.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) span: SpanId,
    pub(super) address: SocketAddr,
    pub(super) why: Why,
    pub(super) from: Instant,
    /// From when to when a connection was made for it.
    pub(super) connected: Option<(Instant, Instant)>,
    /// When a connection that had rested turned out closed.
    pub(super) stale: Option<Instant>,
    pub(super) status: Option<u16>,
    pub(super) end: Option<(Instant, Ending)>,
}

/// Why an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is the first.
    First,
    /// The one before has failed so.
    Retry(Reason),
    /// The one before has not begun to answer.
    Hedge,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// So.
    Outcome(Outcome),
    /// Another one of the request began to answer first.
    Lost,
}

/// Something that happened to the request.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) name: &'static str,
    pub(super) at: Instant,
    pub(super) about: Vec<(&'static str, &'static str)>,
}

impl Trace {
    pub(super) fn new(
        outbox: Arc<Outbox>,
        id: TraceId,
        (span, parent): (SpanId, SpanId),
        state: Option<Box<str>>,
    ) -> Self {
        Trace {
            outbox,
            id,
            span,
            is_part: false,
            parent,
            state,
            waits: Vec::new(),
            attempts: Vec::with_capacity(1),
            current: 0,
            next: Why::First,
            events: Vec::new(),
        }
    }

    /// The record of a call of our own that is made for the sake of this request: of its waits and attempts.
    #[must_use]
    pub fn of_call(&self) -> Self {
        let (outbox, ids) = (Arc::clone(&self.outbox), (self.span, self.parent));
        Trace { is_part: true, ..Trace::new(outbox, self.id, ids, self.state.clone()) }
    }

    /// Whoever gets these fields is part of the request.
    pub fn identify(&self, fields: &mut Fields) {
        fields.set(TRACEPARENT, traceparent(self.id, self.span));
    }

    /// It waited for a place, from then until now.
    pub fn waited(&mut self, scope: Scope, name: &str, from: Instant) {
        self.waits.push(Wait { scope, name: name.into(), from, to: clock::now() });
    }

    /// This happened to it, which is told with a few words.
    pub fn event(&mut self, name: &'static str, about: &[(&'static str, &'static str)]) {
        self.events.push(Event { name, at: clock::now(), about: about.to_vec() });
    }

    /// Another attempt will follow for this reason.
    pub fn retries(&mut self, reason: Reason) {
        self.next = Why::Retry(reason);
    }

    /// An attempt at this endpoint begins, whose answer will be passed on if it is good. Its request is part of it, unless
    /// the route has taken away what says so.
    pub fn attempt(&mut self, endpoint: &Endpoint, fields: &mut Fields, rng: &mut impl Rng) {
        self.current = self.begin(endpoint, self.next, fields, rng);
    }

    /// An attempt beside the present one begins; its number is returned.
    pub fn hedge(&mut self, endpoint: &Endpoint, fields: &mut Fields, rng: &mut impl Rng) -> usize {
        self.begin(endpoint, Why::Hedge, fields, rng)
    }

    fn begin(
        &mut self,
        endpoint: &Endpoint,
        why: Why,
        fields: &mut Fields,
        rng: &mut impl Rng,
    ) -> usize {
        let span = id(rng);
        if fields.contains(TRACEPARENT) {
            fields.set(TRACEPARENT, traceparent(self.id, span));
        }
        self.attempts.push(Attempt {
            span,
            address: endpoint.address,
            why,
            from: clock::now(),
            connected: None,
            stale: None,
            status: None,
            end: None,
        });
        self.attempts.len() - 1
    }

    /// A connection was made for the present attempt, which took so long.
    pub fn connected(&mut self, from: Instant, took: Duration) {
        self.with_current(|attempt| attempt.connected = Some((from, from + took)));
    }

    /// The connection of the present attempt had rested for too long; there will be a new one.
    pub fn stale(&mut self) {
        self.with_current(|attempt| attempt.stale = Some(clock::now()));
    }

    /// The present attempt was answered with this status.
    pub fn answered(&mut self, status: u16) {
        self.with_current(|attempt| attempt.status = Some(status));
    }

    /// The present attempt was answered that another one should do it.
    pub fn pleaded(&mut self) {
        let status = self.attempts.get(self.current).and_then(|attempt| attempt.status);
        self.ends(Ending::Outcome(Outcome::of_upstream_status(status.unwrap_or(503))));
    }

    /// The present attempt has ended, unless it had before.
    pub fn ends(&mut self, ending: Ending) {
        self.ends_at(self.current, ending);
    }

    /// The attempt of this number has ended, unless it had before.
    pub fn ends_at(&mut self, number: usize, ending: Ending) {
        if let Some(attempt) = self.attempts.get_mut(number) {
            attempt.end.get_or_insert((clock::now(), ending));
        }
    }

    /// A rival's answer, which has this status, is passed on in the place of the first attempt's.
    pub fn wins(&mut self, number: usize, status: u16) {
        self.ends(Ending::Lost);
        self.current = number;
        self.answered(status);
    }

    fn with_current(&mut self, note: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = self.attempts.get_mut(self.current) {
            note(attempt);
        }
    }

    /// The request has ended, and this is told of it.
    #[must_use]
    pub fn end(self, about: About) -> Box<Finished> {
        Box::new(Finished {
            trace: self,
            about,
            anchor: Anchor::now(),
            timeline: None,
            writes: Vec::new(),
        })
    }
}

/// What is told of a request that has ended, beside its trace.
pub struct About {
    /// What the access log says of it.
    pub record: Kept,
    /// When its head was here.
    pub start: Instant,
    /// When the first byte of its answer came.
    pub first_byte: Option<Instant>,
    /// The path that its route takes, with its placeholders; empty where that is not one.
    pub pattern: String,
    /// The path that endpoints were asked for.
    pub path: String,
    /// Its answer was that of a call which others listened to as well.
    pub shares_call: bool,
}

/// The record of a request that has ended.
pub struct Finished {
    pub(super) trace: Trace,
    pub(super) about: About,
    pub(super) anchor: Anchor,
    pub(super) timeline: Option<Timeline>,
    pub(super) writes: Vec<Write>,
}

impl Finished {
    /// Has it sent, with what the kernel saw of its last attempt: as a whole, and of the writes of the answer that were not the
    /// first.
    pub fn send(mut self: Box<Self>, timeline: Option<Timeline>, writes: Vec<Write>) {
        self.timeline = timeline;
        self.writes = writes;
        let outbox = Arc::clone(&self.trace.outbox);
        outbox.put(self);
    }
}

/// One moment by three clocks: by it all times of a trace become times of day.
#[derive(Clone, Copy, Debug)]
pub(super) struct Anchor {
    pub(super) instant: Instant,
    /// Nanoseconds of CLOCK_MONOTONIC, which the kernel's times are of.
    pub(super) monotonic: u64,
    pub(super) time: SystemTime,
}

impl Anchor {
    fn now() -> Self {
        Anchor { instant: clock::now(), monotonic: monotonic(), time: SystemTime::now() }
    }

    /// The time of day at this instant; the anchor's own for one that is later.
    pub(super) fn time_of(&self, instant: Instant) -> SystemTime {
        self.before(self.instant.saturating_duration_since(instant))
    }

    /// Likewise, by the kernel's clock.
    pub(super) fn time_of_kernel(&self, nanos: u64) -> SystemTime {
        self.before(Duration::from_nanos(self.monotonic.saturating_sub(nanos)))
    }

    fn before(&self, ago: Duration) -> SystemTime {
        self.time.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}
