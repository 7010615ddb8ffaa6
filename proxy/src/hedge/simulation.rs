//! Hedging against seeded random fleets: what it costs and what it buys.
//!
//! An endpoint answers after a random time that grows with what it has in flight; one of them, or all, may be slow.
//! Requests go where the least is in flight. The decisions are the real ones: [`decide`], [`Allowance`] and the retry
//! [`Budget`]; the percentile is taken from the last first bytes, where an attempt that lost its race counts with the
//! time it had taken by then.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::retry::Budget;

const REQUESTS: usize = 400;
/// Samples that the percentile is taken from.
const REMEMBERED: usize = 200;
const SHARE: f64 = 0.05;
/// Microseconds.
type Time = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrives(usize),
    Hedges(usize),
    /// The attempt of this number has its first byte.
    Begins(usize),
}

struct Attempt {
    request: usize,
    endpoint: usize,
    sent: Time,
    open: bool,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    endpoints: usize,
    /// How many of them are slow all the time.
    slow: usize,
    /// How likely any attempt is slow.
    hiccups: f64,
    /// `None`: no hedges. `Some(None)`: after the learned 95th percentile.
    hedge: Option<Option<Time>>,
}

struct World {
    plan: Plan,
    rng: SmallRng,
    start: Instant,
    events: BinaryHeap<Reverse<(Time, What)>>,
    in_flight: Vec<usize>,
    attempts: Vec<Attempt>,
    /// For each request: its arrival, its attempts, its first byte.
    requests: Vec<(Time, Vec<usize>, Option<Time>)>,
    learned: VecDeque<Time>,
    percentile: Option<Time>,
    allowance: Allowance,
    budget: Budget,
    arrived: usize,
    open: usize,
    hedges: usize,
}

impl World {
    fn new(plan: Plan, seed: u64) -> Self {
        let start = Instant::now();
        let mut world = Self {
            plan,
            rng: SmallRng::seed_from_u64(seed),
            start,
            events: BinaryHeap::new(),
            in_flight: vec![0; plan.endpoints],
            attempts: Vec::new(),
            requests: Vec::new(),
            learned: VecDeque::new(),
            percentile: None,
            allowance: Allowance::new(SHARE),
            budget: Budget::new(20, 10, start),
            arrived: 0,
            open: 0,
            hedges: 0,
        };
        let mut at = 0;
        for request in 0..REQUESTS {
            // Some two in flight at each endpoint that is not slow.
            at += (world.rng.random_range(0.0..2.0) * 30_000.0 / plan.endpoints as f64) as Time;
            world.events.push(Reverse((at, What::Arrives(request))));
            world.requests.push((at, Vec::new(), None));
        }
        world
    }

    fn run(mut self, seed: u64) -> Self {
        while let Some(Reverse((now, what))) = self.events.pop() {
            match what {
                What::Arrives(request) => self.arrives(request, now),
                What::Hedges(request) => self.hedges(request, now),
                What::Begins(attempt) => self.begins(attempt, now),
            }
            self.check(seed);
        }
        assert!(
            self.in_flight.iter().all(|count| *count == 0),
            "seed {seed}: {:?}",
            self.in_flight
        );
        assert!(self.requests.iter().all(|request| request.2.is_some()), "seed {seed}");
        self
    }

    /// What holds at every moment.
    fn check(&self, seed: u64) {
        let allowed = self.arrived as f64 * SHARE + 1e-6;
        assert!(self.hedges as f64 <= allowed, "seed {seed}: {} hedges", self.hedges);
        assert_eq!(
            self.open,
            self.in_flight.iter().sum::<usize>(),
            "seed {seed}: every place is held by one"
        );
    }

    fn arrives(&mut self, request: usize, now: Time) {
        let instant = self.start + Duration::from_micros(now);
        self.arrived += 1;
        self.budget.deposit(instant);
        self.allowance.deposit();
        self.send(request, now);
        let after = match self.plan.hedge {
            Some(Some(fixed)) => Some(fixed),
            Some(None) => self.percentile,
            None => None,
        };
        if let Some(after) = after {
            self.events.push(Reverse((now + after, What::Hedges(request))));
        }
    }

    fn hedges(&mut self, request: usize, now: Time) {
        let (_, attempts, first_byte) = &self.requests[request];
        if first_byte.is_some() {
            return;
        }
        let waiting = Waiting {
            hedges: 0,
            attempts: attempts.len() as u32,
            replayable: true,
            endpoint_left: attempts.len() < self.plan.endpoints,
        };
        let instant = self.start + Duration::from_micros(now);
        let budget = &self.budget;
        let withdraw = || budget.try_withdraw(instant);
        if decide(Policy { max: 1, attempts: 3 }, &waiting, &self.allowance, withdraw).is_ok() {
            self.hedges += 1;
            self.send(request, now);
        }
    }

