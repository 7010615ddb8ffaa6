//! Places, and those who wait for one, for everyone who asks at once.
//!
//! As long as there is a place and nobody waits, entering and leaving is one atomic operation each: how many are in
//! flight and how many wait are two halves of one number. Everything else happens under a lock: who has to wait is put
//! into the queue, counted there, and only then it is looked again whether a place is free, so that no place that came
//! free meanwhile is missed. A turn travels to the one who waits as a [`Permit`]; if nobody is there to take it, its drop
//! gives it to the next.
//!
//! A backend has a second reason to wait: every endpoint has as many requests as it may have. Whoever finds that gives
//! its permit back and waits like the others; from then on, until nobody waits, only a place that comes free at an
//! endpoint is a turn. Room can come without that (an endpoint is ready again, an agent wants more), so whoever comes
//! last lets the next one look, if there was no turn for `QUIET`.
//!
//! Where a standing queue favours a class, a few free places are left to it: the others may take one only while more than
//! those are free. That is what trunk reservation does in telephone networks: a small number is enough to put one class
//! before the others.
//!
//! A gate outlives configurations: other settings are put into the same gate, so that what is in flight still counts
//! and whoever waits goes on waiting.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use outrigger_config::validated as config;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    limiter::{Limiter, Sample},
    queue::{Asked, Look, Queue, Ticket, Why},
};
use crate::{
    clock,
    deadline::Watchdog,
    telemetry::metrics::{GateMetrics, Rejection},
};

/// One request that waits: its half of [`Waiting`].
type Seat = oneshot::Sender<Result<Permit, Why>>;

/// More than can be in flight: no limit.
const UNLIMITED: u64 = u32::MAX as u64;
/// One who waits, in the upper half of the state.
const WAITING: u64 = 1 << 32;
/// One of so many places is kept for a class that is favoured.
const KEPT_OF: u64 = 20;
/// After so long without a turn somebody looks whether there is a place all the same.
const QUIET: Duration = Duration::from_millis(100);
/// When nothing is known of how soon places come free.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Nobody is told to come back later than that.
const LATEST: Duration = Duration::from_secs(120);

/// What requests pass to get to a route or a backend.
pub struct Gate {
    /// Requests in flight in the lower half, requests that wait in the upper one.
    state: AtomicU64,
    limit: AtomicU64,
    /// Counts places that came free at endpoints.
    freed: AtomicU64,
    /// Counts places that were given back.
    returned: AtomicU64,
    /// How many places are kept, in the lower half, and for which class and those above it, in the upper one.
    kept: AtomicU64,
    adapts: AtomicBool,
    limiter: Mutex<Option<Limiter>>,
    inner: Mutex<Inner>,
    metrics: Arc<GateMetrics>,
}

struct Inner {
    queue: Option<Queue<Seat>>,
    /// Newcomers may wait.
    open: bool,
    /// Every endpoint was found full: turns come from places at endpoints.
    crowded: bool,
    /// Places that came free at endpoints and are nobody's turn yet.
    places: usize,
    /// How many had come free, at endpoints or here, when the last one came who found none.
    known_freed: u64,
    /// When it was last somebody's turn to look for a place.
    last_turn: Option<Instant>,
    /// When a place was last given back while all were taken, and how long after the one before, on average.
    last_back: Option<Instant>,
    between: Option<Duration>,
}

/// A place; dropping it gives it back.
pub struct Permit {
    gate: Arc<Gate>,
    /// How many were in flight when it was given, itself included.
    in_flight: usize,
    /// It was given because a place came free at an endpoint, and has not been used yet.
    on_place: bool,
}

/// One who waits. It leaves when this is dropped.
pub struct Waiting {
    gate: Arc<Gate>,
    ticket: Ticket,
    look_at: Option<Instant>,
    turn: oneshot::Receiver<Result<Permit, Why>>,
    since: Instant,
}

/// What comes of wanting a place.
pub enum Entry {
    /// Here it is.
    Permit(Permit),
    /// It has to be waited for.
    Waiting(Waiting),
    /// There is none.
    Rejected(Rejection),
}

