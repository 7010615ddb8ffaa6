//! Which endpoint of a backend serves an attempt.
//!
//! A policy looks at the endpoints through [`Candidates`], one request's view of them, and returns
//! an index or nothing. It keeps no loads itself: what an endpoint carries is counted beside the
//! endpoint, from the choice until the last byte or the abort, and given back by a guard. A
//! decision takes no lock and allocates nothing.
//!
//! - [`Policy::LeastConnection`] sends the request where there is the least work in flight. It is
//!   the default: answers of a model server differ a thousandfold in length, and whoever deals
//!   requests out in turn piles them up on the endpoint that is slow.
//! - [`Policy::RoundRobin`] deals them out in turn by weight. For endpoints whose load is not
//!   visible from here, when many proxies share them, and for comparison.
//!
//! Left out: readiness, ejection, connection limits and endpoints already tried by this request
//! (all of them are [`Candidates::usable`]), and affinity of prompts to caches.

use rand::Rng;

use crate::split::{Schedule, ScheduleError};

mod least_connection;
mod round_robin;

/// One request's view of the endpoints of a backend, numbered from zero.
///
/// Answers may change between two calls, as other requests come and go; a decision is then as good
/// as the moment at which it looked.
pub trait Candidates {
    /// How many endpoints there are.
    fn len(&self) -> usize;

    /// Whether endpoint `i` may be sent this request: ready, not ejected, below its limit, not
    /// tried before.
    fn usable(&self, i: usize) -> bool;

    /// The work in flight at endpoint `i`: the sum of the [`Cost`]s that it has not given back yet.
    fn load(&self, i: usize) -> u64;

    /// The capacity of endpoint `i` relative to the others. An endpoint of weight zero is never
    /// picked.
    fn weight(&self, i: usize) -> u32;

    /// What this request will add to the load of its endpoint.
    fn cost(&self) -> u64 {
        Cost::REQUEST
    }

    /// Whether there is no endpoint at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether endpoint `i` can be picked.
fn pickable(candidates: &impl Candidates, i: usize) -> bool {
    candidates.weight(i) > 0 && candidates.usable(i)
}

/// How a backend balances.
#[derive(Debug)]
pub enum Policy {
    /// The endpoint with the least work in flight for its weight.
    LeastConnection,
    /// The endpoints in turn, by weight. The schedule has one arm for each endpoint, in the same
    /// order; its weights count here, not those of the candidates.
    RoundRobin(Schedule),
}

impl Policy {
    /// Round robin over endpoints of these weights, coarser than asked when they do not fit
    /// ([`Schedule::fitted`]).
    ///
    /// # Errors
    ///
    /// [`ScheduleError::AllZero`] when there is no endpoint with a weight,
    /// [`ScheduleError::TooManyArms`].
    pub fn round_robin(weights: &[u32]) -> Result<Self, ScheduleError> {
        Schedule::fitted(weights).map(Self::RoundRobin)
    }

    /// An endpoint for this request; `None` only when none can be picked.
    pub fn pick(&self, candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
        match self {
            Self::LeastConnection => least_connection::pick(candidates, rng),
            Self::RoundRobin(schedule) => round_robin::pick(candidates, schedule),
        }
    }
}

/// What a request adds to the load of its endpoint, in thousandths of a running request.
///
/// A request costs twice over: its prompt is computed before the first byte, then its answer is
/// generated token by token beside the others. The first share is known from the size of the prompt
/// and given back at the first byte; the second is one request, whatever its length, and is given
/// back at the end.
///
/// A thousand prompt tokens weigh as much as one running request. That is a judgement, not a
/// measurement: a long prompt must count, and a chat turn of a few hundred tokens must stay mostly
/// a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Given back at the first byte of the answer. `0..=MAX_PREFILL`.
    pub prefill: u64,
    /// Given back when the request ends.
    pub decode: u64,
}

impl Cost {
    /// One running request.
    pub const REQUEST: u64 = 1_000;