    /// Sends an attempt to the endpoint that has the least in flight and was not tried.
    fn send(&mut self, request: usize, now: Time) {
        let tried: Vec<usize> = self.requests[request]
            .1
            .iter()
            .map(|attempt| self.attempts[*attempt].endpoint)
            .collect();
        let ties: Vec<u32> = (0..self.plan.endpoints).map(|_| self.rng.random()).collect();
        let untried = (0..self.plan.endpoints).filter(|endpoint| !tried.contains(endpoint));
        let Some(endpoint) = untried.min_by_key(|at| (self.in_flight[*at], ties[*at])) else {
            return;
        };
        self.in_flight[endpoint] += 1;
        self.open += 1;
        let attempt = self.attempts.len();
        self.attempts.push(Attempt { request, endpoint, sent: now, open: true });
        self.requests[request].1.push(attempt);
        let spread: f64 = (0..4).map(|_| self.rng.random_range(0.6..1.4)).product();
        let load = 1.0 + 0.1 * self.in_flight[endpoint] as f64;
        let slow = endpoint < self.plan.slow || self.rng.random_bool(self.plan.hiccups);
        let slowness = if slow { 20.0 } else { 1.0 };
        let takes = (50_000.0 * spread * load * slowness) as Time;
        self.events.push(Reverse((now + takes, What::Begins(attempt))));
    }

    fn begins(&mut self, attempt: usize, now: Time) {
        if !self.attempts[attempt].open {
            return;
        }
        let request = self.attempts[attempt].request;
        self.requests[request].2 = Some(now);
        for index in self.requests[request].1.clone() {
            let attempt = &mut self.attempts[index];
            attempt.open = false;
            self.open -= 1;
            self.in_flight[attempt.endpoint] -= 1;
            let took = now - attempt.sent;
            self.learned.push_back(took);
        }
        while self.learned.len() > REMEMBERED {
            self.learned.pop_front();
        }
        if self.learned.len() >= 20 && request.is_multiple_of(16) {
            self.percentile = Some(percentile(self.learned.iter().copied().collect(), 0.95));
        }
    }

    fn first_bytes(&self) -> impl Iterator<Item = Time> {
        self.requests.iter().map(|(at, _, first_byte)| first_byte.unwrap_or(Time::MAX) - at)
    }
}

fn percentile(mut times: Vec<Time>, share: f64) -> Time {
    let rank = ((times.len() as f64 * share) as usize).min(times.len() - 1);
    *times.select_nth_unstable(rank).1
}

/// The 99th percentile of first bytes over all seeds in milliseconds, and hedges per request.
fn measured(plan: Plan, seeds: std::ops::Range<u64>) -> (u64, f64) {
    let (mut all, mut hedges) = (Vec::new(), 0);
    for seed in seeds {
        let world = World::new(plan, seed).run(seed);
        hedges += world.hedges;
        all.extend(world.first_bytes());
    }
    let share = hedges as f64 / all.len() as f64;
    (percentile(all, 0.99) / 1_000, share)
}

/// What hedging makes of this fleet: the 99th percentile without it and with it, and what it costs.
fn compared(what: &str, plan: Plan) -> (u64, u64, f64) {
    let (plain, _) = measured(plan, 0..60);
    let (hedged, share) = measured(Plan { hedge: Some(None), ..plan }, 0..60);
    println!("{what}: p99 {plain} ms, hedged {hedged} ms with {:.1} %", share * 1e2);
    (plain, hedged, share)
}

#[test]
fn attempts_that_are_slow_now_and_then_are_hidden() {
    let plan = Plan { endpoints: 4, slow: 0, hiccups: 0.02, hedge: None };
    let (plain, hedged, share) = compared("each fiftieth slow", plan);
    assert!(hedged * 2 < plain && share <= SHARE, "{plain} ms, hedged {hedged} ms");
}

/// Less than one might hope: giving its requests up makes room at the slow one, and who has room is sent more.
#[test]
fn one_slow_endpoint_of_several_is_felt_less() {
    for endpoints in [3, 4] {
        let plan = Plan { endpoints, slow: 1, hiccups: 0.0, hedge: None };
        let (plain, hedged, share) = compared(&format!("one slow of {endpoints}"), plan);
        assert!(hedged * 10 < plain * 9 && share <= SHARE, "{plain} ms, hedged {hedged} ms");
    }
}

#[test]
fn where_all_are_slow_hedging_adds_its_share_and_no_more() {
    for hedge in [Some(None), Some(Some(100_000))] {
        let plan = Plan { endpoints: 4, slow: 4, hiccups: 0.0, hedge: None };
        let (plain, _) = measured(plan, 0..60);
        let (hedged, share) = measured(Plan { hedge, ..plan }, 0..60);
        println!(
            "all slow, {hedge:?}: p99 {plain} ms, hedged {hedged} ms with {:.1} %",
            share * 1e2
        );
        assert!(share <= SHARE, "{share}");
        assert!(hedged as f64 <= plain as f64 * 1.1, "{plain} ms, hedged {hedged} ms");
    }
}

#[test]
fn where_all_are_well_hedging_does_no_harm() {
    let plan = Plan { endpoints: 4, slow: 0, hiccups: 0.0, hedge: None };
    let (plain, hedged, share) = compared("all well", plan);
    assert!(share <= SHARE && hedged <= plain, "{plain} ms, hedged {hedged} ms");
}

#[test]
fn the_bounds_hold_in_a_thousand_fleets() {
    for seed in 0..1_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let endpoints = rng.random_range(1..9);
        let slow = rng.random_range(0..=endpoints);
        let fixed = rng.random_range(1_000..500_000);
        let hedge = [None, Some(None), Some(Some(fixed))][rng.random_range(0..3)];
        let hiccups = rng.random_range(0.0..0.2);
        World::new(Plan { endpoints, slow, hiccups, hedge }, seed).run(seed);
    }
}
