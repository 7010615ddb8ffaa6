//! Endpoints that are equal must be left alone, endpoints that are not must be found, soon.

use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::EVERY_REQUEST;
use super::*;

const WINDOW: Duration = Duration::from_secs(30);
const DAY: u64 = 86_400;
const RATE: SuccessRate = SuccessRate { window: WINDOW, requests: 20, margin: 0.2 };
const LATENCY: Latency = Latency { window: WINDOW, requests: 20, factor: 4.0 };
const BOTH: Settings = Settings { success_rate: Some(RATE), latency: Some(LATENCY) };

/// How an endpoint does.
#[derive(Clone, Copy)]
struct Kind {
    /// Requests in a second, on average.
    per_second: f64,
    /// Share of them that fails.
    failing: f64,
    /// Median time to the first byte, in seconds; a log-normal distribution in which one in a
    /// hundred takes ten times as long.
    first_byte: f64,
}

const GOOD: Kind = Kind { per_second: 2.0, failing: 0.01, first_byte: 0.1 };

/// Endpoints under random traffic, judged each second.
struct Fleet {
    kinds: Vec<Kind>,
    windows: Vec<Window>,
    rng: SmallRng,
    now: Instant,
}

impl Fleet {
    fn new(kinds: &[Kind], seed: u64) -> Self {
        let now = Instant::now();
        let windows = kinds.iter().map(|_| Window::new(&BOTH, now)).collect();
        Self { kinds: kinds.to_vec(), windows, rng: SmallRng::seed_from_u64(seed), now }
    }

    /// A second of traffic, and what is said of it.
    fn second(&mut self) -> Vec<Verdict> {
        self.now += Duration::from_secs(1);
        for (kind, window) in self.kinds.iter().zip(&self.windows) {
            // Poisson's distribution: arrivals until the exponential pauses fill the second.
            let mut pauses = exponential(&mut self.rng);
            while pauses < kind.per_second {
                request(window, kind, &mut self.rng, self.now);
                pauses += exponential(&mut self.rng);
            }
        }
        let samples: Vec<_> = self.windows.iter().map(|window| window.sample(self.now)).collect();
        judge(&samples, &BOTH)
    }

    /// After how many seconds `endpoint` is found, for `reason` and before any other.
    fn found(&mut self, endpoint: usize, reason: Reason) -> u64 {
        for seconds in 1..=600 {
            if let Some(first) = self.second().first() {
                assert_eq!((first.endpoint, first.reason), (endpoint, reason));
                return seconds;
            }
        }
        panic!("endpoint {endpoint} is not found in ten minutes");
    }
}

fn exponential(rng: &mut SmallRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

fn request(window: &Window, kind: &Kind, rng: &mut SmallRng, now: Instant) {
    if rng.random_bool(kind.failing) {
        window.failed(now);
        return;
    }
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * rng.random::<f64>()).cos();
    let prompts = rng.random_range(10..10_000);
    // As long as the prompts that are to be read.
    let after = kind.first_byte * normal.exp() * (EVERY_REQUEST + prompts) as f64 / 1e3;
    window.first_byte(Duration::from_secs_f64(after), prompts, now);
    window.succeeded(now);
}

/// False verdicts in `days` on endpoints that are all of one kind, per endpoint and day.
fn false_verdicts(kind: Kind, endpoints: usize, days: u64) -> f64 {
    let mut fleet = Fleet::new(&vec![kind; endpoints], 1);
    let mut verdicts = 0;
    for _ in 0..days * DAY {
        for verdict in fleet.second() {
            fleet.windows[verdict.endpoint].clear();
            verdicts += 1;
        }
    }
    verdicts as f64 / endpoints as f64 / days as f64
}

#[test]
fn equal_endpoints_are_left_alone_for_days() {
    for endpoints in [2, 5] {
        assert_eq!(false_verdicts(GOOD, endpoints, 1), 0.0, "{endpoints} endpoints");
        let rare = Kind { per_second: 0.7, ..GOOD };
        assert_eq!(false_verdicts(rare, endpoints, 1), 0.0, "{endpoints} endpoints, few requests");
    }
}

/// Where a third of all requests fails chance alone makes great differences.
#[test]
fn equal_endpoints_that_are_all_bad_are_ejected_seldom() {
    for endpoints in [2, 5] {
        let rate = false_verdicts(Kind { failing: 0.3, ..GOOD }, endpoints, 1);
        println!("{rate} false verdicts per endpoint and day, {endpoints} endpoints");
        assert!(rate <= 3.0, "{rate}, {endpoints} endpoints");
    }
}

/// Worst of 30 seeds, and the mean.
fn delays(kinds: &[Kind], endpoint: usize, reason: Reason) -> (u64, f64) {
    let delays: Vec<_> =
        (0..30).map(|seed| Fleet::new(kinds, seed).found(endpoint, reason)).collect();
    let mean = delays.iter().sum::<u64>() as f64 / 30.0;
    println!("{} endpoints, {}: mean {mean:.0} s, {delays:?}", kinds.len(), reason.as_str());
    (delays.into_iter().max().unwrap_or(0), mean)
}

