//! What happened, as seen from outside the proxy, and what must never be seen.
//!
//! Clients and engines tell what they do and meet with. What is checked at once is checked against what the proxy says of
//! itself (its gates, its endpoints, its breaker) and against what is known here independently of it.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{client::Wish, plan::Rules};
use crate::{
    admission::gate::{Gate, GateState},
    clock,
    outcome::Outcome,
    outlier::Circuit,
    proxy::Proxy,
    request::Request,
    snapshot::Route,
    upstream::Backend,
};

/// Timers go by milliseconds; one more for the way.
const GRAIN: Duration = Duration::from_millis(3);
/// An attempt is on its way for no longer than that: to connect takes three milliseconds.
const ON_THE_WAY: Duration = Duration::from_millis(50);
/// Longer than any ejection, its jitter, and the wait for a probe.
const LONG: Duration = Duration::from_secs(8);
/// Of what happened, so much is shown.
const SHOWN: usize = 60;

/// Everything that is seen of one run.
pub(crate) struct World {
    start: Instant,
    rules: Rules,
    proxy: OnceLock<Arc<Proxy>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    requests: Vec<Seen>,
    attempts: Vec<Attempt>,
    /// Requests that have begun and not ended.
    alive: usize,
    trace: VecDeque<(Instant, String)>,
    shows_all: bool,
    broken: Vec<String>,
    /// Since when each endpoint has been seen to be ejected, or else in service.
    ejected_since: Vec<Option<Instant>>,
    sound_since: Vec<Option<Instant>>,
    /// Since when the breaker has been seen not to be closed, and to be open.
    not_closed_since: Option<Instant>,
    /// In flight and limit of each gate when it was last looked at.
    entered: [Option<(u64, u64)>; 2],
    open_since: Option<Instant>,
    pub(super) ejections: usize,
    pub(super) openings: usize,
    pub(super) queued: usize,
}

/// A request, as its client sees it.
pub(crate) struct Seen {
    pub(crate) wish: Wish,
    pub(crate) arrived: Instant,
    heads: u32,
    status: u16,
    /// From which attempts pieces of its answer were.
    heard: Vec<usize>,
    whole: bool,
    pub(crate) ended: Option<(Instant, Outcome)>,
    pub(crate) attempts: u32,
    pub(crate) hedges: u32,
    pub(crate) hedge_won: bool,
    /// How long its last first byte was waited for.
    pub(crate) limit: Option<Duration>,
    /// It had to wait.
    pub(crate) queued: bool,
    /// An attempt failed by the fault of its endpoint.
    failed: bool,
}

struct Attempt {
    request: usize,
    engine: usize,
    began: Instant,
    spoke: bool,
    open: bool,
}

/// An attempt, as its engine sees it; it has ended when this is dropped.
pub(crate) struct AttemptGuard {
    pub(crate) number: usize,
    world: Arc<World>,
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        self.world.state.lock().attempts[self.number].open = false;
    }
}

impl World {
    pub(crate) fn new(rules: Rules, wishes: &[Wish]) -> Arc<Self> {
        let seen = |wish: &Wish| Seen {
            wish: wish.clone(),
            arrived: clock::now(),
            heads: 0,
            status: 0,
            heard: Vec::new(),
            whole: false,
            ended: None,
            attempts: 0,
            hedges: 0,
            hedge_won: false,
            limit: None,
            queued: false,
            failed: false,
        };
        let requests = wishes.iter().map(seen).collect();
        let shows_all = std::env::var_os("OUTRIGGER_SEED").is_some();
        let state = State { requests, shows_all, ..State::default() };
        let (start, proxy) = (clock::now(), OnceLock::new());
        Arc::new(World { start, rules, proxy, state: Mutex::new(state) })
    }

    pub(crate) fn watches(&self, proxy: &Arc<Proxy>) {
        let _ = self.proxy.set(Arc::clone(proxy));
        let members = self.backend().members().list.len();
        let mut state = self.state.lock();
        state.ejected_since = vec![None; members];
        state.sound_since = vec![None; members];
    }

    pub(crate) fn backend(&self) -> Arc<Backend> {
        Arc::clone(&self.proxy.get().expect("it has been set").snapshot.load().backends[0])
    }

    pub(crate) fn route(&self) -> Arc<Route> {
        Arc::clone(&self.proxy.get().expect("it has been set").snapshot.load().routes[0])
    }

    pub(crate) fn note(&self, what: String) {
        self.state.lock().note(what);
    }

