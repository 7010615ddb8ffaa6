//! The learner against endpoints that slow down, hang, recover and have long tails, in virtual time.
//!
//! An endpoint reads prompts one after the other, each in a time of its own. Requests arrive at random and go to the
//! endpoints in turn; one that is cut off is forgotten by its client but still worked on, which is the worse case.

use std::{cmp::Reverse, collections::BinaryHeap};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;

/// Seconds of virtual time.
type Seconds = f64;

const ADAPTIVE: Adaptive = Adaptive {
    strategy: Strategy::Quantile { quantile: 0.999, margin: 2.0 },
    floor: Duration::from_millis(10),
    ceiling: Duration::from_secs(120),
    explore: 0.01,
};

/// What happens to the endpoints.
#[derive(Clone, Copy)]
enum Trouble {
    /// All become so many times slower.
    Slow(f64),
    /// The first so many do not answer any more.
    Hang(usize),
}

struct World {
    rule: Adaptive,
    endpoints: usize,
    /// Requests for each endpoint.
    per_second: f64,
    /// The deviation of the logarithm of a reading time.
    spread: f64,
    trouble: Trouble,
    /// From when until when.
    during: [Seconds; 2],
    until: Seconds,
}

const CALM: World = World {
    rule: ADAPTIVE,
    endpoints: 2,
    per_second: 4.0,
    spread: 0.3,
    trouble: Trouble::Slow(1.0),
    during: [0.0, 0.0],
    until: 300.0,
};

/// One request that is over.
#[derive(Clone, Copy)]
struct Seen {
    sent: Seconds,
    waited: Seconds,
    endpoint: usize,
    prompt: u64,
    served: bool,
    learned: Option<f64>,
    explored: bool,
}

/// What is still to happen: at what time, to which request.
type Coming = BinaryHeap<Reverse<(u64, usize)>>;

struct Pending {
    sent: Seconds,
    endpoint: usize,
    prompt: u64,
    forecast: Forecast,
    served: bool,
}

struct Endpoint {
    free: Seconds,
    last_first_byte: Seconds,
    patience: Patience,
    ahead: u64,
    in_flight: u32,
}

struct Run<'w> {
    world: &'w World,
    learner: Learner,
    rng: SmallRng,
    origin: Instant,
    endpoints: Vec<Endpoint>,
    pending: Vec<Pending>,
    coming: Coming,
    seen: Vec<Seen>,
}

fn micros(at: Seconds) -> u64 {
    (at * 1e6) as u64
}

impl<'w> Run<'w> {
    fn new(world: &'w World, seed: u64) -> Self {
        let settings = Settings { first_byte: Some(world.rule.clone()), ..Settings::default() };
        let endpoint = |_| Endpoint {
            free: 0.0,
            last_first_byte: -1.0,
            patience: Patience::default(),
            ahead: 0,
            in_flight: 0,
        };
        Run {
            world,
            learner: Learner::new(settings, None),
            rng: SmallRng::seed_from_u64(seed),
            origin: Instant::now(),
            endpoints: (0..world.endpoints).map(endpoint).collect(),
            pending: Vec::new(),
            coming: BinaryHeap::new(),
            seen: Vec::new(),
        }
    }

    fn run(mut self) -> (Vec<Seen>, Learner) {
        let mut now = 0.0;
        while now < self.world.until {
            let rate = self.world.per_second * self.world.endpoints as f64;
            now -= self.rng.random_range(f64::MIN_POSITIVE..1.0_f64).ln() / rate;
            self.end_until(now);
            self.send(now);
        }
        self.end_until(f64::MAX);
        (self.seen, self.learner)
    }

    fn instant(&self, at: Seconds) -> Instant {
        self.origin + Duration::from_secs_f64(at.min(1e6))
    }