    /// The most that a prompt weighs: a context of 128,000 tokens, full. Bytes are a poor estimate
    /// of tokens where a body carries an image, and one upload must not make an endpoint look busy
    /// with thousands of requests.
    pub const MAX_PREFILL: u64 = 128_000;

    /// Bytes of prompt text in a token, roughly, in English and in code.
    const BYTES_PER_TOKEN: u64 = 4;

    /// The cost of a request whose body has this many bytes. Zero is a request without a prompt.
    pub const fn of_prompt(bytes: u64) -> Self {
        let tokens = bytes / Self::BYTES_PER_TOKEN;
        let prefill = if tokens < Self::MAX_PREFILL { tokens } else { Self::MAX_PREFILL };
        Self { prefill, decode: Self::REQUEST }
    }

    /// Both shares: the load from the choice of the endpoint until the first byte.
    pub const fn total(self) -> u64 {
        self.prefill + self.decode
    }
}

#[cfg(test)]
mod tests {
    //! A simulation: the policies against the endpoints they are meant for. The picks themselves
    //! are tested beside each policy.

    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, VecDeque};

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn a_thousand_prompt_tokens_weigh_one_request() {
        assert_eq!(Cost::of_prompt(4_000), Cost { prefill: 1_000, decode: 1_000 });
        assert_eq!(Cost::of_prompt(4_000).total(), 2 * Cost::REQUEST);
        assert_eq!(Cost::of_prompt(0).total(), Cost::REQUEST);
        assert_eq!(Cost::of_prompt(u64::MAX).prefill, Cost::MAX_PREFILL);
    }

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
        load: u64,
    }

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Event {
        Arrive,
        FirstByte { server: usize },
        End { server: usize },
    }

    struct View<'a> {
        servers: &'a [Server],
        cost: Cost,
    }

    impl Candidates for View<'_> {
        fn len(&self) -> usize {
            self.servers.len()
        }

        fn usable(&self, _: usize) -> bool {
            true
        }

        fn load(&self, i: usize) -> u64 {
            self.servers[i].load
        }

        fn weight(&self, _: usize) -> u32 {
            1
        }

        fn cost(&self) -> u64 {
            self.cost.total()
        }
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
            Self {
                requests,
                servers: [1.0, 1.0, 3.0].map(server).into(),
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
            let cost = self.requests[id].cost;
            let server = policy.pick(&View { servers: &self.servers, cost }, rng).unwrap();
            self.servers[server].load += cost.total();
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
            let at = &mut self.servers[server];
            at.load -= self.requests[id].cost.prefill;
            let end = now + (self.requests[id].decode * at.slowness) as Time;
            self.events.push(Reverse((end, id, Event::End { server })));
        }

        fn end(&mut self, now: Time, id: usize, server: usize) {
            let at = &mut self.servers[server];
            at.load -= self.requests[id].cost.decode;
            at.running -= 1;
            self.latencies.push(now - self.requests[id].arrival);
            self.start(now, server);
        }

        fn p99(mut self) -> Time {
            self.latencies.sort_unstable();
            self.latencies[self.latencies.len() * 99 / 100]
        }
    }

    /// In turn, the slow endpoint is 93 % busy and queues for long; the three together are 40 %
    /// busy. Round robin is stable here: with a little more traffic its queue would grow without
    /// end.
    #[test]
    fn least_connection_beats_round_robin_where_one_endpoint_is_slow() {
        for seed in 0..10 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let requests = requests(&mut rng, 9.0);
            let mut p99 = |policy| {
                let done = Simulation::new(&requests).run(&policy, &mut rng);
                assert_eq!(done.latencies.len(), REQUESTS, "seed {seed}");
                assert!(done.servers.iter().all(|server| server.load == 0), "seed {seed}");
                done.p99()
            };
            let least = p99(Policy::LeastConnection);
            let turns = p99(Policy::round_robin(&[1, 1, 1]).unwrap());
            println!("seed {seed}: p99 {least} us least connection, {turns} us round robin");
            assert!(least * 10 < turns * 8, "seed {seed}: {least} us against {turns} us");
        }
    }
}