    pub(crate) fn arrives(&self, id: usize, wish: &Wish) {
        let mut state = self.state.lock();
        state.requests[id].arrived = clock::now();
        state.alive += 1;
        let Wish { class, prompt, pieces, streams, budget, leaves, .. } = wish;
        state.note(format!(
            "#{id} arrives: class {class}, {prompt} bytes, {pieces} pieces, streams {streams}, budget {budget:?}, leaves {leaves:?}"
        ));
    }

    pub(crate) fn heard_head(&self, id: usize, status: u16) {
        let mut state = self.state.lock();
        let seen = &mut state.requests[id];
        (seen.heads, seen.status) = (seen.heads + 1, status);
    }

    pub(crate) fn heard(&self, id: usize, data: &[u8]) {
        let mut state = self.state.lock();
        let text = String::from_utf8_lossy(data);
        let piece = |line: &str| line.strip_prefix("data: ")?.parse::<usize>().ok();
        let pieces = text.lines().filter_map(piece);
        state.requests[id].heard.extend(pieces);
    }

    pub(crate) fn heard_end(&self, id: usize) {
        self.state.lock().requests[id].whole = true;
    }

    pub(crate) fn attempt_begins(self: &Arc<Self>, id: usize, engine: usize) -> AttemptGuard {
        let (now, backend) = (clock::now(), self.backend());
        let mut state = self.state.lock();
        let number = state.attempts.len();
        state.note(format!("#{id} is attempt {number}, at engine {engine}"));
        self.check_attempt(&mut state, id, engine, &backend, now);
        state.attempts.push(Attempt { request: id, engine, began: now, spoke: false, open: true });
        self.check_limits(&mut state);
        self.observe(&mut state, now);
        AttemptGuard { number, world: Arc::clone(self) }
    }

    /// The first piece of its answer is on the way.
    pub(crate) fn spoke(&self, attempt: usize) {
        self.state.lock().attempts[attempt].spoke = true;
    }

    /// An attempt is begun only for who waits for it, and where it may be.
    fn check_attempt(
        &self,
        state: &mut State,
        id: usize,
        engine: usize,
        backend: &Backend,
        now: Instant,
    ) {
        if let Some((at, _)) = state.requests[id].ended
            && now > at + GRAIN
        {
            state.broken(format!("#{id} is attempted after its end"));
        }
        let long_since = |since: Option<Instant>| since.is_some_and(|at| now > at + ON_THE_WAY);
        if matches!(backend.circuit(now), Some(Circuit::Open(_))) && long_since(state.open_since) {
            state.broken(format!("#{id} passes an open breaker"));
        }
        if backend.circuit(now) == Some(Circuit::HalfOpen)
            && let Some(since) = state.not_closed_since.filter(|since| now > *since + ON_THE_WAY)
        {
            let probes = |a: &&Attempt| a.open && !a.spoke && a.began > since + ON_THE_WAY;
            let others = state.attempts.iter().filter(probes).filter(|a| a.request != id);
            let alive = others.filter(|a| state.requests[a.request].ended.is_none()).count();
            if alive > 0 {
                state.broken(format!("#{id} is a second probe of the breaker"));
            }
        }
        let members = backend.members();
        let ejected = matches!(members.list[engine].circuit(now), Circuit::Open(_));
        if ejected && long_since(state.ejected_since[engine]) {
            let tried = |at: usize| {
                let mut own = state.attempts.iter().filter(|a| a.request == id);
                own.any(|a| a.engine == at)
            };
            // Places that came free meanwhile were taken when it was chosen.
            let just_now = |seen: &&Seen| seen.ended.is_some_and(|(at, _)| now <= at + ON_THE_WAY);
            let given_back = state.requests.iter().filter(just_now).count();
            let room = |at: usize| {
                let taken = members.list[at].endpoint.in_flight() as usize + given_back;
                self.rules.max_connections.is_none_or(|most| taken < most)
            };
            // One that was tried in vain is not known here: a connection that is refused reaches nobody.
            let first = state.attempts.iter().all(|a| a.request != id);
            let better = (0..members.list.len()).find(|at| {
                let sound = members.list[*at].is_serving() && long_since(state.sound_since[*at]);
                *at != engine && sound && !tried(*at) && room(*at)
            });
            if let Some(better) = better.filter(|_| first && self.rules.attempts == 1) {
                state.broken(format!("#{id} goes to {engine}, which is ejected, not to {better}"));
            }
        }
    }

