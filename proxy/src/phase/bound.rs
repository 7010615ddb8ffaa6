//! How long a request may take, and what becomes of it at the present load: what the route says, what its client has
//! time for, and the level of load in force.
//!
//! The client's budget shortens the total deadline, counted from when its request was here. One that is over before
//! anything was sent is a 504 at once: whatever was begun for it would be thrown away.
//!
//! What a level does besides, with stored answers, is the business of [`super::answer`]: [`Allowed::action`] says it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_config::validated::{self as config, Level, LevelAction, LoadMeasure};
use parking_lot::Mutex;

use crate::{
    clock,
    deadline::Budget,
    level::{Arrivals, Ladder},
    outcome::Outcome,
    request::{Failure, Request, Retry},
    snapshot::{Action, Route, Snapshot},
    telemetry::metrics::{ClientBudget, LevelMetrics},
    wire::Fields,
};

/// How often engines are asked for what they reported of their queues, at most.
const LOOK: Duration = Duration::from_millis(100);

/// How long a request may take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// When it must be over.
    pub until: Option<Instant>,
    /// How long that is, all in all.
    pub total: Option<Duration>,
    /// What is to become of it at the present load.
    pub action: LevelAction,
    /// The client said when it must be over.
    by_client: bool,
    /// What the client said, where it is listened to.
    budget: Budget,
    level: Option<Level>,
    /// How long the level lasts at least.
    lasts: Duration,
}

impl Allowed {
    /// How long a call of our own may take that is made for such a request from `start` on: what its client has time for
    /// bounds nobody else.
    pub fn of_our_own(&self, route: &Route, start: Instant) -> Self {
        let total = self.level.and_then(|level| level.total).or(route.settings.deadline.total);
        let until = total.and_then(|total| start.checked_add(total));
        let (by_client, budget) = (false, Budget::default());
        Allowed { until, total, by_client, budget, ..*self }
    }

    /// How long the first byte may take, where it is `usual` without the load.
    pub fn first_byte(&self, usual: Option<Duration>) -> Option<Duration> {
        let set = self.level.and_then(|level| level.first_byte);
        set.or_else(|| usual.map(|usual| self.scaled(usual)))
    }

    /// How far two pieces of the response may be apart, likewise.
    pub fn gap(&self, usual: Option<Duration>) -> Option<Duration> {
        usual.map(|usual| self.scaled(usual))
    }

    fn scaled(&self, usual: Duration) -> Duration {
        match self.level {
            Some(level) if level.scale != 1.0 => {
                Duration::try_from_secs_f64(usual.as_secs_f64() * level.scale).unwrap_or(usual)
            }
            _ => usual,
        }
    }

    /// What is left at `now`; `None` where there is no bound.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(now))
    }

    /// Whose total it is, for who reads about it.
    pub fn whose_total(&self) -> &'static str {
        if self.by_client { "total (the client's own)" } else { "total" }
    }

    /// Whether the first-byte deadline is not simply the configured one.
    pub fn is_unusual(&self, request: &Request) -> bool {
        request.learning.is_some() || self.level.is_some()
    }

    /// Tells the endpoint in these fields how much time is left, as far as it is to be told.
    pub fn tell(&self, fields: &mut Fields, route: &Route) {
        let also = route.settings.deadline.tell_endpoint;
        if self.until.is_none() || !(self.budget.time.is_some() || also.is_some()) {
            return;
        }
        if let Some(left) = self.left(clock::now()) {
            self.budget.tell(fields, left, also);
        }
    }
}

/// The load levels of one route. Lives as long as their settings do not change.
pub struct LoadLevels {
    by: LoadMeasure,
    state: Mutex<State>,
    metrics: Arc<LevelMetrics>,
}

struct State {
    ladder: Ladder,
    arrivals: Arrivals,
    /// What engines reported of their queues, and when that was looked at.
    queue: (f64, Option<Instant>),
}

impl LoadLevels {
    /// Below the first level.
    pub fn new(settings: &config::Levels, metrics: Arc<LevelMetrics>) -> Self {
        metrics.level.set(0);
        let state = State {
            ladder: Ladder::new(settings.clone()),
            arrivals: Arrivals::new(clock::now()),
            queue: (0.0, None),
        };
        LoadLevels { by: settings.by, state: Mutex::new(state), metrics }
    }