/// How a gate stands.
pub struct GateState {
    /// How many may be in flight; `None` = as many as there are.
    pub limit: Option<u64>,
    /// How many are.
    pub in_flight: u64,
    /// How many wait, for each class; empty without a queue.
    pub waiting: Vec<usize>,
    /// How many are kept for a higher class.
    pub kept: u64,
    /// The queue has not got shorter for too long.
    pub standing: bool,
    /// Between two places, as far as that is known.
    pub interval: Option<Duration>,
    /// How many times longer than on an idle server answers take, where the limit adapts.
    pub slowness: Option<f64>,
}

/// Turns and refusals that are told after the lock has been given back: a turn that nobody takes needs it again.
#[derive(Default)]
struct Outbox {
    turns: Vec<(Seat, Permit)>,
    gone: Vec<(Seat, Why)>,
}

impl Outbox {
    fn send(self) {
        for (seat, permit) in self.turns {
            // Whoever has left gives its turn to the next.
            let _ = seat.send(Ok(permit));
        }
        for (seat, why) in self.gone {
            let _ = seat.send(Err(why));
        }
    }
}

impl From<Why> for Rejection {
    fn from(why: Why) -> Self {
        match why {
            Why::Full => Rejection::QueueFull,
            Why::TimedOut => Rejection::QueueTimeout,
            Why::Shed => Rejection::Shed,
        }
    }
}

impl Gate {
    /// A gate that nobody has passed.
    pub fn new(
        limit: Option<&config::Limit>,
        queue: Option<&config::Queue>,
        metrics: Arc<GateMetrics>,
    ) -> Arc<Self> {
        let gate = Arc::new(Gate {
            state: AtomicU64::new(0),
            limit: AtomicU64::new(UNLIMITED),
            freed: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            adapts: AtomicBool::new(false),
            limiter: Mutex::new(None),
            inner: Mutex::new(Inner {
                queue: None,
                open: false,
                crowded: false,
                places: 0,
                known_freed: 0,
                last_turn: None,
                last_back: None,
                between: None,
            }),
            metrics,
        });
        gate.configure(limit, queue);
        gate
    }

    /// Other settings from now on.
    pub fn configure(
        self: &Arc<Self>,
        limit: Option<&config::Limit>,
        queue: Option<&config::Queue>,
    ) {
        self.locked(|_, inner, _| {
            inner.open = queue.is_some();
            match (&mut inner.queue, queue) {
                (Some(old), Some(new)) => old.configure(new.clone()),
                (old @ None, Some(new)) => *old = Some(Queue::new(new.clone())),
                // Whoever waits goes on; nobody joins them.
                (_, None) => {}
            }
        });
        // The next one that finds no place says for whom.
        self.keep_for(None);
        self.set_limit(self.take_up(limit));
    }

    /// The limit by these settings; one that adapts goes on where it is.
    fn take_up(&self, limit: Option<&config::Limit>) -> u64 {
        let mut limiter = self.limiter.lock();
        match (limit, &mut *limiter) {
            (Some(config::Limit::Adaptive(new)), Some(known)) => known.configure(new.clone()),
            (Some(config::Limit::Adaptive(new)), none) => *none = Some(Limiter::new(new.clone())),
            (_, known) => *known = None,
        }
        self.adapts.store(limiter.is_some(), SeqCst);
        match limit {
            None => UNLIMITED,
            Some(config::Limit::InFlight(most)) => *most as u64,
            Some(config::Limit::Adaptive(_)) => {
                limiter.as_ref().map_or(UNLIMITED, |limiter| limiter.limit() as u64)
            }
        }
    }

    fn set_limit(self: &Arc<Self>, limit: u64) {
        self.limit.store(limit.min(UNLIMITED), SeqCst);
        let shown = if limit >= UNLIMITED { 0 } else { i64::try_from(limit).unwrap_or(i64::MAX) };
        self.metrics.limit.set(shown);
        if waiting(self.state.load(SeqCst)) > 0 {
            self.locked(Self::give_turns);
        }
    }