    /// So many requests are being worked on at most, by the engines' own count.
    fn check_limits(&self, state: &mut State) {
        let limits = [self.rules.route_limit, self.rules.backend_limit];
        let Some(limit) = limits.into_iter().flatten().min() else { return };
        let open = state.attempts.iter().filter(|attempt| attempt.open);
        let mut ids: Vec<usize> = open.map(|attempt| attempt.request).collect();
        ids.retain(|id| state.requests[*id].ended.is_none());
        ids.sort_unstable();
        ids.dedup();
        if ids.len() as u64 > limit {
            state.broken(format!("{} requests are at engines: {ids:?}", ids.len()));
        }
    }

    pub(crate) fn ends(&self, id: usize, outcome: Outcome, request: &Request, now: Instant) {
        let mut state = self.state.lock();
        let trail = &request.trail;
        state.note(format!(
            "#{id} ends: {}, attempts {}, hedges {}, queued {:?}, first byte {:?} of {:?}",
            outcome.as_str(),
            trail.attempts,
            trail.hedges,
            trail.queued,
            request.progress.first_byte_after(request.start),
            trail.first_byte_limit
        ));
        if state.requests[id].ended.is_some() {
            state.broken(format!("#{id} ends twice"));
        }
        state.alive -= 1;
        state.queued += usize::from(trail.queued.is_some());
        let seen = &mut state.requests[id];
        seen.ended = Some((now, outcome));
        (seen.attempts, seen.hedges) = (trail.attempts, trail.hedges);
        (seen.limit, seen.queued) = (trail.first_byte_limit, trail.queued.is_some());
        seen.failed = trail.faults > 0 || is_of_engine(outcome);
        seen.hedge_won = trail.hedge == Some(crate::telemetry::metrics::HedgeResult::Won);
        for what in self.wrong_end(&state, id, outcome, request, now) {
            state.broken(format!("#{id} ({}) {what}", outcome.as_str()));
        }
        self.observe(&mut state, now);
    }

    fn observe(&self, state: &mut State, now: Instant) {
        let (backend, route) = (self.backend(), self.route());
        state.observe(&backend, &self.rules, now);
        for (which, gate) in [&route.gate, &backend.gate].into_iter().enumerate() {
            if let Some(gate) = gate {
                state.observe_gate(which, gate, now);
            }
        }
    }

    /// What is wrong with how a request ended.
    fn wrong_end(
        &self,
        state: &State,
        id: usize,
        outcome: Outcome,
        request: &Request,
        now: Instant,
    ) -> Vec<String> {
        use Outcome::{ClientGone, Ok, TotalTimeout};
        let (seen, trail) = (&state.requests[id], &request.trail);
        let (wish, after) = (&seen.wish, now.saturating_duration_since(seen.arrived));
        let mut wrong = Vec::new();
        let mut check = |holds: bool, what: &str| {
            if !holds {
                wrong.push(what.to_owned());
            }
        };
        let most = wish.budget.map_or(self.rules.total, |budget| budget.min(self.rules.total));
        check(after <= most + GRAIN, "ends after its deadline");
        check(wish.leaves.is_none_or(|at| after <= at + GRAIN), "goes on without its client");
        let left = wish.leaves.is_some_and(|at| after + GRAIN >= at);
        check(outcome != ClientGone || left, "is said to be without its client");
        check(outcome != TotalTimeout || after + GRAIN >= most, "is said to be late");
        check(seen.heads <= 1, "has two answers");
        check(!seen.whole || seen.heads == 1, "has an end without a beginning");
        check(trail.attempts <= self.rules.attempts.max(1), "has too many attempts");
        check(may_happen(outcome), "can not be");
        if outcome == Ok {
            let pieces = seen.heard.len() == wish.pieces as usize;
            check(seen.whole && pieces && seen.status == 200, "is not what was asked for");
            let one = seen.heard.iter().all(|attempt| *attempt == seen.heard[0]);
            check(one, "is an answer of two engines");
            check(state.attempts[seen.heard[0]].request == id, "is another one's answer");
        } else {
            check(seen.status != 200 || !seen.whole, "was served all the same");
        }
        if is_turned_away(outcome) {
            let reached = state.attempts.iter().any(|attempt| attempt.request == id);
            check(!reached && trail.attempts == 0, "was turned away and tried");
        }
        if let Some(limit) = trail.first_byte_limit {
            let (floor, ceiling) = self.rules.first_byte;
            let scale = if self.rules.levels { 2 } else { 1 };
            check((floor..=ceiling * scale).contains(&limit), "had a deadline out of bounds");
        }
        wrong
    }

