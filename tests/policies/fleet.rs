//! One run of a fleet: simulated engines behind the real policies, in virtual time.
//!
//! Events are taken in order of their time: a request arrives and is placed by one of the balancers; a step of an engine
//! ends and its tokens go back; a balancer asks an engine how full it is, and hears of it a little later. What a
//! balancer knows (`Facts`, `Memory`) and how it decides (`Policy`) are those of the proxy; what is here is what stands
//! around them there: candidates, and the order in which work is counted in and out.
//!
//! Left out: the network, retries, ejection and limits. Every endpoint can always be used.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::balance::reported::{Report, Source};
use outrigger::balance::{
    Ask, Candidates, Cost, Facts, Kind, Memory, Peers, Policy, Prefix, Standing,
};
use outrigger_tests::sim::engine::{Engine, Event, Job, JobId, Parameters, What};
use outrigger_tests::sim::random::Random;

use crate::measure::{Done, Figures};
use crate::traffic::{Request, Traffic};
use crate::worlds::World;

/// How often a balancer asks an engine how full it is.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How old the answer is when it comes.
const REPORT_DELAY: Duration = Duration::from_millis(50);

/// The simulator's generator, as the proxy's code wants it.
struct Dice(Random);

impl rand::TryRng for Dice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.0.bits() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.bits())
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        for chunk in to.chunks_mut(8) {
            chunk.copy_from_slice(&self.0.bits().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// One proxy: what it knows of every endpoint, and its policy.
struct Balancer {
    kind: Kind,
    policy: Policy,
    memory: Arc<Memory>,
    facts: Vec<Facts>,
    /// On their way, with how much was in flight from here.
    reports: VecDeque<(Report, u32)>,
}

impl Balancer {
    fn new(kind: Kind, endpoints: usize, joined: usize, origin: Instant) -> Self {
        let memory = Arc::new(Memory::default());
        let peers = Arc::new(Peers::default());
        let facts = (0..endpoints).map(|i| Facts::new(id(i), origin).among(&peers)).collect();
        let policy = Policy::new(kind, &members(joined), &memory);
        Self { kind, policy, memory, facts, reports: VecDeque::new() }
    }

    /// More endpoints: a new snapshot, with what was known.
    fn grow(&mut self, joined: usize) {
        self.policy = Policy::new(self.kind, &members(joined), &self.memory);
    }
}

fn members(joined: usize) -> Vec<(u64, u32)> {
    (0..joined).map(|i| (id(i), 1)).collect()
}

/// What an address hashes to.
fn id(endpoint: usize) -> u64 {
    Random::new(0xf1ee_7000 + endpoint as u64).bits()
}

/// What a policy sees of the fleet for one request.
struct View<'a> {
    facts: &'a [Facts],
    weights: &'a [f64],
    ask: &'a Ask,
    now: Instant,
}

impl Candidates for View<'_> {
    fn len(&self) -> usize {
        self.weights.len()
    }

    fn facts(&self, i: usize) -> &Facts {
        &self.facts[i]
    }

    fn usable(&self, _: usize) -> bool {
        true
    }

    fn weight(&self, i: usize) -> f64 {
        self.weights[i]
    }

    fn ask(&self) -> &Ask {
        self.ask
    }

    fn now(&self) -> Instant {
        self.now
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// The request that was drawn last.
    Arrival,
    /// The step that this engine has in hand.
    Step(usize),
    /// An engine is asked.
    Ask { server: usize, balancer: usize },
    /// The answer.
    Hear { server: usize, balancer: usize },
    /// New endpoints.
    Join,
    /// The new endpoints have warmed up.
    Warm,
}

/// A request between its choice and its last token.
struct Flight {
    /// None when it came past all balancers.
    placed: Option<Placed>,
    arrived: Duration,
    first: Duration,
    answer: u64,
}

impl Flight {
    fn done(&self, at: Duration) -> Done {
        Done {
            arrived: self.arrived,
            first_byte: self.first - self.arrived,
            rest: at - self.first,
            answer: self.answer,
        }
    }
}

/// How a balancer counted a request in.
struct Placed {
    balancer: usize,
    cost: Cost,
    standing: Standing,
}

/// An engine, and what it works on.
struct Server {
    engine: Engine,
    flights: HashMap<JobId, Flight>,
    /// A step of its is among the events.
    stepping: bool,
    /// Time that tokens took while requests came, without what a step costs in any case, in seconds.
    busy: f64,
}

/// The whole run.
struct Fleet<'a> {
    world: &'a World,
    origin: Instant,
    events: BinaryHeap<Reverse<(Duration, u64, Next)>>,
    /// Breaks ties among events: first come, first served.
    turn: u64,
    servers: Vec<Server>,
    balancers: Vec<Balancer>,
    joined: usize,
    weights: Vec<f64>,
    traffic: Traffic,
    coming: Request,
    dice: Dice,
    done: Vec<Done>,
}

