//! Learned deadlines at work: what an arm of a route has learned ([`Learner`]), asked before an attempt and told how it
//! went.
//!
//! The learner decides; this file says what is known of an attempt before it is sent, whether an endpoint that did not
//! answer was silent for everybody, and counts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    balance::{Cost, Standing},
    chance,
    deadline::{Answer, Basis, Forecast, Learner, Limit, Work},
    telemetry::metrics::{DeadlineBasis, DeadlineKind, DeadlineMetrics, ExploredResult},
    upstream::backend::Place,
};

/// What one arm of a route learns. Lives as long as the settings of its deadlines do not change.
pub struct Learning {
    /// What it has learned.
    pub learner: Learner,
    /// Its series.
    pub metrics: Arc<DeadlineMetrics>,
}

/// What is expected of one attempt.
pub struct Foresight {
    learning: Arc<Learning>,
    first_byte: Forecast,
    gap: Option<Limit>,
}

impl Learning {
    /// How long connecting may take, where that is learned.
    pub fn connect(&self) -> Option<Limit> {
        let limit = self.learner.connect(&mut chance::rng())?;
        self.set(DeadlineKind::Connect, &limit);
        Some(limit)
    }

    /// A connection was made in so long.
    pub fn connected(&self, limit: Option<&Limit>, after: Duration, now: Instant) {
        self.learner.connected(after, now);
        self.kept(DeadlineKind::Connect, limit, after);
    }

    /// No connection was made in so long.
    pub fn not_connected(&self, limit: Option<&Limit>, after: Duration, now: Instant) {
        self.learner.not_connected(after, now);
        self.broken(DeadlineKind::Connect, limit);
    }

    /// What is to be expected of an attempt at this place.
    pub fn foresee(self: &Arc<Self>, place: &Place, answer: Answer, now: Instant) -> Foresight {
        let endpoint = place.endpoint();
        let waiting = endpoint.facts.reported().waiting(now).map_or(0.0, |signal| signal.value);
        let work = work(place.standing(), waiting, answer);
        let mut rng = chance::rng();
        let first_byte = self.learner.forecast(&work, endpoint.patience.level(), &mut rng);
        let gap = self.learner.gap(endpoint.gap_patience.level(), &mut rng);
        if let Some(limit) = &first_byte.limit {
            self.set(DeadlineKind::FirstByte, limit);
        }
        if let Some(limit) = &gap {
            self.set(DeadlineKind::Gap, limit);
        }
        Foresight { learning: Arc::clone(self), first_byte, gap }
    }

    fn set(&self, kind: DeadlineKind, limit: &Limit) {
        let basis = match limit.basis {
            Basis::Learned => DeadlineBasis::Learned,
            Basis::Unknown => DeadlineBasis::Unknown,
            Basis::Explored => DeadlineBasis::Explored,
        };
        self.metrics.set(kind, basis, limit.after);
    }

    fn kept(&self, kind: DeadlineKind, limit: Option<&Limit>, after: Duration) {
        if let Some(limit) = limit.filter(|limit| limit.basis == Basis::Explored) {
            let late = !limit.is_kept_by(after);
            let result = if late { ExploredResult::Late } else { ExploredResult::InTime };
            self.metrics.explored(kind, result);
        }
    }

    fn broken(&self, kind: DeadlineKind, limit: Option<&Limit>) {
        if limit.is_some_and(|limit| limit.basis == Basis::Explored) {
            self.metrics.explored(kind, ExploredResult::Never);
        }
    }
}

impl Foresight {
    /// How long the first byte may take, where that is learned.
    pub fn first_byte(&self) -> Option<Duration> {
        self.first_byte.limit.map(|limit| limit.after)
    }

    /// How long the pieces of the response may be apart, where that is learned.
    pub fn gap(&self) -> Option<Duration> {
        self.gap.map(|limit| limit.after)
    }

    /// The time within which the share `q` of such attempts get their first byte; `None` while too little is known.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        self.learning.learner.quantile(q, &self.first_byte)
    }

    /// Another attempt of the same request began first: this one would have taken so long at least. Without that the
    /// times at which hedges are due would shrink by hedging. Of the endpoint it says nothing.
    pub fn lost(&self, after: Duration, now: Instant) {
        self.learning.learner.cut_off(&self.first_byte, after, now);
    }

    /// The first byte of a good answer came after so long.
    pub fn served(&self, place: &Place, after: Duration, now: Instant) {
        let in_time = self.learning.learner.served(&self.first_byte, after, now);
        place.endpoint().patience.was_served(in_time);
        self.learning.kept(DeadlineKind::FirstByte, self.first_byte.limit.as_ref(), after);
    }

    /// No first byte came in so long. Whether the endpoint was silent for everybody, and its deadline was a learned one:
    /// then it hangs.
    pub fn cut_off(&self, place: &Place, after: Duration, now: Instant) -> bool {
        let limit = self.first_byte.limit.as_ref();
        self.learning.broken(DeadlineKind::FirstByte, limit);
        if now.checked_sub(after).is_some_and(|sent| place.endpoint().facts.has_served_since(sent))
        {
            self.learning.learner.cut_off(&self.first_byte, after, now);
            return false;
        }
        // A client that leaves early says nothing of the endpoint.
        let Some(limit) = limit.filter(|limit| after >= limit.after) else { return false };
        place.endpoint().patience.was_silent(limit);
        limit.learned.is_some()
    }

    /// A response came to its end; its pieces were so far apart at most.
    pub fn ended(&self, place: &Place, longest_gap: Option<Duration>, now: Instant) {
        let Some(gap) = longest_gap else { return };
        self.learning.learner.longest_gap(gap, now);
        if let Some(limit) = &self.gap {
            place.endpoint().gap_patience.was_served(limit.is_kept_by(gap));
        }
        self.learning.kept(DeadlineKind::Gap, self.gap.as_ref(), gap);
    }

    /// A response was given up after a gap of so long.
    pub fn gap_cut_off(&self, place: &Place, gap: Duration, now: Instant) {
        self.learning.broken(DeadlineKind::Gap, self.gap.as_ref());
        let endpoint = place.endpoint();
        if now.checked_sub(gap).is_some_and(|since| endpoint.facts.has_served_since(since)) {
            self.learning.learner.gap_cut_off(gap, now);
        } else if let Some(limit) = &self.gap {
            endpoint.gap_patience.was_silent(limit);
        }
    }
}

/// What is to be done before a first byte, by what the request found at its endpoint.
fn work(found: Standing, waiting: f64, answer: Answer) -> Work {
    let running = u64::from(found.in_flight) * Cost::REQUEST;
    let prompts = found.work.saturating_sub(running).max(found.prompt);
    Work {
        prompt: found.prompt / Cost::TOKEN,
        ahead: (prompts - found.prompt) / Cost::TOKEN,
        others: found.in_flight.saturating_sub(1),
        waiting,
        answer,
    }
}