    /// What holds at any time that is nobody's turn, looked at twice since the turns of one moment come in some order.
    pub(crate) async fn look(&self) {
        let first = self.suspicions();
        if first.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let second = self.suspicions();
        let mut state = self.state.lock();
        for (what, detail) in second {
            if first.iter().any(|(known, _)| *known == what) {
                state.broken(format!("{what}: {detail}"));
            }
        }
    }

    fn suspicions(&self) -> Vec<(String, String)> {
        let (now, backend, route) = (clock::now(), self.backend(), self.route());
        let mut state = self.state.lock();
        self.observe(&mut state, now);
        let mut found = Vec::new();
        let gates = [
            ("route", &route.gate, self.rules.route_limit, self.rules.route_queue),
            ("backend", &backend.gate, self.rules.backend_limit, self.rules.backend_queue),
        ];
        for (name, gate, limit, queue) in gates {
            let Some(gate) = gate else { continue };
            let stands = gate.state(now);
            let mut suspect = |what: &str| {
                found.push((format!("the gate of the {name} {what}"), shown(&stands)));
            };
            let waiting: usize = stands.waiting.iter().sum();
            if limit.is_some_and(|limit| stands.in_flight > limit) {
                suspect("is above its limit");
            }
            // Whoever had its turn and found no place comes back to its seat, which others may have taken meanwhile: as
            // many more as there are places.
            let most = self.rules.max_connections.filter(|_| name == "backend");
            let back = most.map_or(0, |most| most * backend.members().list.len());
            if waiting > queue.map_or(0, |size| size + back) {
                suspect("has too long a queue");
            }
            if stands.in_flight as usize + waiting > state.alive {
                suspect("counts requests that have ended");
            }
            let free = stands.limit.is_none_or(|limit| stands.in_flight < limit);
            let place = |most| {
                let members = backend.members();
                members.list.iter().any(|m| (m.endpoint.in_flight() as usize) < most)
            };
            if waiting > 0 && free && most.is_none_or(place) {
                suspect("lets somebody wait while there is a place");
            }
        }
        for (index, member) in backend.members().list.iter().enumerate() {
            let open = state.attempts.iter().filter(|a| a.open && a.engine == index).count();
            let counted = member.endpoint.in_flight() as usize;
            if open > counted {
                let detail = format!("{open} are open, {counted} are counted");
                found.push((format!("engine {index} works for nobody"), detail));
            }
            if self.rules.max_connections.is_some_and(|most| counted > most) {
                found.push((format!("endpoint {index} has too many"), counted.to_string()));
            }
        }
        found
    }

    /// Nothing may be left when all have ended.
    pub(crate) fn check_end(&self) {
        let (now, backend, route) = (clock::now(), self.backend(), self.route());
        let mut state = self.state.lock();
        for id in 0..state.requests.len() {
            if state.requests[id].ended.is_none() {
                state.broken(format!("#{id} never ended"));
            }
        }
        for gate in [&route.gate, &backend.gate].into_iter().flatten() {
            let stands = gate.state(now);
            if stands.in_flight > 0 || stands.waiting.iter().any(|count| *count > 0) {
                state.broken(format!("a gate is left with {}", shown(&stands)));
            }
        }
        for member in &backend.members().list {
            let (count, load) = (member.endpoint.in_flight(), member.endpoint.load());
            if count > 0 || load > 0 {
                state.broken(format!("{} is left with {count}, {load}", member.endpoint.name));
            }
        }
        let open = state.attempts.iter().filter(|attempt| attempt.open).count();
        if open > 0 || route.metrics.in_flight.get() != 0 {
            state.broken(format!("{open} attempts are left"));
        }
        self.check_blame(&mut state);
        self.check_recovery(&mut state, now);
        self.check_budgets(&mut state, now);
        self.check_rate(&mut state);
    }

    /// Where no engine has failed none is blamed, whatever clients did and however many were turned away or lost a race.
    fn check_blame(&self, state: &mut State) {
        let excused = self.rules.compares_latency || state.requests.iter().any(|seen| seen.failed);
        if self.rules.calm && !excused && state.ejections + state.openings > 0 {
            let (ejections, openings) = (state.ejections, state.openings);
            state.broken(format!("{ejections} ejections and {openings} openings for nothing"));
        }
    }