    /// A request arrives: the level in force with it, and how long that lasts at least.
    fn arrive(&self, route: &Route, now: Instant) -> (Option<Level>, Duration) {
        let state = &mut *self.state.lock();
        state.arrivals.arrived(now);
        self.step(state, route, now);
        (state.ladder.in_force().copied(), state.ladder.lasts(now))
    }

    fn step(&self, state: &mut State, route: &Route, now: Instant) {
        let load = match self.by {
            LoadMeasure::RequestsPerSecond => state.arrivals.per_second(now),
            LoadMeasure::InFlight => route.metrics.in_flight.get() as f64,
            LoadMeasure::Queue => {
                if state.queue.1.is_none_or(|at| now.saturating_duration_since(at) >= LOOK) {
                    state.queue = (queue(route, now), Some(now));
                }
                state.queue.0
            }
        };
        let level = state.ladder.step(load, now);
        self.metrics.level.set(level as i64);
    }
}

/// The mean of what the engines of the route report of their queues; 0 where none does.
fn queue(route: &Route, now: Instant) -> f64 {
    let Action::Split(split) = &route.action else { return 0.0 };
    let (mut sum, mut count) = (0.0, 0.0);
    for arm in &split.arms {
        for member in &arm.backend.members().list {
            if let Some(waiting) = member.endpoint.facts.reported().waiting(now) {
                (sum, count) = (sum + waiting.value, count + 1.0);
            }
        }
    }
    sum / f64::max(count, 1.0)
}

/// Looks at the load of every route that has levels, so that one ends although nobody comes any more.
pub fn look(snapshot: &Snapshot, now: Instant) {
    for route in &snapshot.routes {
        if let Some(levels) = &route.levels {
            levels.step(&mut levels.state.lock(), route, now);
        }
    }
}

/// Says how long the request may take.
///
/// # Errors
/// [`Outcome::TotalTimeout`] when its client has no time left.
pub fn bound(request: &mut Request, route: &Route) -> Result<(), Failure> {
    let deadline = &route.settings.deadline;
    let mut allowed = Allowed::default();
    let mut total = deadline.total;
    if let Some(levels) = &route.levels {
        (allowed.level, allowed.lasts) = levels.arrive(route, clock::now());
        allowed.action = allowed.level.map_or(LevelAction::Normal, |level| level.action);
        total = allowed.level.and_then(|level| level.total).or(total);
    }
    if deadline.client_budget {
        allowed.budget = Budget::read(&request.head.fields);
        if allowed.budget.odd {
            route.metrics.budget(ClientBudget::Odd);
        }
        let time = allowed.budget.time;
        allowed.by_client = time.is_some_and(|time| total.is_none_or(|total| time < total));
        total = if allowed.by_client { time } else { total };
    }
    allowed.total = total;
    // A client may say that it waits for thousands of years.
    allowed.until = total.and_then(|total| request.start.checked_add(total));
    request.allowed = allowed;
    if allowed.budget.time.is_some() {
        let over = allowed.left(clock::now()).is_some_and(|left| left.is_zero());
        let result = if over { ClientBudget::Exhausted } else { ClientBudget::Obeyed };
        route.metrics.budget(result);
        if over {
            let detail = "the client's own deadline had passed before anything was sent";
            return Err(Failure::new(Outcome::TotalTimeout, detail));
        }
    }
    Ok(())
}

/// Turns the request away if that is what becomes of it at the present load. Stored answers have been looked at before.
///
/// # Errors
/// [`Outcome::Shed`].
pub fn turn_away(request: &Request, route: &Route) -> Result<(), Failure> {
    let allowed = &request.allowed;
    match allowed.action {
        LevelAction::Normal | LevelAction::PreferStored => Ok(()),
        LevelAction::OnlyStored | LevelAction::Shed => {
            let by = route.settings.levels.as_ref().map_or("", |levels| levels.by.name());
            let from = allowed.level.map_or(0.0, |level| level.from);
            let detail =
                format!("the load of route {} has reached {from} {by}", route.settings.name);
            Err(Failure::new(Outcome::Shed, detail).retry(Retry::After(allowed.lasts)))
        }
    }
}