    fn normal(&mut self) -> f64 {
        let [a, b]: [f64; 2] = [self.rng.random_range(1e-12..1.0), self.rng.random_range(0.0..1.0)];
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    fn send(&mut self, now: Seconds) {
        let index = self.pending.len() % self.world.endpoints;
        let prompt = (300.0 * (0.8 * self.normal()).exp()) as u64;
        let noise = (self.world.spread * self.normal()).exp();
        let [from, to] = self.world.during;
        let troubled = (from..to).contains(&now);
        let slow = match self.world.trouble {
            Trouble::Slow(times) if troubled => times,
            Trouble::Hang(of) if troubled && index < of => f64::INFINITY,
            Trouble::Slow(_) | Trouble::Hang(_) => 1.0,
        };
        let endpoint = &mut self.endpoints[index];
        let work =
            Work { prompt, ahead: endpoint.ahead, others: endpoint.in_flight, ..Work::default() };
        let level = endpoint.patience.level();
        let forecast = self.learner.forecast(&work, level, &mut self.rng);
        let reading = (0.02 + prompt as f64 / 8_000.0) * noise * slow;
        let first_byte = endpoint.free.max(now) + reading;
        if first_byte.is_finite() {
            endpoint.free = first_byte;
        }
        (endpoint.ahead, endpoint.in_flight) = (endpoint.ahead + prompt, endpoint.in_flight + 1);
        let limit = forecast.limit.expect("it is learned");
        let deadline = now + limit.after.as_secs_f64();
        let served = first_byte <= deadline;
        let over = if served { first_byte } else { deadline };
        self.coming.push(Reverse((micros(over), self.pending.len())));
        self.pending.push(Pending { sent: now, endpoint: index, prompt, forecast, served });
    }

    fn end_until(&mut self, now: Seconds) {
        while let Some(Reverse((at, _))) = self.coming.peek()
            && *at <= micros(now.min(1e9))
        {
            let Some(Reverse((at, index))) = self.coming.pop() else { return };
            self.end(at as f64 / 1e6, index);
        }
    }

    fn end(&mut self, at: Seconds, index: usize) {
        let now = self.instant(at);
        let Pending { sent, endpoint, prompt, forecast, served } = self.pending[index];
        let there = &mut self.endpoints[endpoint];
        (there.ahead, there.in_flight) = (there.ahead - prompt, there.in_flight - 1);
        let limit = forecast.limit.expect("it is learned");
        let waited = at - sent;
        let after = Duration::from_secs_f64(waited.max(0.0));
        if served {
            let in_time = self.learner.served(&forecast, after, now);
            there.patience.was_served(in_time);
            there.last_first_byte = at;
        } else if there.last_first_byte > sent {
            self.learner.cut_off(&forecast, after, now);
        } else {
            there.patience.was_silent(&limit);
        }
        let learned = limit.learned.map(|learned| learned.as_secs_f64());
        let explored = limit.basis == Basis::Explored;
        self.seen.push(Seen { sent, waited, endpoint, prompt, served, learned, explored });
    }
}

fn run(world: &World, seed: u64) -> Vec<Seen> {
    Run::new(world, seed).run().0
}

/// Those sent within these seconds.
fn sent(seen: &[Seen], from: Seconds, to: Seconds) -> impl Iterator<Item = &Seen> {
    seen.iter().filter(move |seen| (from..to).contains(&seen.sent))
}

fn cut_share<'s>(seen: impl Iterator<Item = &'s Seen>) -> f64 {
    let (mut all, mut cut) = (0.0, 0.0);
    seen.for_each(|seen| {
        all += 1.0;
        cut += f64::from(u8::from(!seen.served));
    });
    cut / f64::max(all, 1.0)
}

/// The mean of what was learned.
fn learned<'s>(seen: impl Iterator<Item = &'s Seen>) -> f64 {
    let all: Vec<f64> = seen.filter_map(|seen| seen.learned).collect();
    assert!(!all.is_empty(), "something was learned");
    all.iter().sum::<f64>() / all.len() as f64
}

#[test]
fn in_calm_weather_hardly_anything_is_cut_and_deadlines_are_short() {
    for strategy in
        [ADAPTIVE.strategy, Strategy::MeanStddev { samples: 200, deviations: 6.0 }, Strategy::Rto]
    {
        let world = World { rule: Adaptive { strategy, ..ADAPTIVE }, ..CALM };
        for seed in 0..20 {
            let seen = run(&world, seed);
            let cut = cut_share(sent(&seen, 30.0, 300.0));
            let learned = learned(sent(&seen, 30.0, 300.0));
            // What is waited for at most is 2 minutes otherwise.
            assert!(learned < 1.0, "{strategy:?}, seed {seed}: {learned}");
            let most = if strategy == Strategy::Rto { 0.05 } else { 0.004 };
            assert!(cut <= most, "{strategy:?}, seed {seed}: {cut}");
        }
    }
}