    /// After the faults everything is as before.
    fn check_recovery(&self, state: &mut State, now: Instant) {
        let long_since = |since: &Option<Instant>| since.is_some_and(|at| now > at + LONG);
        if state.ejected_since.iter().any(long_since) {
            state.broken("an endpoint is never let in again".to_owned());
        }
        if long_since(&state.not_closed_since) {
            state.broken("the breaker is never closed again".to_owned());
        }
        let Some(well_from) = self.rules.well_from else { return };
        for id in 0..state.requests.len() {
            let seen = &state.requests[id];
            let patient = seen.wish.budget.is_none() && seen.wish.leaves.is_none();
            let Some((_, outcome)) = seen.ended.filter(|_| seen.wish.at >= well_from && patient)
            else {
                continue;
            };
            if !self.may_happen_at_last(outcome) {
                let outcome = outcome.as_str();
                state.broken(format!("#{id} ends as {outcome} after all is well"));
            }
        }
    }

    /// Whether a request may end so when all is well and the load is low.
    fn may_happen_at_last(&self, outcome: Outcome) -> bool {
        use Outcome::{
            CircuitOpen, FirstByteTimeout, GapTimeout, Ok, Overloaded, QueueFull, QueueTimeout,
            RateLimited, Shed,
        };
        let rules = &self.rules;
        match outcome {
            Ok => true,
            RateLimited => rules.rate.is_some(),
            Shed => rules.levels || rules.has_limits(),
            Overloaded | QueueFull | QueueTimeout => rules.has_limits(),
            // False alarms are a price of learning.
            FirstByteTimeout | GapTimeout => rules.learns(),
            CircuitOpen => rules.learns() && rules.breaker,
            _ => false,
        }
    }

    /// Attempts are paid for.
    fn check_budgets(&self, state: &mut State, now: Instant) {
        let came = |seen: &&Seen| {
            seen.ended.is_some_and(|(_, outcome)| {
                !is_turned_away(outcome) || outcome == Outcome::Overloaded
            })
        };
        let requests = state.requests.iter().filter(came).count() as u64;
        let more = |seen: &Seen| u64::from(seen.attempts.saturating_sub(1));
        let more: u64 = state.requests.iter().map(more).sum();
        let windows = now.saturating_duration_since(self.start).as_secs() / 10 + 1;
        let most = requests * self.rules.percent / 100 + self.rules.reserve * 10 * windows;
        if more > most {
            state.broken(format!("{more} more attempts for {requests} requests, of {most}"));
        }
        let hedges: u32 = state.requests.iter().map(|seen| seen.hedges).sum();
        let most = self.rules.hedge_share.unwrap_or(0.0) * requests as f64 + 1e-6;
        if f64::from(hedges) > most {
            state.broken(format!("{hedges} hedges, of {most}"));
        }
    }

    /// In no span of time more than the burst and what the rate gives.
    fn check_rate(&self, state: &mut State) {
        let Some((rate, burst)) = self.rules.rate else { return };
        let passed = |seen: &&Seen| {
            seen.ended.is_some_and(|(_, outcome)| {
                !is_turned_away(outcome) && (outcome != Outcome::TotalTimeout || seen.attempts > 0)
            })
        };
        let at = |seen: &Seen| seen.arrived.saturating_duration_since(self.start).as_nanos();
        let mut times: Vec<u128> = state.requests.iter().filter(passed).map(at).collect();
        times.sort_unstable();
        for (first, from) in times.iter().enumerate() {
            for (last, until) in times.iter().enumerate().skip(first) {
                let count = (last - first + 1) as u128;
                let most = u128::from(burst) * 1_000_000_000 + (until - from) * u128::from(rate);
                if count * 1_000_000_000 > most {
                    return state.broken(format!("{count} within {} ns", until - from));
                }
            }
        }
    }

    pub(crate) fn fail_if_broken(&self, seed: u64, yaml: &str) {
        let state = self.state.lock();
        let Some(first) = state.broken.first() else { return };
        let shown = self.shown(&state);
        panic!(
            "seed {seed}: {first}\n{yaml}\n{shown}again: OUTRIGGER_SEED={seed} cargo test --profile fast \
             --workspace --lib -- simulation::scenarios --nocapture"
        );
    }

    fn shown(&self, state: &State) -> String {
        let line = |(at, what): &(Instant, String)| {
            let seconds = at.saturating_duration_since(self.start).as_secs_f64();
            format!("{seconds:9.3} {what}\n")
        };
        state.trace.iter().map(line).collect()
    }

