//! Passive ejection: an endpoint that does badly is left alone for a while.
//!
//! One [`Outlier`] per endpoint, fed with how each attempt ended. It is a circuit breaker of three
//! states ([`Circuit`]). Of an endpoint we say *ejected* where a breaker is *open* or half open; it
//! is the same thing. A backend as a whole has the same state machine in its [`breaker`]:
//!
//! ```text
//!            failures in a row
//!            or a verdict                           ejection is over
//!   closed ────────────────────► ejected ──────────────────────────────► half open
//!     ▲                             ▲                                     │ one request
//!     │            success          └──────────────── failure ────────────┤ passes as a probe
//!     └───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! **How many failures.** [`Settings::failures`] in a row, any success begins anew. A refused
//! connection counts as half of them, so two in a row are enough: it is the kernel's own word that
//! nobody listens there, while a timeout, a reset or a 5xx may be load or one bad request. One
//! alone is not enough, because a server that restarts, or whose accept queue overflows for a
//! moment, refuses too and is back within milliseconds. A stalled engine counts as all of them: its
//! silence has been weighed already.
//!
//! **Verdicts from outside.** What no row of failures shows is found elsewhere and comes in by
//! [`Outlier::eject`]: an endpoint that does worse than the others ([`peers`]) or that has stopped
//! working on what it has ([`stall`]).
//!
//! **For how long.** `base × times`, at most `max`, and up to the share `jitter` longer, so that
//! what went out together does not come back together. `times` counts the ejections of this
//! endpoint, failed probes included, and forgets one for each `base` that passes in service without
//! trouble. (The form is Envoy's, there `base_ejection_time` 30 s and `max_ejection_time` 300 s;
//! there a timer does the forgetting, here it is reckoned at the next trouble.)
//!
//! **How many at once.** At most the share [`Settings::max_share`] of the endpoints, but always
//! one, and never the last ([`Group`]). A share alone is of no use to a small backend: of Envoy's
//! 10 % two endpoints would have none to eject. When no more may go the endpoint stays in, the fact
//! is reported once, and the next failure asks again. Two endpoints that fail in the same instant
//! may each see the other in service, and others may become unready later. A caller that finds no
//! endpoint at all should therefore look once more without regard to ejections
//! ([`Pass::ordinary`]): a poor endpoint beats a sure 503.
//!
//! The good case costs one relaxed atomic load: a request that succeeds at an endpoint without
//! failures touches nothing. Everything else takes a mutex for a few instructions.
//!
//! Left out: active checks (`health`).

pub mod breaker;
pub mod peers;
pub mod stall;

mod gate;
mod pass;
mod settings;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

pub use pass::Pass;
pub use settings::{Failure, Group, Reason, Settings};

use gate::Gate;

/// Prompt tokens as whose reading counts what an engine does for every first byte, whatever the
/// prompt.
const EVERY_REQUEST: u64 = 64;

/// Whether an endpoint takes a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Like any other.
    Yes,
    /// As the one request that tries whether the endpoint is back; [`Outlier::acquire`] makes it
    /// that one.
    Probe,
    /// Ejected, or being probed by another request.
    No,
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Requests pass.
    Closed,
    /// None passes for so long.
    Open(Duration),
    /// One passes as a probe, or is on its way.
    HalfOpen,
}

impl Circuit {
    /// The word for logs, metric labels and the admin page.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open(_) => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What a verdict changed; for the log and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The endpoint is left alone.
    Ejected {
        /// When a probe may try it.
        until: Instant,
        /// Why.
        reason: Reason,
        /// The failure that was one too many, when it was failures.
        failure: Option<Failure>,
    },
    /// A probe succeeded: the endpoint is back.
    Restored,
    /// The endpoint would be ejected, but too few others are left. Reported once for as long as it
    /// goes on.
    KeptAsLast {
        /// Why it would be.
        reason: Reason,
        /// The failure that was one too many, when it was failures.
        failure: Option<Failure>,
    },
}