#[test]
fn a_backend_that_slows_down_five_times_is_tolerated_within_seconds_and_tightened_after() {
    for (endpoints, spread) in [(1, 0.1), (2, 0.3), (4, 0.6)] {
        let world = World {
            endpoints,
            spread,
            per_second: 1.5,
            trouble: Trouble::Slow(5.0),
            during: [400.0, 500.0],
            until: 1_600.0,
            ..CALM
        };
        for seed in 0..10 {
            let seen = run(&world, seed);
            let tell = format!("{endpoints} endpoints, spread {spread}, seed {seed}");
            let settled = cut_share(sent(&seen, 410.0, 500.0));
            assert!(settled < 0.04, "{tell}: {settled} are cut after ten seconds");
            // A size of which there are few requests takes longer to forget.
            let usual =
                |from, to| learned(sent(&seen, from, to).filter(|seen| seen.prompt < 1_000));
            let (before, after) = (usual(300.0, 400.0), usual(1_400.0, 1_600.0));
            assert!(after < 1.6 * before, "{tell}: {before} before, {after} after");
        }
    }
}

#[test]
fn a_backend_that_hangs_is_cut_off_after_what_was_learned() {
    for endpoints in [1, 3] {
        let world = World {
            endpoints,
            trouble: Trouble::Hang(endpoints),
            during: [100.0, 130.0],
            until: 131.0,
            ..CALM
        };
        for seed in 0..25 {
            let seen = run(&world, seed);
            let hung: Vec<_> =
                sent(&seen, 100.0, 130.0).filter(|seen| !seen.explored).copied().collect();
            assert!(hung.iter().all(|seen| !seen.served), "nothing is served");
            let times = |seen: &Seen| seen.waited / seen.learned.expect("it was known");
            let first = hung.iter().min_by(|a, b| a.sent.total_cmp(&b.sent)).expect("some came");
            assert!(times(first) < 1.01, "seed {seed}: {} times what was learned", times(first));
            let most = hung.iter().map(times).fold(0.0, f64::max);
            let longest = hung.iter().map(|seen| seen.waited).fold(0.0, f64::max);
            let mean = hung.iter().map(|seen| seen.waited).sum::<f64>() / hung.len() as f64;
            let told = format!("seed {seed}: {most} times, {longest} s, {mean} s in the mean");
            assert!(most < 8.01 && longest < 60.0 && mean < 5.0, "{told}");
        }
    }
}

#[test]
fn one_endpoint_that_hangs_makes_the_deadlines_of_the_others_no_longer() {
    let world = World {
        endpoints: 4,
        trouble: Trouble::Hang(1),
        during: [150.0, 300.0],
        until: 301.0,
        ..CALM
    };
    for seed in 0..25 {
        let seen = run(&world, seed);
        let others = |from, to| sent(&seen, from, to).filter(|seen| seen.endpoint > 0);
        let (before, after) = (learned(others(80.0, 150.0)), learned(others(200.0, 300.0)));
        assert!(after < 1.5 * before, "seed {seed}: {before} before, {after} after");
        assert!(cut_share(others(200.0, 300.0)) < 0.01, "seed {seed}");
    }
}

/// The deadlines of a tight rule in a world with a long tail, with and without what is learned from what was cut off.
fn tight(seed: u64, blind: bool) -> (f64, f64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let rule = Adaptive {
        strategy: Strategy::Quantile { quantile: 0.95, margin: 1.0 },
        floor: Duration::from_millis(1),
        explore: if blind { 0.0 } else { 0.02 },
        ..ADAPTIVE
    };
    let settings = Settings { first_byte: Some(rule), ..Settings::default() };
    let (learner, mut now) = (Learner::new(settings, None), Instant::now());
    let (mut sum, mut cut, mut counted) = (0.0, 0.0, 0.0);
    for n in 0..12_000 {
        now += Duration::from_millis(100);
        // A power law: one of ten thousand takes twenty times as long as half of them.
        let taken = 0.1 * rng.random_range(1e-6..1.0_f64).powf(-1.0 / 3.0);
        let forecast = learner.forecast(&Work::default(), 0, &mut rng);
        let deadline = forecast.limit.expect("it is learned");
        let limit = deadline.after.as_secs_f64();
        if taken <= limit {
            learner.served(&forecast, Duration::from_secs_f64(taken), now);
        } else if !blind {
            learner.cut_off(&forecast, deadline.after, now);
        }
        if n >= 6_000 && deadline.basis == Basis::Learned {
            (sum, counted) = (sum + limit, counted + 1.0);
            cut += f64::from(u8::from(taken > limit));
        }
    }
    (sum / counted, cut / counted)
}