    /// A place for one of this class, if there is one and nobody waits for it.
    pub fn enter(self: &Arc<Self>, class: usize) -> Option<Permit> {
        self.take(Some(class)).map(|in_flight| self.permit(in_flight, false))
    }

    /// A place, or a wait for one.
    pub fn enter_or_wait(self: &Arc<Self>, asked: Asked, now: Instant) -> Entry {
        match self.enter(asked.class) {
            Some(permit) => Entry::Permit(permit),
            None => self.wait(asked, None, now),
        }
    }

    /// How many places have come free at endpoints; to be asked before looking for one.
    pub fn freed(&self) -> u64 {
        self.freed.load(SeqCst)
    }

    /// Waits for a place at an endpoint: there was none when `freed` was asked. The permit has been given back.
    pub fn wait_for_place(self: &Arc<Self>, asked: Asked, freed: u64, now: Instant) -> Entry {
        self.wait(asked, Some(freed), now)
    }

    fn wait(self: &Arc<Self>, asked: Asked, freed: Option<u64>, now: Instant) -> Entry {
        let (seat, turn) = oneshot::channel();
        let entered = self.locked(|gate, inner, out| {
            // Only who comes first may wait where nobody waits any more.
            let open = inner.open;
            let Some(queue) = inner.queue.as_mut().filter(|_| open) else {
                return Err(Rejection::Overloaded);
            };
            let came_free =
                if freed.is_some() || inner.crowded { &gate.freed } else { &gate.returned };
            let came_free = came_free.load(SeqCst);
            let since =
                came_free.saturating_sub(std::mem::replace(&mut inner.known_freed, came_free));
            queue.found_no_place(since, in_flight(gate.state.load(SeqCst)));
            let ticket = queue.enter(asked, seat, now, &mut out.gone);
            gate.keep_for(queue.favours(now));
            let ticket = ticket?;
            let look_at = queue.first_look(&ticket, now);
            gate.note_waiting(queue.len());
            if let Some(freed) = freed {
                inner.places = if inner.crowded { inner.places } else { 0 };
                (inner.crowded, inner.last_turn) = (true, Some(now));
                // One that came free since is a turn.
                inner.places += usize::from(gate.freed.load(SeqCst) != freed);
            } else if inner.crowded && inner.last_turn.is_some_and(|last| now >= last + QUIET) {
                inner.places += 1;
            }
            gate.give_turns(inner, out);
            Ok((ticket, look_at))
        });
        match entered {
            Ok((ticket, look_at)) => Entry::Waiting(Waiting {
                gate: Arc::clone(self),
                ticket,
                look_at: Some(look_at),
                turn,
                since: now,
            }),
            Err(rejection) => {
                self.metrics.rejected(rejection);
                Entry::Rejected(rejection)
            }
        }
    }

    /// A place has come free at an endpoint.
    pub fn place_freed(self: &Arc<Self>) {
        self.freed.fetch_add(1, SeqCst);
        if waiting(self.state.load(SeqCst)) > 0 {
            self.locked(|gate, inner, out| {
                inner.places += usize::from(inner.crowded);
                gate.give_turns(inner, out);
            });
        }
    }

    /// There are other endpoints now: whoever waits for a place may look again.
    pub fn endpoints_changed(self: &Arc<Self>) {
        self.freed.fetch_add(1, SeqCst);
        self.locked(|gate, inner, out| {
            let waiting = inner.queue.as_ref().map_or(0, Queue::len);
            inner.places = if inner.crowded { waiting } else { 0 };
            gate.give_turns(inner, out);
        });
    }

    /// When whoever was turned away may come back: when those who wait now have had their turn and a standing queue may
    /// have gone, and a little later, each by its own `chance` (0 to 1), so that they do not come all at once.
    pub fn retry_after(&self, chance: f64, now: Instant) -> Duration {
        let inner = self.inner.lock();
        let queue = inner.queue.as_ref();
        let drained = queue.and_then(|queue| queue.drains_in(now)).or(inner.between);
        let stands = queue.map_or(Duration::ZERO, |queue| queue.stands_for(now));
        let after = drained.unwrap_or(UNKNOWN).max(stands);
        after.mul_f64(1.0 + 0.5 * chance).min(LATEST)
    }