    /// What happened last.
    pub(crate) fn trace(&self) -> String {
        self.shown(&self.state.lock())
    }

    /// For the totals.
    pub(crate) fn with_requests<R>(&self, look: impl FnOnce(&[Seen]) -> R) -> R {
        look(&self.state.lock().requests)
    }

    pub(crate) fn counts(&self) -> (usize, usize, usize, usize) {
        let state = self.state.lock();
        (state.attempts.len(), state.ejections, state.openings, state.queued)
    }
}

impl State {
    fn note(&mut self, what: String) {
        // What led to the first violation is of interest, not what came later.
        if self.broken.is_empty() {
            if self.trace.len() >= SHOWN && !self.shows_all {
                self.trace.pop_front();
            }
            self.trace.push_back((clock::now(), what));
        }
    }

    fn broken(&mut self, what: String) {
        self.note(format!("BROKEN: {what}"));
        self.broken.push(what);
    }

    /// Nobody enters above the limit, which may sink below what is in flight.
    fn observe_gate(&mut self, which: usize, gate: &Gate, now: Instant) {
        let stands = gate.state(now);
        let limit = stands.limit.unwrap_or(u64::MAX);
        if let Some((in_flight, before)) = self.entered[which].replace((stands.in_flight, limit))
            && stands.in_flight > in_flight
            && stands.in_flight > limit.max(before)
        {
            self.broken(format!("somebody entered above the limit: {}", shown(&stands)));
        }
    }

    /// Looks at who is ejected, and at the breaker.
    fn observe(&mut self, backend: &Backend, rules: &Rules, now: Instant) {
        let members = backend.members();
        let mut out = 0;
        for (index, member) in members.list.iter().enumerate() {
            if member.is_ejected() {
                out += 1;
                self.sound_since[index] = None;
                if self.ejected_since[index].is_none() {
                    self.ejected_since[index] = Some(now);
                    self.ejections += 1;
                    self.note(format!("engine {index} has been ejected"));
                }
            } else {
                self.ejected_since[index] = None;
                self.sound_since[index].get_or_insert(now);
            }
        }
        let share = rules.max_share.unwrap_or(0.0) * members.list.len() as f64 + 1e-6;
        if out > (share as usize).max(1) || (out > 0 && out == members.list.len()) {
            self.broken(format!("{out} of {} are ejected", members.list.len()));
        }
        let circuit = backend.circuit(now);
        self.not_closed_since = match circuit {
            None | Some(Circuit::Closed) => None,
            Some(_) => self.not_closed_since.or(Some(now)),
        };
        let open = matches!(circuit, Some(Circuit::Open(_)));
        if open && self.open_since.is_none() {
            self.openings += 1;
            self.note("the breaker has opened".to_owned());
        }
        self.open_since = if open { self.open_since.or(Some(now)) } else { None };
    }
}

fn shown(stands: &GateState) -> String {
    let GateState { limit, in_flight, waiting, .. } = stands;
    format!("limit {limit:?}, in flight {in_flight}, waiting {waiting:?}")
}

/// Outcomes of requests that nobody has worked on.
pub(crate) fn is_turned_away(outcome: Outcome) -> bool {
    use Outcome::{QueueFull, QueueTimeout, RateLimited, Shed};
    matches!(outcome, QueueFull | QueueTimeout | RateLimited | Shed)
}

/// Outcomes by the fault of an engine.
fn is_of_engine(outcome: Outcome) -> bool {
    use Outcome as O;
    matches!(
        outcome,
        O::ServerError
            | O::ConnectFailed
            | O::ConnectTimeout
            | O::FirstByteTimeout
            | O::GapTimeout
            | O::Stalled
            | O::UpstreamReset
            | O::UpstreamInvalid
    )
}

/// Whether a well-formed request to a route that there is may end so.
fn may_happen(outcome: Outcome) -> bool {
    use Outcome as O;
    matches!(
        outcome,
        O::Ok
            | O::ServerError
            | O::ClientGone
            | O::NoEndpoint
            | O::CircuitOpen
            | O::Overloaded
            | O::QueueFull
            | O::QueueTimeout
            | O::Shed
            | O::RateLimited
            | O::ConnectFailed
            | O::ConnectTimeout
            | O::FirstByteTimeout
            | O::GapTimeout
            | O::TotalTimeout
            | O::Stalled
            | O::UpstreamReset
            | O::UpstreamInvalid
    )
}
