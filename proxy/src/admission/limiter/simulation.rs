//! The limiter in front of an engine with so many slots, whose first bytes come late as soon as requests wait for one.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{tests::settings, *};

const SEEDS: u64 = 64;
const SECOND: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    FirstByte { in_flight: usize, tokens: u64, sent: u64 },
    End,
    Arrive,
}

/// Microseconds.
struct World {
    rng: SmallRng,
    limiter: Limiter,
    slots: usize,
    slow: f64,
    now: u64,
    running: usize,
    in_flight: usize,
    waiting: VecDeque<(usize, u64, u64)>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    drawn: u64,
    /// Requests a second; `None` = there are always more.
    arrivals: Option<f64>,
    lengths: &'static [u64],
    ended: u64,
    lowest: usize,
    highest: usize,
}

impl World {
    fn new(seed: u64, algorithm: LimitAlgorithm, slots: usize, arrivals: Option<f64>) -> Self {
        let mut world = World {
            rng: SmallRng::seed_from_u64(seed),
            limiter: Limiter::new(settings(algorithm)),
            slots,
            slow: 1.0,
            now: 0,
            running: 0,
            in_flight: 0,
            waiting: VecDeque::new(),
            events: BinaryHeap::new(),
            drawn: 0,
            arrivals,
            lengths: &[20, 200, 2_000],
            ended: 0,
            lowest: usize::MAX,
            highest: 0,
        };
        world.next_arrival();
        world
    }

    fn at(&mut self, after: f64, event: Event) {
        self.drawn += 1;
        let at = self.now + (after * SECOND as f64) as u64;
        self.events.push(Reverse((at, self.drawn, event)));
    }

    fn next_arrival(&mut self) {
        if let Some(rate) = self.arrivals {
            let pause = -(1.0 - self.rng.random::<f64>()).ln() / rate;
            self.at(pause, Event::Arrive);
        }
    }

    fn let_in(&mut self) {
        self.in_flight += 1;
        let tokens = self.lengths[self.rng.random_range(0..self.lengths.len())];
        let request = (self.in_flight, tokens, self.now);
        if self.running < self.slots {
            self.serve(request);
        } else {
            self.waiting.push_back(request);
        }
    }

    /// Prompts are read at 8,000 tokens a second; a tenth of a second to three seconds of answer.
    fn serve(&mut self, (in_flight, tokens, sent): (usize, u64, u64)) {
        self.running += 1;
        let noise = 0.7 + 0.6 * self.rng.random::<f64>();
        let first = (0.010 + tokens as f64 / 8_000.0) * self.slow * noise;
        let rest = (0.1 + 2.9 * self.rng.random::<f64>()) * self.slow;
        self.at(first, Event::FirstByte { in_flight, tokens, sent });
        self.at(first + rest, Event::End);
    }

    fn run(&mut self, seconds: u64) {
        let until = self.now + seconds * SECOND;
        (self.lowest, self.highest) = (usize::MAX, 0);
        loop {
            while self.arrivals.is_none() && self.in_flight < self.limiter.limit() {
                self.let_in();
            }
            match self.events.peek() {
                Some(Reverse((at, _, _))) if *at <= until => self.step(),
                _ => break,
            }
            self.lowest = self.lowest.min(self.limiter.limit());
            self.highest = self.highest.max(self.limiter.limit());
        }
        self.now = until;
    }

    fn step(&mut self) {
        let Some(Reverse((at, _, event))) = self.events.pop() else { return };
        self.now = at;
        match event {
            Event::FirstByte { in_flight, tokens, sent } => {
                let took = Duration::from_micros(self.now - sent);
                self.limiter.observe(&Sample { span: Span::FirstByte, tokens, took, in_flight });
            }
            Event::End => {
                (self.running, self.in_flight) = (self.running - 1, self.in_flight - 1);
                self.ended += 1;
                if self.running < self.slots
                    && let Some(next) = self.waiting.pop_front()
                {
                    self.serve(next);
                }
            }
            Event::Arrive => {
                if self.in_flight < self.limiter.limit() {
                    self.let_in();
                }
                self.next_arrival();
            }
        }
    }

    /// The limit stays near the number of slots for so long.
    fn holds_near_slots(&mut self, seconds: u64, what: &str) {
        self.run(seconds);
        let (low, high) = (self.slots * 6 / 10, self.slots * 16 / 10 + 4);
        assert!(low <= self.lowest && self.highest <= high, "{what}: {}", self.told());
    }

    fn told(&self) -> String {
        let (lowest, highest) = (self.lowest, self.highest);
        format!("{} slots, limit {lowest} to {highest}, {:?}", self.slots, self.limiter)
    }
}

fn seeds(seeds: std::ops::Range<u64>) -> impl Iterator<Item = (u64, LimitAlgorithm)> {
    let algorithm = |seed: u64| match seed % 2 {
        0 => LimitAlgorithm::Gradient,
        _ => LimitAlgorithm::Vegas,
    };
    seeds.map(move |seed| (seed, algorithm(seed)))
}

#[test]
fn it_finds_the_capacity_of_an_engine_and_follows_when_that_halves_and_doubles() {
    for (seed, algorithm) in seeds(0..SEEDS) {
        let slots = [16, 32, 64, 128][seed as usize / 2 % 4];
        let mut world = World::new(seed, algorithm, slots, None);
        let told = |what| format!("seed {seed} {algorithm:?} {what}");
        world.run(120);
        world.holds_near_slots(60, &told("at first"));
        world.slots = slots / 2;
        world.run(120);
        world.holds_near_slots(60, &told("halved"));
        world.slots = slots;
        world.run(120);
        world.holds_near_slots(60, &told("doubled"));
    }
}

#[test]
fn an_engine_that_becomes_slower_as_a_whole_keeps_its_requests() {
    for (seed, algorithm) in seeds(0..SEEDS) {
        let mut world = World::new(seed, algorithm, 32, None);
        world.run(120);
        world.slow = 2.0 + (seed % 3) as f64;
        world.run(900);
        let told = format!("seed {seed} {algorithm:?} slow {}", world.slow);
        world.holds_near_slots(60, &told);
    }
}

#[test]
fn without_overload_nobody_is_turned_away_for_long_and_the_limit_has_a_bound() {
    for (seed, algorithm) in seeds(0..SEEDS) {
        // On average 12 of 64 slots are in use.
        let mut world = World::new(seed, algorithm, 64, Some(7.5));
        world.lengths = &[5, 50, 500, 5_000, 50_000];
        world.run(60);
        world.run(600);
        let told = format!("seed {seed} {algorithm:?}");
        assert!(world.lowest >= 12 && world.highest <= 64, "{told}: {}", world.told());
        let served = world.ended as f64 / (660.0 * 7.5);
        assert!(served > 0.9, "{told}: only {served} were let in: {}", world.told());
    }
}