    /// How it stands.
    pub fn state(&self, now: Instant) -> GateState {
        let (limit, state) = (self.limit.load(SeqCst), self.state.load(SeqCst));
        let slowness = self.limiter.lock().as_ref().map(Limiter::ratio);
        let inner = self.inner.lock();
        let queue = inner.queue.as_ref();
        let standing = queue.is_some_and(|queue| queue.still_stands(now));
        GateState {
            limit: (limit < UNLIMITED).then_some(limit),
            in_flight: in_flight(state),
            waiting: queue.map_or_else(Vec::new, |queue| queue.lengths().collect()),
            kept: if standing { self.kept.load(SeqCst) & (WAITING - 1) } else { 0 },
            standing,
            interval: queue.and_then(|queue| queue.interval(now)).or(inner.between),
            slowness,
        }
    }

    /// Runs under the lock, then tells what came of it.
    fn locked<R>(
        self: &Arc<Self>,
        change: impl FnOnce(&Arc<Self>, &mut Inner, &mut Outbox) -> R,
    ) -> R {
        let mut out = Outbox::default();
        let result = change(self, &mut self.inner.lock(), &mut out);
        out.send();
        result
    }

    /// Gives as many turns as there are places.
    fn give_turns(self: &Arc<Self>, inner: &mut Inner, out: &mut Outbox) {
        let Some(queue) = &mut inner.queue else { return };
        let mut now = None;
        while !queue.is_empty() && (!inner.crowded || inner.places > 0) {
            let Some(in_flight) = self.take(None) else { break };
            let now = *now.get_or_insert_with(clock::now);
            let Some((seat, _)) = queue.next(now, &mut out.gone) else {
                self.state.fetch_sub(1, SeqCst);
                break;
            };
            inner.places -= usize::from(inner.crowded);
            inner.last_turn = Some(now);
            out.turns.push((seat, self.permit(in_flight, inner.crowded)));
        }
        if queue.is_empty() {
            (inner.crowded, inner.places) = (false, 0);
        }
        self.note_waiting(queue.len());
    }

    /// Keeps some places for this class and those above it.
    fn keep_for(&self, class: Option<usize>) {
        let limit = self.limit.load(SeqCst);
        let places = if limit < UNLIMITED { kept(limit) } else { 0 };
        let kept = class.map_or(0, |class| (class as u64) << 32 | places);
        self.kept.store(kept, SeqCst);
    }

    /// How many places one of this class must leave free.
    fn kept_from(&self, class: usize) -> u64 {
        let kept = self.kept.load(SeqCst);
        if class as u64 > kept >> 32 { kept & (WAITING - 1) } else { 0 }
    }

    /// One more in flight, if there may be; how many there are then. A newcomer, of this class, does not pass those who
    /// wait.
    fn take(&self, newcomer: Option<usize>) -> Option<usize> {
        let kept = newcomer.map_or(0, |class| self.kept_from(class));
        let limit = self.limit.load(SeqCst).saturating_sub(kept);
        let one_more = |state| {
            let free = in_flight(state) < limit && (newcomer.is_none() || waiting(state) == 0);
            free.then_some(state + 1)
        };
        let before = self.state.fetch_update(SeqCst, SeqCst, one_more).ok()?;
        Some(in_flight(before) as usize + 1)
    }

    fn permit(self: &Arc<Self>, in_flight: usize, on_place: bool) -> Permit {
        self.metrics.in_flight.inc();
        Permit { gate: Arc::clone(self), in_flight, on_place }
    }

    fn give_back(self: &Arc<Self>) {
        self.metrics.in_flight.dec();
        self.returned.fetch_add(1, SeqCst);
        let before = self.state.fetch_sub(1, SeqCst);
        if waiting(before) > 0 || in_flight(before) >= self.limit.load(SeqCst) {
            self.locked(|gate, inner, out| {
                inner.note_back(clock::now());
                gate.give_turns(inner, out);
            });
        }
    }

