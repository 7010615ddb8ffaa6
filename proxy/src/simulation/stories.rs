//! What learned deadlines, ejection and the breaker promise together when a whole fleet changes: told over minutes, with
//! fewer seeds than there are scenarios.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    client::Wish,
    engine::{Mode, Prices},
    plan::{Fault, Plan, Rules},
    world::Seen,
};
use crate::outcome::Outcome;

const SEEDS: u64 = 30;
const SECOND: Duration = Duration::from_secs(1);
const CEILING: Duration = Duration::from_secs(30);
/// The trouble begins.
const FROM: Duration = Duration::from_secs(40);

/// Two engines of four slots, of which an eighth is used: five times slower they are below their capacity still.
fn plan(seed: u64, minutes: u32, faults: &[(usize, Mode, Duration)]) -> Plan {
    let rng = &mut SmallRng::seed_from_u64(seed);
    let yaml = "access_log: { format: off }
backends:
  fleet:
    endpoints: [\"10.0.0.1:8000\", \"10.0.0.2:8000\"]
    ejection: { failures: 3, base: 1s, max: 4s }
    breaker: { attempts: 10, window: 5s, base: 1s, max: 4s }
routes:
  - name: chat
    backend: fleet
    deadline:
      first_byte: { floor: 50ms, ceiling: 30s }
      total: 1m
"
    .to_owned();
    let milli = Duration::from_millis(1);
    let (base, byte, piece) = (milli * 60, Duration::from_micros(50), milli * 10);
    let prices = Prices { base, byte, piece, connect: milli };
    let rules = Rules {
        max_share: Some(0.5),
        breaker: true,
        attempts: 3,
        percent: 20,
        reserve: 10,
        first_byte: (milli * 50, CEILING),
        total: SECOND * 60,
        ..Rules::default()
    };
    let fault = |(engine, mode, until): &(usize, Mode, Duration)| Fault {
        engine: *engine,
        mode: *mode,
        from: FROM,
        until: *until,
    };
    let mut wishes = Vec::new();
    let mut at = Duration::ZERO;
    while at < SECOND * 60 * minutes {
        let (prompt, pieces) = (rng.random_range(200..1_000), rng.random_range(1..6));
        let (class, streams) = (0, rng.random_bool(0.8));
        wishes.push(Wish { at, class, prompt, pieces, streams, budget: None, leaves: None });
        at += Duration::from_secs_f64(-f64::ln(1.0 - rng.random_range(0.0..1.0)) / 8.0);
    }
    let faults = faults.iter().map(fault).collect();
    Plan { yaml, rules, engines: 2, slots: 4, prices, faults, wishes }
}

fn told(seed: u64, plan: &Plan, check: impl FnOnce(&[Seen])) {
    let world = super::run_plan(seed, plan);
    world.fail_if_broken(seed, &plan.yaml);
    world.with_requests(check);
}

/// Of those that came in this time the share that was served.
fn served(all: &[Seen], from: Duration, until: Duration) -> f64 {
    let came: Vec<_> = all.iter().filter(|s| (from..until).contains(&s.wish.at)).collect();
    let ok = came.iter().filter(|s| matches!(s.ended, Some((_, Outcome::Ok)))).count();
    ok as f64 / came.len() as f64
}

/// The median of the deadlines in this time.
fn deadline(all: &[Seen], from: Duration, until: Duration) -> Duration {
    let came = all.iter().filter(|s| (from..until).contains(&s.wish.at));
    let mut limits: Vec<_> = came.filter_map(|seen| seen.limit).collect();
    limits.sort();
    limits[limits.len() / 2]
}

/// The longest that one that came in this time was there; without those that were to see what lies beyond.
fn longest(all: &[Seen], from: Duration, until: Duration) -> Duration {
    let came = all.iter().filter(|s| (from..until).contains(&s.wish.at));
    let came = came.filter(|s| s.limit.is_none_or(|limit| limit < CEILING));
    let stays = came.filter_map(|s| Some(s.ended?.0.saturating_duration_since(s.arrived)));
    stays.max().unwrap_or_default()
}

/// Until deadlines have followed some requests are cut; then they are long enough, and no longer than they have to be.
#[test]
fn five_times_slower_for_good() {
    for seed in 0..SEEDS {
        let until = SECOND * 150;
        let slow = Mode::Slow(5.0);
        let plan = plan(seed, 2, &[(0, slow, until), (1, slow, until)]);
        told(seed, &plan, |all| {
            let first = served(all, FROM, FROM + SECOND * 20);
            let later = served(all, FROM + SECOND * 20, SECOND * 120);
            let before = deadline(all, SECOND * 20, FROM);
            let after = deadline(all, SECOND * 80, SECOND * 120);
            println!("slower {seed}: {first:.3}, then {later:.3}; {before:?}, then {after:?}");
            assert!(first > 0.9 && later > 0.99, "seed {seed}: {first}, then {later}");
            assert!(
                after > before * 4 && after < CEILING / 2,
                "seed {seed}: {before:?}, {after:?}"
            );
        });
    }
}

#[test]
fn all_hang_and_come_back() {
    for seed in 0..SEEDS {
        let until = FROM + SECOND * 20;
        let plan = plan(seed, 2, &[(0, Mode::Hung, until), (1, Mode::Hung, until)]);
        told(seed, &plan, |all| {
            let (cut, back) =
                (longest(all, FROM, until), served(all, until + SECOND * 10, SECOND * 120));
            let before = deadline(all, SECOND * 20, FROM);
            let after = deadline(all, SECOND * 100, SECOND * 120);
            println!("all hung {seed}: {cut:?}, then {back:.3}; {before:?}, then {after:?}");
            assert!(cut < before * 16, "seed {seed}: one waited for {cut:?}");
            assert!(back > 0.99, "seed {seed}: {back}");
            assert!(after < before * 3 / 2, "seed {seed}: {before:?}, then {after:?}");
        });
    }
}

/// Whom the hanging engine had when it hung is cut off and served by the other.
#[test]
fn one_hangs_and_comes_back() {
    for seed in 0..SEEDS {
        let until = FROM + SECOND * 20;
        let plan = plan(seed, 2, &[(0, Mode::Hung, until)]);
        told(seed, &plan, |all| {
            let (cut, during) = (longest(all, FROM, until), served(all, FROM, until));
            let back = served(all, until + SECOND * 5, SECOND * 120);
            let after = deadline(all, SECOND * 100, SECOND * 120);
            println!("one hung {seed}: {during:.3}, {cut:?}, then {back:.3}, {after:?}");
            assert!(during > 0.97 && back > 0.99, "seed {seed}: {during}, then {back}");
            assert!(cut < SECOND * 10, "seed {seed}: one waited for {cut:?}");
        });
    }
}