/// Runs a policy through a world. The same seed brings the same requests to every policy.
pub(crate) fn run(world: &World, kind: Kind, seed: u64) -> Figures {
    let mut fleet = Fleet::new(world, kind, seed);
    while let Some(Reverse((at, _, next))) = fleet.events.pop() {
        fleet.live(at, next);
    }
    fleet.conclude()
}

impl<'a> Fleet<'a> {
    fn new(world: &'a World, kind: Kind, seed: u64) -> Self {
        let origin = Instant::now();
        let joined = world.endpoints - world.late.map_or(0, |late| late.endpoints);
        let balancer = |_| Balancer::new(kind, world.endpoints, joined, origin);
        let mut traffic = Traffic::new(world, seed);
        let mut fleet = Self {
            world,
            origin,
            events: BinaryHeap::new(),
            turn: 0,
            servers: (0..world.endpoints).map(|i| Server::new(world, i, seed)).collect(),
            balancers: (0..world.balancers).map(balancer).collect(),
            joined,
            weights: vec![1.0; joined],
            coming: traffic.draw(),
            traffic,
            dice: Dice(Random::new(seed ^ 0xd1ce)),
            done: Vec::new(),
        };
        fleet.schedule();
        fleet
    }

    fn schedule(&mut self) {
        self.expect(self.coming.at, Next::Arrival);
        for server in 0..self.servers.len() {
            for balancer in 0..self.balancers.len() {
                let first = REPORT_EVERY.mul_f64(self.dice.0.unit());
                self.expect(first, Next::Ask { server, balancer });
            }
        }
        if let Some(late) = self.world.late {
            self.expect(late.at, Next::Join);
            self.expect(late.at + late.cold_for, Next::Warm);
        }
    }

    fn expect(&mut self, at: Duration, next: Next) {
        self.turn += 1;
        self.events.push(Reverse((at, self.turn, next)));
    }

    fn live(&mut self, at: Duration, next: Next) {
        match next {
            Next::Arrival => self.arrive(at),
            Next::Step(server) => {
                self.servers[server].stepping = false;
                self.advance(at, server);
            }
            Next::Ask { server, balancer } => self.ask(at, server, balancer),
            Next::Hear { server, balancer } => self.hear(at, server, balancer),
            Next::Join => self.join(),
            Next::Warm => self.warm(),
        }
    }

    fn arrive(&mut self, at: Duration) {
        let mut request = self.traffic.draw();
        std::mem::swap(&mut request, &mut self.coming);
        if self.coming.at < self.world.ends() {
            self.expect(self.coming.at, Next::Arrival);
        }
        let (to, placed) = match self.world.outside {
            Some(outside) if self.dice.0.unit() < outside.share => {
                (self.dice.0.below(outside.endpoints as u64) as usize, None)
            }
            _ => self.place(at, &request),
        };
        let flight = Flight { placed, arrived: at, first: at, answer: request.answer };
        self.submit(at, to, request.job(), flight);
    }

    /// As the proxy does: choose, count in, remember.
    fn place(&mut self, at: Duration, request: &Request) -> (usize, Option<Placed>) {
        self.slow_start(at);
        let ask = Ask {
            cost: Cost::of_prompt(request.text.len() as u64),
            key: Some(request.key),
            prefix: Prefix::of(&request.text),
        };
        let now = self.origin + at;
        let balancer = self.dice.0.below(self.balancers.len() as u64) as usize;
        let Balancer { policy, facts, .. } = &self.balancers[balancer];
        let view = View { facts, weights: &self.weights, ask: &ask, now };
        let chosen = policy.pick(&view, &mut self.dice).expect("every endpoint can be used");
        let cost = policy.cost(&view, chosen);
        let standing = facts[chosen].enter(cost);
        policy.sent(&ask, &facts[chosen], now);
        (chosen, Some(Placed { balancer, cost, standing }))
    }

    fn submit(&mut self, at: Duration, to: usize, job: Job, flight: Flight) {
        self.advance(at, to);
        let server = &mut self.servers[to];
        let id = server.engine.submit(job).expect("worlds ask for nothing that cannot fit");
        server.flights.insert(id, flight);
        self.advance(at, to);
    }