    /// Only under the lock.
    fn note_waiting(&self, count: usize) {
        let count = count as u64;
        let set = |state| Some(in_flight(state) + count * WAITING);
        let _ = self.state.fetch_update(SeqCst, SeqCst, set);
        self.metrics.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn learn(self: &Arc<Self>, lesson: impl FnOnce(&mut Limiter) -> Option<usize>) {
        let limit = self.limiter.lock().as_mut().and_then(lesson);
        if let Some(limit) = limit {
            self.set_limit(limit as u64);
        }
    }
}

impl Inner {
    /// A place was given back while all were taken.
    fn note_back(&mut self, now: Instant) {
        let before = self.last_back.replace(now);
        // Longer ago than anybody is told to wait, it was another time of crowding.
        let since = before.map(|before| now.saturating_duration_since(before));
        if let Some(since) = since.filter(|since| *since < LATEST) {
            let between = self.between.get_or_insert(since);
            *between = between.mul_f64(0.9) + since.mul_f64(0.1);
        }
    }
}

impl Permit {
    /// Whether there is anything to learn from what becomes of its request.
    pub fn adapts(&self) -> bool {
        self.gate.adapts.load(SeqCst)
    }

    /// Its request was answered so soon.
    pub fn answered(&self, sample: Sample) {
        self.gate.learn(|limiter| limiter.observe(&Sample { in_flight: self.in_flight, ..sample }));
    }

    /// Its request was not answered in time, or the server said that it is overloaded.
    pub fn overloaded(&self) {
        self.gate.learn(|limiter| limiter.overloaded(self.in_flight));
    }

    /// A place at an endpoint has been looked for; with or without success, the turn has been used.
    pub fn looked(&mut self) {
        self.on_place = false;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.give_back();
        if self.on_place {
            self.gate.place_freed();
        }
    }
}

impl Waiting {
    /// Ready with a place, or with why there is none.
    pub fn poll(
        &mut self,
        watchdog: &mut Watchdog,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Permit, Rejection>> {
        loop {
            if let Poll::Ready(turn) = std::pin::Pin::new(&mut self.turn).poll(cx) {
                // The sender is only dropped with the gate itself.
                let turn = turn.unwrap_or(Err(Why::Shed));
                return Poll::Ready(self.ended(turn));
            }
            let Some(at) = self.look_at else { return Poll::Pending };
            ready!(watchdog.poll_until(at, cx));
            let now = clock::now();
            let look = self.gate.locked(|gate, inner, _| {
                let queue = inner.queue.as_mut()?;
                let look = queue.look(&self.ticket, now);
                gate.note_waiting(queue.len());
                Some(look)
            });
            match look {
                Some(Look::Waits(until)) => self.look_at = Some(until),
                Some(Look::Gone(why)) => return Poll::Ready(self.ended(Err(why))),
                // Its turn, or its refusal, is on the way.
                Some(Look::Unknown) | None => self.look_at = None,
            }
        }
    }

    fn ended(&self, turn: Result<Permit, Why>) -> Result<Permit, Rejection> {
        self.gate.metrics.wait.observe(clock::since(self.since));
        turn.map_err(|why| {
            let rejection = Rejection::from(why);
            self.gate.metrics.rejected(rejection);
            rejection
        })
    }

    /// Its place in the queue, to be taken again.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have had its turn, which lies in `turn` and is dropped with it.
        self.turn.close();
        self.gate.locked(|gate, inner, out| {
            let Some(queue) = &mut inner.queue else { return };
            if queue.leave(&self.ticket, clock::now()) {
                gate.give_turns(inner, out);
            }
        });
    }
}

/// How many of so many places are kept for a class that is favoured.
pub(super) fn kept(limit: u64) -> u64 {
    (limit + KEPT_OF / 2) / KEPT_OF
}

fn in_flight(state: u64) -> u64 {
    state & (WAITING - 1)
}

fn waiting(state: u64) -> u64 {
    state / WAITING
}

#[cfg(test)]
mod tests;
