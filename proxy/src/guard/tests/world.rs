//! Two arms with known faults, and requests for them in random order.

use std::f64::consts::TAU;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::guard::{Finding, Guard, Measure, Sample, Settings, Side, Verdict};

/// Between two requests of either arm.
const PAUSE: Duration = Duration::from_millis(20);

/// How much worse latencies become.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slower {
    /// All, by this factor.
    All(f64),
    /// The slowest twentieth, by this factor; so that p99 is as much longer.
    Tail(f64),
}

/// A distribution of latencies: equally likely ones, in microseconds, ascending.
pub(super) struct Latencies(Vec<f64>);

impl Latencies {
    const COUNT: usize = 1 << 16;

    /// With a median of 400 ms.
    pub(super) fn lognormal(sigma: f64) -> Self {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut one = || (4e5_f64.ln() + sigma * normal(&mut rng)).exp();
        let mut all: Vec<f64> = (0..Self::COUNT).map(|_| one()).collect();
        all.sort_by(f64::total_cmp);
        Self(all)
    }

    pub(super) fn slower(&self, slower: Slower) -> Self {
        let slow = |(i, &micros): (usize, &f64)| match slower {
            Slower::All(factor) => micros * factor,
            Slower::Tail(factor) if i * 20 >= Self::COUNT * 19 => micros * factor,
            Slower::Tail(_) => micros,
        };
        Self(self.0.iter().enumerate().map(slow).collect())
    }

    fn draw(&self, rng: &mut SmallRng) -> f64 {
        let i: u16 = rng.random();
        self.0[usize::from(i)]
    }
}

/// A standard normal number (Box and Muller 1958).
fn normal(rng: &mut SmallRng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (TAU * v).cos()
}

/// What the requests of an arm are like.
#[derive(Clone, Copy)]
pub(super) struct Arm<'a> {
    /// The share that fails.
    pub(super) errors: f64,
    /// When the first byte of the others comes.
    pub(super) latencies: Option<&'a Latencies>,
}

impl<'a> Arm<'a> {
    /// An arm with few errors.
    pub(super) fn slow(latencies: &'a Latencies) -> Self {
        Self { errors: 0.005, latencies: Some(latencies) }
    }
}

pub(super) struct World<'a> {
    /// How much of the traffic goes to the guarded arm.
    share: f64,
    against: Arm<'a>,
    guarded: Arm<'a>,
    /// For so many requests the guarded arm is like the other.
    pub(super) good_for: u64,
    /// Both arms get twice as slow and back every 20,000 requests; every 5,000th begins a burst of
    /// failures.
    pub(super) drifting: bool,
    /// Latencies are gaps and not first bytes.
    pub(super) as_gap: bool,
}

impl<'a> World<'a> {
    pub(super) fn new(share: f64, against: Arm<'a>, guarded: Arm<'a>) -> Self {
        Self { share, against, guarded, good_for: 0, drifting: false, as_gap: false }
    }

    /// About how many of so many requests are of the guarded arm.
    pub(super) fn guarded_of(&self, requests: u64) -> u64 {
        (requests as f64 * self.share) as u64
    }

    fn sample(&self, arm: &Arm<'_>, nth: u64, now: Instant, rng: &mut SmallRng) -> Sample {
        let burst = self.drifting && nth % 5_000 < 300;
        if rng.random_bool(if burst { 0.4 } else { arm.errors }) {
            return Sample { failed: true, ..Sample::of(now) };
        }
        let Some(latencies) = arm.latencies else { return Sample::of(now) };
        let phase = (nth % 20_000) as f64 / 20_000.0;
        let slowdown = if self.drifting { 1.5 - 0.5 * (TAU * phase).cos() } else { 1.0 };
        let time = Some(Duration::from_micros((latencies.draw(rng) * slowdown) as u64));
        if self.as_gap {
            Sample { gap: time, ..Sample::of(now) }
        } else {
            Sample { first_byte: time, ..Sample::of(now) }
        }
    }
}

/// How a run ended.
pub(super) enum Run {
    /// After so many requests of the guarded arm since it was bad.
    RolledBack {
        after: u64,
        finding: Finding,
    },
    Quiet,
}

impl Run {
    pub(super) fn is_found(&self) -> bool {
        matches!(self, Self::RolledBack { .. })
    }

