//! The policies on endpoints of which one is slow, with prompts and answers of long-tailed lengths.
//!
//! A plain queue with a few places. What a real engine does with a batch and a cache is simulated
//! outside this crate.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::fleet::Fleet;
use super::{Cost, Kind, Policy, Standing};

/// Simulated time, in microseconds.
type Time = u64;

const SECOND: f64 = 1e6;
const REQUESTS: usize = 20_000;
/// How many requests an endpoint runs at once; the others wait there, in order.
const SLOTS: usize = 8;

struct Request {
    arrival: Time,
    /// On a fast endpoint.
    prefill: f64,
    decode: f64,
    cost: Cost,
}

#[derive(Default)]
struct Server {
    slowness: f64,
    running: usize,
    waiting: VecDeque<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    FirstByte { server: usize },
    End { server: usize },
}

fn exponential(rng: &mut SmallRng, mean: f64) -> f64 {
    -mean * (1.0 - rng.random::<f64>()).ln()
}

/// Median `median`, and one in a hundred about ten times as long: exp(N(0, 1)) by Box and
/// Muller.
fn long_tailed(rng: &mut SmallRng, median: f64) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    median * (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()).exp()
}

/// Poisson arrivals of prompts and answers with long tails.
fn requests(rng: &mut SmallRng, per_second: f64) -> Vec<Request> {
    let mut now = 0.0;
    let mut request = || {
        now += exponential(rng, SECOND / per_second);
        let bytes = long_tailed(rng, 2_000.0);
        let prefill = bytes * 50.0;
        let decode = long_tailed(rng, 0.4 * SECOND);
        Request { arrival: now as Time, prefill, decode, cost: Cost::of_prompt(bytes as u64) }
    };
    (0..REQUESTS).map(|_| request()).collect()
}

struct Simulation<'a> {
    requests: &'a [Request],
    servers: Vec<Server>,
    fleet: Fleet,
    begin: Instant,
    /// What each request found at its endpoint.
    found: Vec<Option<Standing>>,
    /// What happens next: when, to which request, what.
    events: BinaryHeap<Reverse<(Time, usize, Event)>>,
    latencies: Vec<Time>,
}

impl<'a> Simulation<'a> {
    /// Three endpoints, the last one three times slower.
    fn new(requests: &'a [Request]) -> Self {
        let server = |slowness| Server { slowness, ..Server::default() };
        let arrive =
            |(id, request): (usize, &Request)| Reverse((request.arrival, id, Event::Arrive));
        let fleet = Fleet::idle(3);
        Self {
            requests,
            servers: [1.0, 1.0, 3.0].map(server).into(),
            begin: fleet.now,
            fleet,
            found: vec![None; requests.len()],
            events: requests.iter().enumerate().map(arrive).collect(),
            latencies: Vec::new(),
        }
    }

    fn run(mut self, policy: &Policy, rng: &mut SmallRng) -> Self {
        while let Some(Reverse((now, id, event))) = self.events.pop() {
            match event {
                Event::Arrive => self.arrive(now, id, policy, rng),
                Event::FirstByte { server } => self.first_byte(now, id, server),
                Event::End { server } => self.end(now, id, server),
            }
        }
        self
    }

    fn arrive(&mut self, now: Time, id: usize, policy: &Policy, rng: &mut SmallRng) {
        self.fleet.now = self.begin + Duration::from_micros(now);
        self.fleet.ask.cost = self.requests[id].cost;
        let server = policy.pick(&self.fleet, rng).unwrap();
        self.found[id] = Some(self.fleet.facts[server].enter(self.requests[id].cost));
        self.servers[server].waiting.push_back(id);
        self.start(now, server);
    }

    fn start(&mut self, now: Time, server: usize) {
        let at = &mut self.servers[server];
        if at.running == SLOTS {
            return;
        }
        if let Some(id) = at.waiting.pop_front() {
            at.running += 1;
            let first = now + (self.requests[id].prefill * at.slowness) as Time;
            self.events.push(Reverse((first, id, Event::FirstByte { server })));
        }
    }

    fn first_byte(&mut self, now: Time, id: usize, server: usize) {
        let (request, facts) = (&self.requests[id], &self.fleet.facts[server]);
        let after = Duration::from_micros(now - request.arrival);
        facts.first_byte(self.found[id].unwrap(), after, self.begin + Duration::from_micros(now));
        facts.give_back(request.cost.prefill);
        let end = now + (request.decode * self.servers[server].slowness) as Time;
        self.events.push(Reverse((end, id, Event::End { server })));
    }

    fn end(&mut self, now: Time, id: usize, server: usize) {
        let at = &mut self.servers[server];
        self.fleet.facts[server].leave(self.requests[id].cost.decode);
        at.running -= 1;
        self.latencies.push(now - self.requests[id].arrival);
        self.start(now, server);
    }

    fn p99(mut self) -> Time {
        self.latencies.sort_unstable();
        self.latencies[self.latencies.len() * 99 / 100]
    }
}

fn p99(kind: Kind, requests: &[Request], rng: &mut SmallRng) -> Time {
    let policy = Fleet::idle(3).policy(kind);
    let done = Simulation::new(requests).run(&policy, rng);
    assert_eq!(done.latencies.len(), REQUESTS);
    assert!(done.fleet.facts.iter().all(|facts| facts.load() == 0 && facts.in_flight() == 0));
    done.p99()
}

/// In turn, the slow endpoint is 93 % busy and queues for long; the three together are 40 %
/// busy. Round robin is stable here: with a little more traffic its queue would grow without
/// end.
#[test]
fn load_beats_turns_where_one_endpoint_is_slow() {
    for seed in 0..10 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let requests = requests(&mut rng, 9.0);
        let mut p99 = |kind| p99(kind, &requests, &mut rng);
        let (load, connection) = (p99(Kind::LeastLoad), p99(Kind::LeastConnection));
        let turns = p99(Kind::RoundRobin);
        println!("seed {seed}: p99 {load} us, counted work {connection} us, in turn {turns} us");
        assert!(connection * 10 < turns * 8, "seed {seed}: counting must beat turns");
        assert!(load * 10 < connection * 9, "seed {seed}: knowing who is slow must pay");
    }
}
