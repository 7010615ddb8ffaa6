use std::sync::Barrier;
use std::thread;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

const POLICY: Policy = Policy { max: 1, attempts: 3 };
/// A first attempt, of a POST that is here as a whole: nothing speaks against a hedge.
const WAITING: Waiting = Waiting { hedges: 0, attempts: 1, replayable: true, endpoint_left: true };

/// An allowance with so many hedges saved up.
fn saved(hedges: u64) -> Allowance {
    let allowance = Allowance::new(1.0);
    (0..hedges).for_each(|_| allowance.deposit());
    allowance
}

/// How many of `asked` are granted.
fn withdraw(allowance: &Allowance, asked: usize) -> usize {
    (0..asked).filter(|_| allowance.try_withdraw()).count()
}

#[test]
fn a_slow_attempt_without_objections_is_hedged() {
    assert_eq!(decide(POLICY, &WAITING, &saved(1), || true), Ok(()));
}

/// A change of what waits, and the objection that it causes.
type Step = (fn(&mut Waiting), Denied);

#[test]
fn each_objection_stops_and_the_first_one_is_named() {
    // Each step adds an objection that comes before all those already there.
    let steps: [Step; 4] = [
        (|w| w.endpoint_left = false, Denied::NoEndpoint),
        (|w| w.replayable = false, Denied::Buffer),
        (|w| w.attempts = 3, Denied::Attempts),
        (|w| w.hedges = 1, Denied::Max),
    ];
    let mut all = WAITING;
    for (spoil, why) in steps {
        let mut alone = WAITING;
        spoil(&mut alone);
        spoil(&mut all);
        for waiting in [alone, all] {
            let allowance = saved(1);
            let untouched = || unreachable!("the budget is asked last");
            assert_eq!(decide(POLICY, &waiting, &allowance, untouched), Err(why));
            assert_eq!(withdraw(&allowance, 5), 1, "{why:?} costs nothing");
        }
    }
}

#[test]
fn without_an_allowance_the_retry_budget_is_not_touched() {
    let untouched = || unreachable!("the budget is asked last");
    assert_eq!(decide(POLICY, &WAITING, &saved(0), untouched), Err(Denied::Share));
}

#[test]
fn what_the_retry_budget_denies_stays_in_the_allowance() {
    let allowance = saved(1);
    assert_eq!(decide(POLICY, &WAITING, &allowance, || false), Err(Denied::Budget));
    assert_eq!(decide(POLICY, &WAITING, &allowance, || true), Ok(()));
}

#[test]
fn twenty_requests_earn_one_hedge_at_five_percent() {
    let allowance = Allowance::new(0.05);
    let granted = (0..100).map(|_| {
        allowance.deposit();
        allowance.try_withdraw()
    });
    let twentieth = |n| n % 20 == 19;
    assert_eq!(granted.collect::<Vec<_>>(), (0..100).map(twentieth).collect::<Vec<_>>());
}

#[test]
fn no_more_than_a_burst_is_saved_up() {
    assert_eq!(withdraw(&saved(1_000), 1_000), BURST as usize);
    let strange = [Allowance::new(f64::NAN), Allowance::new(-1.0), Allowance::new(7.0)];
    strange.iter().for_each(Allowance::deposit);
    assert_eq!(strange.map(|it| withdraw(&it, 9)), [0, 0, 1]);
}

#[test]
fn agrees_with_the_bound_on_random_traffic() {
    for seed in 0..2_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let share = [0.001, 0.02, 0.05, 0.3, 1.0][rng.random_range(0..5)];
        let allowance = Allowance::new(share);
        // For every stretch at once: the most that requests have ever been ahead of hedges.
        let (mut requests, mut hedges) = (0_f64, 0_f64);
        let mut least = 0_f64;
        for _ in 0..500 {
            if rng.random_bool(0.5) {
                allowance.deposit();
                requests += 1.0;
            } else if allowance.try_withdraw() {
                hedges += 1.0;
            }
            let ahead = hedges - requests * share;
            least = least.min(ahead);
            assert!(ahead <= 1e-6, "seed {seed}: {hedges} for {requests} at {share}");
            assert!(
                ahead - least <= BURST as f64 + 1e-6,
                "seed {seed}: a burst of {}",
                ahead - least
            );
        }
    }
}

#[test]
fn threads_that_race_never_exceed_the_bound() {
    for _ in 0..50 {
        let allowance = saved(BURST);
        let start = Barrier::new(8);
        let granted: usize = thread::scope(|scope| {
            let race = || {
                start.wait();
                withdraw(&allowance, 100)
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, BURST as usize);
    }
}
