//! A breaker against seeded random backends that come and go.
//!
//! Requests arrive, those that are let in succeed or fail as the backend does at that moment, some of their clients
//! leave. Whatever happens: it never opens twice within its base, lets one probe at a time through, lets one through in
//! the end, and lets only few attempts reach a backend that is gone.

use std::collections::BinaryHeap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// An attempt under way; the earliest end is the greatest.
struct Attempt {
    ends: Instant,
    pass: Pass,
    /// `None`: its client leaves.
    fate: Option<Result<(), Failure>>,
}

impl PartialEq for Attempt {
    fn eq(&self, other: &Self) -> bool {
        self.ends == other.ends
    }
}

impl Eq for Attempt {}

impl PartialOrd for Attempt {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Attempt {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.ends.cmp(&self.ends)
    }
}

const FAILURES: [Failure; 5] = [
    Failure::ConnectRefused,
    Failure::ConnectTimeout,
    Failure::Reset,
    Failure::FirstByteTimeout,
    Failure::ServerError,
];

struct World {
    seed: u64,
    rng: SmallRng,
    settings: Settings,
    breaker: Breaker,
    now: Instant,
    under_way: BinaryHeap<Attempt>,
    /// How likely an attempt fails now.
    trouble: f64,
    opened: Option<Instant>,
    openings: u32,
    sent: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let millis =
            |low, high, rng: &mut SmallRng| Duration::from_millis(rng.random_range(low..high));
        let base = millis(100, 5_000, &mut rng);
        let settings = Settings {
            failures: rng.random_range(0.2..1.0),
            attempts: rng.random_range(1..40),
            window: millis(500, 20_000, &mut rng),
            base,
            max: base * rng.random_range(1..10),
            jitter: rng.random_range(0.0..0.5),
        };
        let now = Instant::now();
        let breaker = Breaker::new(settings, seed, now);
        Self {
            seed,
            rng,
            settings,
            breaker,
            now,
            under_way: BinaryHeap::new(),
            trouble: 0.0,
            opened: None,
            openings: 0,
            sent: 0,
        }
    }

    fn step(&mut self) {
        self.now += Duration::from_micros(self.rng.random_range(0..100_000));
        if self.rng.random_bool(0.01) {
            self.trouble = [0.0, 0.1, 0.6, 1.0][self.rng.random_range(0..4)];
        }
        self.end_due();
        self.arrive();
    }

    fn arrive(&mut self) {
        let before = self.breaker.circuit(self.now);
        let Some(pass) = self.breaker.acquire(self.now) else {
            assert_ne!(
                before,
                Circuit::Closed,
                "seed {}: a closed one lets everybody in",
                self.seed
            );
            return;
        };
        assert!(!matches!(before, Circuit::Open(_)), "seed {}: an open one lets in", self.seed);
        assert_eq!(pass.is_probe(), before == Circuit::HalfOpen, "seed {}", self.seed);
        let probes = self.under_way.iter().filter(|attempt| attempt.pass.is_probe()).count();
        assert!(!pass.is_probe() || probes == 0, "seed {}: a second probe", self.seed);
        self.sent += 1;
        let fate = match self.rng.random_bool(self.trouble) {
            true => Err(FAILURES[self.rng.random_range(0..FAILURES.len())]),
            false => Ok(()),
        };
        let fate = (!self.rng.random_bool(0.1)).then_some(fate);
        let ends = self.now + Duration::from_millis(self.rng.random_range(1..2_000));
        self.under_way.push(Attempt { ends, pass, fate });
    }

    fn end_due(&mut self) {
        while self.under_way.peek().is_some_and(|attempt| attempt.ends <= self.now) {
            let Some(Attempt { pass, fate, .. }) = self.under_way.pop() else { return };
            let transition = match fate {
                Some(Ok(())) => {
                    self.breaker.reached();
                    self.breaker.succeeded(pass, self.now)
                }
                Some(Err(failure)) => self.breaker.failed(pass, failure, 3, self.now),
                None => None,
            };
            if let Some(Transition::Ejected { until, .. }) = transition {
                self.opens(until);
            }
        }
    }

    fn opens(&mut self, until: Instant) {
        let (seed, base) = (self.seed, self.settings.base);
        let since = self.opened.replace(self.now).map(|at| self.now - at);
        assert!(since.is_none_or(|since| since >= base), "seed {seed}: flaps after {since:?}");
        let longest = self.settings.max.mul_f64(1.0 + self.settings.jitter);
        let open = until - self.now;
        assert!(open >= base && open <= longest, "seed {seed}: open for {open:?}");
        self.openings += 1;
    }
}

#[test]
fn it_never_flaps_faster_than_its_base_and_lets_one_probe_in_at_a_time() {
    let mut openings = 0;
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        (0..400).for_each(|_| world.step());
        openings += world.openings;
    }
    assert!(openings > 2_000, "{openings} openings prove nothing");
}

#[test]
fn whatever_happened_a_probe_passes_in_the_end_and_closes_it() {
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        (0..200).for_each(|_| world.step());
        // The backend is well from now on.
        world.trouble = 0.0;
        world.now += Duration::from_secs(2);
        world.end_due();
        world.now += 2 * world.settings.max;
        let pass = world.breaker.acquire(world.now);
        let pass = pass.unwrap_or_else(|| panic!("seed {seed}: nobody is let in any more"));
        world.breaker.succeeded(pass, world.now);
        assert_eq!(world.breaker.circuit(world.now), Circuit::Closed, "seed {seed}");
    }
}

#[test]
fn a_backend_that_is_gone_is_asked_once_in_each_open_time() {
    for seed in 0..500 {
        let mut world = World::new(seed);
        world.trouble = 1.0;
        let start = world.now;
        while world.now < start + 100 * world.settings.base {
            world.now += Duration::from_millis(20);
            world.end_due();
            world.arrive();
        }
        // What it takes to find out, those that are under way at that moment, and the probes, of which clients give up
        // each tenth.
        let found_out = world.settings.attempts.min(6) * 2 + 2_000 / 20 * 2;
        let sent = world.sent;
        assert!(sent <= found_out + 120, "seed {seed}: {sent} attempts, {found_out} to find out");
    }
}