#[test]
fn one_that_fails_three_of_ten_is_found_within_a_window() {
    let bad = Kind { failing: 0.3, ..GOOD };
    for kinds in [&[GOOD, bad][..], &[GOOD, bad, GOOD], &[GOOD, bad, GOOD, GOOD, GOOD]] {
        let (worst, mean) = delays(kinds, 1, Reason::SuccessRate);
        assert!(worst <= 90 && mean <= 30.0, "{worst} s, mean {mean}, of {}", kinds.len());
    }
}

#[test]
fn one_that_is_five_times_slower_is_found_within_a_window() {
    let slow = Kind { first_byte: 5.0 * GOOD.first_byte, ..GOOD };
    for kinds in [&[GOOD, slow][..], &[GOOD, slow, GOOD], &[GOOD, slow, GOOD, GOOD, GOOD]] {
        let (worst, mean) = delays(kinds, 1, Reason::Latency);
        assert!(worst <= 90 && mean <= 25.0, "{worst} s, mean {mean}, of {}", kinds.len());
    }
}

fn sample(successes: u32, failures: u32, first_bytes: u64) -> Sample {
    let mut sample = Sample { successes, failures, ..Sample::default() };
    (0..100).for_each(|_| sample.first_bytes.observe(first_bytes));
    sample
}

fn judged(samples: &[Sample]) -> Vec<(usize, Reason)> {
    judge(samples, &BOTH).into_iter().map(|verdict| (verdict.endpoint, verdict.reason)).collect()
}

#[test]
fn one_endpoint_has_no_peers() {
    assert!(judged(&[]).is_empty());
    assert!(judged(&[sample(0, 1_000, 1_000_000)]).is_empty());
}

#[test]
fn two_are_compared_with_each_other() {
    let (good, bad) = (sample(100, 0, 1_000), sample(50, 50, 1_000));
    assert_eq!(judged(&[good.clone(), bad]), [(1, Reason::SuccessRate)]);
    assert_eq!(judged(&[sample(100, 0, 6_000), good]), [(0, Reason::Latency)]);
}

#[test]
fn when_all_are_bad_none_is_an_outlier() {
    assert!(judged(&vec![sample(0, 100, 900_000_000); 4]).is_empty());
}

#[test]
fn the_margin_and_the_factor_must_be_exceeded() {
    let good = sample(10_000, 0, 1_000);
    assert!(judged(&[good.clone(), sample(8_000, 2_000, 3_900)]).is_empty());
    let worse = sample(7_999, 2_001, 4_700);
    assert_eq!(judged(&[good.clone(), worse]), [(1, Reason::SuccessRate)], "one verdict each");
    assert_eq!(judged(&[good, sample(10_000, 0, 4_700)]), [(1, Reason::Latency)]);
}

#[test]
fn too_few_requests_say_nothing() {
    let mut few = sample(0, 19, 1_000);
    few.first_bytes = Histogram::default();
    (0..19).for_each(|_| few.first_bytes.observe(1_000_000));
    let many = sample(1_000, 0, 1_000);
    assert!(judged(&[many.clone(), few.clone()]).is_empty(), "of its own");
    assert!(judged(&[few.clone(), sample(0, 1_000, 100_000_000)]).is_empty(), "of its peers");
    few.failures += 1;
    few.first_bytes.observe(1_000_000);
    assert_eq!(judged(&[many, few]), [(1, Reason::SuccessRate)], "just enough");
}

#[test]
fn a_difference_that_chance_makes_says_nothing() {
    // Six of 20 against none of 20: 0.01.
    assert!(judged(&[sample(20, 0, 1_000), sample(14, 6, 1_000)]).is_empty());
    assert_eq!(judged(&[sample(60, 0, 1_000), sample(42, 18, 1_000)]).len(), 1);
}

#[test]
fn the_worst_comes_first() {
    let fleet = [
        sample(100, 0, 1_000),
        sample(100, 0, 10_000),
        sample(60, 40, 1_000),
        sample(30, 70, 50_000),
        sample(100, 0, 20_000),
        sample(100, 0, 1_000),
        sample(100, 0, 1_000),
    ];
    let [rate, latency] = [Reason::SuccessRate, Reason::Latency];
    assert_eq!(judged(&fleet), [(3, rate), (2, rate), (4, latency), (1, latency)]);
}

#[test]
fn a_verdict_says_what_it_saw() {
    let verdicts = judge(&[sample(90, 10, 1_000_000), sample(40, 60, 1_000_000)], &BOTH);
    assert_eq!((verdicts[0].own, verdicts[0].peers), (0.6, 0.1));
    let slow = judge(&[sample(100, 0, 100_000), sample(100, 0, 1_000_000)], &BOTH);
    let (own, peers) = (slow[0].own, slow[0].peers);
    assert!((0.9..1.1).contains(&own) && (0.09..0.11).contains(&peers), "{own} {peers}");
}

#[test]
fn what_is_off_is_not_compared() {
    let fleet = [sample(100, 0, 1_000), sample(50, 50, 1_000), sample(100, 0, 10_000)];
    let only = |settings| judge(&fleet, &settings).len();
    assert_eq!(only(Settings { latency: None, ..BOTH }), 1);
    assert_eq!(only(Settings { success_rate: None, ..BOTH }), 1);
    assert_eq!(only(Settings { success_rate: None, latency: None }), 0);
}