    /// After how many requests, if it was for the right reason.
    pub(super) fn found(&self, measure: Measure) -> Option<u64> {
        match self {
            Self::RolledBack { after, finding } if finding.measure == measure => Some(*after),
            _ => None,
        }
    }
}

/// Runs until a verdict or for so many requests of the guarded arm, not counting the good time.
pub(super) fn run(settings: &Settings, world: &World<'_>, seed: u64, requests: u64) -> Run {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut now = Instant::now();
    let mut guard = Guard::new(settings.clone(), now);
    let mut guarded = 0;
    for nth in 0.. {
        now += PAUSE;
        let (side, arm) = if rng.random_bool(world.share) {
            guarded += 1;
            let bad = guarded > world.good_for;
            (Side::Guarded, if bad { &world.guarded } else { &world.against })
        } else {
            (Side::Against, &world.against)
        };
        let sample = world.sample(arm, nth, now, &mut rng);
        if let Some(Verdict::RolledBack(finding)) = guard.observe(side, &sample, now) {
            return Run::RolledBack { after: guarded.saturating_sub(world.good_for), finding };
        }
        if guarded >= world.good_for + requests {
            break;
        }
    }
    Run::Quiet
}

/// A line about detection delays.
pub(super) fn table(name: &str, runs: &[Run]) -> String {
    let delay = |run: &Run| match run {
        Run::RolledBack { after, .. } => *after,
        Run::Quiet => u64::MAX,
    };
    let mut delays: Vec<u64> = runs.iter().map(delay).collect();
    delays.sort_unstable();
    let [p50, p95] = [50, 95].map(|percent| match delays[runs.len() * percent / 100 - 1] {
        u64::MAX => "-".to_owned(),
        delay => delay.to_string(),
    });
    format!("{name:<44} p50 {p50:>6}   p95 {p95:>6}   guarded requests")
}

/// How a climb through the weights ended.
#[derive(Debug)]
pub(super) struct Climb {
    pub(super) weight: u32,
    pub(super) rolled_back: bool,
    pub(super) after: Duration,
}

/// Runs, with the weights that the guard asks for, until the last weight or a rollback.
pub(super) fn climb(settings: &Settings, world: &World<'_>, seed: u64) -> Climb {
    let mut rng = SmallRng::seed_from_u64(seed);
    let start = Instant::now();
    let mut guard = Guard::new(settings.clone(), start);
    for nth in 0..1_000_000 {
        let now = start + PAUSE * nth;
        let weight = guard.weight().unwrap();
        let ended = |rolled_back| Climb { weight, rolled_back, after: now - start };
        if weight == 100 {
            return ended(false);
        }
        let (side, arm) = match rng.random_bool(f64::from(weight) / 100.0) {
            true => (Side::Guarded, &world.guarded),
            false => (Side::Against, &world.against),
        };
        let sample = world.sample(arm, nth.into(), now, &mut rng);
        if let Some(Verdict::RolledBack(_)) = guard.observe(side, &sample, now) {
            return ended(true);
        }
    }
    panic!("neither up nor out")
}

/// Whether equal arms alarm when requests take seconds but the failed ones end at once, and the
/// guarded arm goes from one percent to half in the middle, of which the guard may be `told`.
pub(super) fn early_failures(settings: &Settings, seed: u64, told: bool) -> bool {
    let mut rng = SmallRng::seed_from_u64(seed);
    let start = Instant::now();
    let pause = PAUSE / 10;
    let change = start + pause * 50_000;
    let mut ends = Vec::new();
    for nth in 0..100_000_u32 {
        let began = start + pause * nth;
        let guarded = rng.random_bool(if began < change { 0.01 } else { 0.5 });
        let failed = rng.random_bool(0.02);
        let takes = if failed { 50 } else { rng.random_range(2_000..20_000) };
        ends.push((began + Duration::from_millis(takes), began, guarded, failed));
    }
    ends.sort_unstable();
    let mut guard = Guard::new(settings.clone(), start);
    let mut untold = Some(change).filter(|_| told);
    for (now, began, guarded, failed) in ends {
        if let Some(change) = untold.take_if(|change| *change <= now) {
            guard.reweighted(change);
        }
        let side = if guarded { Side::Guarded } else { Side::Against };
        guard.observe(side, &Sample { failed, ..Sample::of(began) }, now);
    }
    guard.is_rolled_back()
}