/// The ejection state of one endpoint.
#[derive(Debug)]
pub struct Outlier {
    /// From where [`Gate`] counts time.
    origin: Instant,
    /// A [`Gate`]. Written under `record`, but for the slot of the probe, which is claimed by
    /// compare-and-swap and belongs to whoever claimed it until the verdict.
    gate: AtomicU64,
    record: Mutex<Record>,
}

/// What only verdicts need.
#[derive(Debug)]
struct Record {
    settings: Settings,
    rng: SmallRng,
    /// [`Settings::points`] of the failures since the last success; none while ejected.
    points: u32,
    /// Ejections not yet forgotten.
    times: u32,
    /// When the endpoint was last restored or last failed while in service.
    calm_since: Instant,
    /// That failures could not eject it has been reported.
    kept: bool,
    /// When a verdict from outside last could not eject it.
    kept_at: Option<Instant>,
}

impl Record {
    /// Forgets the ejections that calm until `end` has earned.
    fn forgive(&mut self, end: Instant) {
        let calm = end.saturating_duration_since(self.calm_since);
        let earned = calm.as_nanos().checked_div(self.settings.base.as_nanos());
        let earned = earned.map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX));
        self.times = self.times.saturating_sub(earned);
    }
}

impl Outlier {
    /// An endpoint in service, without any failure. The seed of the jitter should differ between
    /// endpoints and between proxies; `rand::random()` will do.
    pub fn new(settings: Settings, seed: u64, now: Instant) -> Arc<Self> {
        let record = Record {
            settings,
            rng: SmallRng::seed_from_u64(seed),
            points: 0,
            times: 0,
            calm_since: now,
            kept: false,
            kept_at: None,
        };
        let gate = AtomicU64::new(Gate::Calm.encode());
        Arc::new(Self { origin: now, gate, record: Mutex::new(record) })
    }

    /// Other settings from now on, after a reload. An ejection under way keeps its end.
    pub fn configure(&self, settings: Settings) {
        self.record.lock().settings = settings;
    }

    /// Whether a request may be sent now. Claims nothing: for the balancer, which looks at many
    /// endpoints. One atomic load.
    pub fn admits(&self, now: Instant) -> Admit {
        match self.gate() {
            Gate::Calm | Gate::Failing => Admit::Yes,
            Gate::Ejected(end) if self.elapsed(now) >= end => Admit::Probe,
            Gate::Probing | Gate::Ejected(_) => Admit::No,
        }
    }

    /// Where it stands, for people.
    pub fn circuit(&self, now: Instant) -> Circuit {
        match self.gate() {
            Gate::Calm | Gate::Failing => Circuit::Closed,
            Gate::Ejected(end) if self.elapsed(now) < end => {
                Circuit::Open(end.saturating_sub(self.elapsed(now)))
            }
            Gate::Probing | Gate::Ejected(_) => Circuit::HalfOpen,
        }
    }

    /// Whether the endpoint is out of service: ejected or half open.
    pub fn is_ejected(&self) -> bool {
        !matches!(self.gate(), Gate::Calm | Gate::Failing)
    }

    /// The right to send one request now, for the endpoint that the balancer chose. `None` when it
    /// is ejected or another request took the probe in between; then choose again.
    pub fn acquire(self: &Arc<Self>, now: Instant) -> Option<Pass> {
        match self.gate() {
            Gate::Calm | Gate::Failing => Some(Pass::ordinary()),
            open @ Gate::Ejected(end) if self.elapsed(now) >= end => self.claim_probe(open),
            Gate::Probing | Gate::Ejected(_) => None,
        }
    }

    /// The request succeeded, as far as the endpoint is concerned.
    pub fn on_success(&self, pass: Pass, now: Instant) -> Option<Transition> {
        if pass.is_probe_of(self) {
            self.restore(&mut self.record.lock(), now);
            pass.settle();
            return Some(Transition::Restored);
        }
        if self.gate() == Gate::Failing {
            self.begin_anew(&mut self.record.lock());
        }
        None
    }