    /// Lives through what an engine did until now.
    fn advance(&mut self, at: Duration, server: usize) {
        for event in self.servers[server].engine.advance(at) {
            self.tell(server, &event);
        }
        let server_now = &mut self.servers[server];
        if let Some(ends) = server_now.engine.next_event().filter(|_| !server_now.stepping) {
            server_now.stepping = true;
            self.expect(ends, Next::Step(server));
        }
    }

    fn tell(&mut self, server: usize, event: &Event) {
        match event.what {
            What::Step { prefill, decode } if event.at <= self.world.ends() => {
                self.servers[server].work(prefill, decode);
            }
            What::Token { job, index, last } if index == 1 || last => {
                self.token(server, job, event.at, index == 1, last);
            }
            What::Token { .. } | What::Step { .. } | What::Admitted(_) | What::Preempted(_) => {}
        }
    }

    fn token(&mut self, server: usize, job: JobId, at: Duration, first: bool, last: bool) {
        let flights = &mut self.servers[server].flights;
        let flight = flights.get_mut(&job).expect("tokens are of requests in flight");
        if first {
            flight.first = at;
        }
        if let Some(placed) = &flight.placed {
            let facts = &self.balancers[placed.balancer].facts[server];
            if first {
                facts.give_back(placed.cost.prefill);
                facts.first_byte(placed.standing, at - flight.arrived, self.origin + at);
            }
            if last {
                facts.leave(placed.cost.decode);
            }
        }
        if last && let Some(flight) = flights.remove(&job) {
            self.done.extend(flight.placed.as_ref().map(|_| flight.done(at)));
        }
    }

    fn ask(&mut self, at: Duration, server: usize, balancer: usize) {
        if at > self.world.ends() {
            return;
        }
        self.advance(at, server);
        let load = self.servers[server].engine.load();
        let report = Report {
            waiting: Some(load.waiting as f64),
            running: Some(load.running as f64),
            kv_usage: Some(load.kv_usage()),
            ..Report::default()
        };
        let asks = &mut self.balancers[balancer];
        let own = asks.facts[server].in_flight();
        asks.reports.push_back((report, own));
        self.expect(at + REPORT_DELAY, Next::Hear { server, balancer });
        self.expect(at + REPORT_EVERY, Next::Ask { server, balancer });
    }

    fn hear(&mut self, at: Duration, server: usize, balancer: usize) {
        let hears = &mut self.balancers[balancer];
        let (report, own) = hears.reports.pop_front().expect("answers come in order, one each");
        let reported = hears.facts[server].reported();
        reported.update(&report, Source::Scrape, own, self.origin + at);
    }

    fn join(&mut self) {
        self.joined = self.servers.len();
        self.weights.resize(self.joined, 1.0);
        for balancer in &mut self.balancers {
            balancer.grow(self.joined);
        }
    }

    fn warm(&mut self) {
        for server in &mut self.servers {
            server.engine.set_slowdown(1.0);
        }
    }

    /// The share of its weight that a late endpoint has by now.
    fn slow_start(&mut self, at: Duration) {
        let Some(late) = self.world.late else { return };
        let Some(window) = late.slow_start else { return };
        let age = at.saturating_sub(late.at).div_duration_f64(window);
        let first = self.servers.len() - late.endpoints;
        for weight in self.weights.iter_mut().skip(first) {
            *weight = age.clamp(0.1, 1.0);
        }
    }

    fn conclude(self) -> Figures {
        let world = self.world;
        for balancer in &self.balancers {
            for (i, facts) in balancer.facts.iter().enumerate() {
                let left = (facts.in_flight(), facts.load());
                assert_eq!(
                    left,
                    (0, 0),
                    "{}: endpoint {i} keeps what it does not have",
                    world.name
                );
            }
        }
        assert!(self.servers.iter().all(|server| server.flights.is_empty()));
        let busy: Vec<f64> = self.servers.iter().map(|server| server.busy).collect();
        let reuse = self.servers.iter().map(|server| server.engine.reuse());
        Figures::of(world, &self.done, &busy, reuse)
    }
}

impl Server {
    fn new(world: &World, number: usize, seed: u64) -> Self {
        let parameters = Parameters {
            slowdown: world.slowdown(number),
            seed: seed ^ ((number as u64) << 32),
            ..world.engine.clone()
        };
        Self {
            engine: Engine::new(parameters),
            flights: HashMap::new(),
            stepping: false,
            busy: 0.0,
        }
    }

    fn work(&mut self, prefill: u64, decode: u64) {
        let engine = self.engine.parameters();
        let reading = prefill as f64 / engine.prefill_rate;
        let decoding = decode as f64 * engine.step_per_request.as_secs_f64();
        self.busy += (reading + decoding) * engine.slowdown;
    }
}