#[test]
fn what_is_cut_off_keeps_the_estimate_from_shrinking_until_everything_is_cut_off() {
    // A share of 5 % takes longer than this.
    let truth = 0.1 * 0.05_f64.powf(-1.0 / 3.0);
    for seed in 0..25 {
        let (blind, blind_cut) = tight(seed, true);
        assert!(blind < 0.6 * truth && blind_cut > 0.2, "seed {seed}: the fault that is avoided");
        let (limit, cut) = tight(seed, false);
        assert!((0.8..1.7).contains(&(limit / truth)), "seed {seed}: {limit} for {truth}");
        assert!(cut < 0.09, "seed {seed}: {cut}");
    }
}

#[test]
fn deadlines_keep_between_floor_and_ceiling_whatever_happens() {
    for strategy in
        [ADAPTIVE.strategy, Strategy::MeanStddev { samples: 20, deviations: 4.0 }, Strategy::Rto]
    {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let [low, high] = [Duration::from_millis(200), Duration::from_secs(5)];
            let rule = Adaptive { strategy, floor: low, ceiling: high, explore: 0.1 };
            let (first_byte, gap) = (Some(rule.clone()), Some(rule.clone()));
            let learner = Learner::new(Settings { first_byte, gap, connect: Some(rule) }, None);
            let mut now = Instant::now();
            for _ in 0..300 {
                now += Duration::from_millis(rng.random_range(0..2_000));
                let after = Duration::from_secs_f64(2.0_f64.powf(rng.random_range(-16.0..9.0)));
                let answer = if rng.random_bool(0.5) {
                    Answer::Streamed
                } else {
                    Answer::Whole { most: None }
                };
                let work = Work { prompt: rng.random_range(0..200_000), answer, ..Work::default() };
                let forecast = learner.forecast(&work, rng.random_range(0..9), &mut rng);
                let others = [learner.gap(0, &mut rng), learner.connect(&mut rng)];
                for limit in others.into_iter().chain([forecast.limit]).flatten() {
                    let within = (low..=high).contains(&limit.after);
                    assert!(within, "{strategy:?}, seed {seed}: {limit:?}");
                }
                match rng.random_range(0..4) {
                    0 => learner.cut_off(&forecast, after, now),
                    1 => learner.gap_cut_off(after, now),
                    2 => learner.connected(after, now),
                    _ => {
                        learner.served(&forecast, after, now);
                        learner.longest_gap(after, now);
                    }
                }
            }
        }
    }
}

#[test]
fn a_new_arm_begins_with_what_the_route_knows() {
    let settings = Settings { first_byte: Some(ADAPTIVE), ..Settings::default() };
    let route = Arc::new(Knowledge::new(&settings));
    let known = Learner::new(settings.clone(), Some(Arc::clone(&route)));
    let new = Learner::new(settings, Some(route));
    let (mut rng, mut now) = (SmallRng::seed_from_u64(1), Instant::now());
    let work = Work { prompt: 500, ..Work::default() };
    let limit = |learner: &Learner, rng: &mut SmallRng| {
        learner.forecast(&work, 0, rng).limit.expect("it is learned")
    };
    assert_eq!(limit(&new, &mut rng).basis, Basis::Unknown);
    for _ in 0..300 {
        now += Duration::from_millis(100);
        let after = Duration::from_secs_f64(rng.random_range(0.1..0.2));
        known.served(&known.forecast(&work, 0, &mut rng), after, now);
    }
    let learned = limit(&new, &mut rng).learned.expect("from the route");
    assert!((0.2..0.6).contains(&learned.as_secs_f64()), "{learned:?}");
    let forecast = new.forecast(&work, 0, &mut rng);
    let p95 = new.quantile(0.95, &forecast).expect("from the route");
    assert!((0.15..0.25).contains(&p95.as_secs_f64()), "{p95:?}");
}

#[test]
fn patience_doubles_once_for_all_that_were_sent_together() {
    let settings = Settings { first_byte: Some(ADAPTIVE), ..Settings::default() };
    let learner = Learner::new(settings, None);
    let (patience, mut rng) = (Patience::default(), SmallRng::seed_from_u64(1));
    let mut sent =
        |level| learner.forecast(&Work::default(), level, &mut rng).limit.expect("it is learned");
    let together: Vec<Limit> = (0..50).map(|_| sent(0)).collect();
    together.iter().for_each(|limit| patience.was_silent(limit));
    assert_eq!(patience.level(), 1);
    for level in [1, 2, 3, 3] {
        patience.was_silent(&sent(level));
    }
    assert_eq!(patience.level(), Patience::MOST);
    patience.was_served(false);
    assert_eq!(patience.level(), Patience::MOST, "what came late does not shorten it");
    patience.was_served(true);
    assert_eq!(patience.level(), 0);
}