    /// The request failed. `group` is asked only when the endpoint is about to be ejected: how do
    /// the others stand? It must not give a verdict on this one.
    pub fn on_failure(
        &self,
        pass: Pass,
        failure: Failure,
        now: Instant,
        group: impl FnOnce() -> Group,
    ) -> Option<Transition> {
        let mut record = self.record.lock();
        let probe = pass.is_probe_of(self);
        if probe {
            record.points = record.settings.failures;
        } else if self.is_ejected() {
            // Sent before the ejection; its cause is known by now.
            return None;
        } else {
            self.count(&mut record, failure, now);
        }
        let transition = if record.points < record.settings.failures {
            None
        } else if group().spares_one(record.settings.max_share) {
            Some(self.send_off(&mut record, failure.reason(), Some(failure), now))
        } else {
            self.keep(&mut record, failure, now)
        };
        if probe {
            pass.settle();
        }
        transition
    }

    /// A verdict from outside the path of requests. Calm counts only until `since`: from then on
    /// the endpoint may have been in trouble, as far as whoever judges knows. `group` is asked as
    /// in [`on_failure`](Self::on_failure).
    ///
    /// Nothing changes when the endpoint is out already. When it has to stay, that is reported once
    /// until there has been no such verdict for `base`.
    pub fn eject(
        &self,
        reason: Reason,
        since: Instant,
        now: Instant,
        group: impl FnOnce() -> Group,
    ) -> Option<Transition> {
        let mut record = self.record.lock();
        if self.is_ejected() {
            return None;
        }
        if !group().spares_one(record.settings.max_share) {
            let before = record.kept_at.replace(now);
            let base = record.settings.base;
            let news = before.is_none_or(|at| now.saturating_duration_since(at) > base);
            return news.then_some(Transition::KeptAsLast { reason, failure: None });
        }
        record.forgive(since);
        Some(self.send_off(&mut record, reason, None, now))
    }

    /// Takes the slot of the probe, unless someone else does first.
    fn claim_probe(self: &Arc<Self>, open: Gate) -> Option<Pass> {
        let (from, to) = (open.encode(), Gate::Probing.encode());
        self.gate.compare_exchange(from, to, Relaxed, Relaxed).ok()?;
        Some(Pass::probe(Arc::clone(self)))
    }

    /// The slot of a probe that has brought no verdict.
    fn give_probe_back(&self) {
        self.set_gate(Gate::HALF_OPEN);
    }

    fn restore(&self, record: &mut Record, now: Instant) {
        record.calm_since = now;
        self.set_gate(Gate::Calm);
    }

    /// Forgets the failures, unless the endpoint was ejected for them a moment ago.
    fn begin_anew(&self, record: &mut Record) {
        if !self.is_ejected() {
            (record.points, record.kept) = (0, false);
            self.set_gate(Gate::Calm);
        }
    }

    /// Counts a failure in service, after forgetting the ejections that earlier calm has earned.
    fn count(&self, record: &mut Record, failure: Failure, now: Instant) {
        record.forgive(now);
        record.calm_since = now;
        record.points = record.points.saturating_add(record.settings.points(failure));
        self.set_gate(Gate::Failing);
    }

    fn send_off(
        &self,
        record: &mut Record,
        reason: Reason,
        failure: Option<Failure>,
        now: Instant,
    ) -> Transition {
        (record.points, record.kept, record.kept_at) = (0, false, None);
        record.times = record.times.saturating_add(1);
        let chance = record.rng.random();
        let ejection = record.settings.ejection(record.times, chance);
        self.set_gate(Gate::Ejected(self.elapsed(now) + ejection));
        Transition::Ejected { until: now + ejection, reason, failure }
    }

    /// Stays in, or comes back in, with all its failures: the next one asks again.
    fn keep(&self, record: &mut Record, failure: Failure, now: Instant) -> Option<Transition> {
        record.calm_since = now;
        self.set_gate(Gate::Failing);
        let first = !std::mem::replace(&mut record.kept, true);
        let (reason, failure) = (failure.reason(), Some(failure));
        first.then_some(Transition::KeptAsLast { reason, failure })
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.origin)
    }

    fn gate(&self) -> Gate {
        Gate::decode(self.gate.load(Relaxed))
    }

    fn set_gate(&self, gate: Gate) {
        self.gate.store(gate.encode(), Relaxed);
    }
}

#[cfg(test)]
mod tests;
