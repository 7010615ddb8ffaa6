use outrigger_config::validated::PerTime;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn allowance(count: u64, seconds: u64, burst: u64) -> Allowance {
    Allowance { rate: PerTime { count, period: Duration::from_secs(seconds) }, burst }
}

fn gcra(count: u64, seconds: u64, burst: u64) -> Gcra {
    Gcra::new(&allowance(count, seconds, burst))
}

#[test]
fn a_burst_and_then_the_rate() {
    let (gcra, mut full) = (gcra(10, 1, 3), Full::default());
    for _ in 0..3 {
        gcra.charge(&mut full, 1, SECOND).expect("the burst");
    }
    let wait = Duration::from_millis(100);
    let refused = gcra.charge(&mut full, 1, SECOND).expect_err("too many");
    assert_eq!(refused, Refused::For(wait));
    let early = SECOND + wait - Duration::from_nanos(1);
    assert_eq!(gcra.charge(&mut full, 1, early).err(), Some(Refused::For(Duration::from_nanos(1))));
    gcra.charge(&mut full, 1, SECOND + wait).expect("what was told is true");
    let standing = gcra.standing(full, SECOND + wait);
    assert_eq!(standing, Standing { limit: 3, remaining: 0, full_in: 3 * wait });
}

#[test]
fn a_rate_that_is_no_whole_number_of_nanoseconds_is_exact_all_the_same() {
    let (gcra, mut full) = (gcra(7, 1, 1), Full::default());
    let mut now = SECOND;
    for _ in 0..7_000 {
        gcra.charge(&mut full, 1, now).expect("it was told so");
        let Err(Refused::For(wait)) = gcra.charge(&mut full, 1, now) else { panic!("too many") };
        now += wait;
    }
    let drift = now - (SECOND + 1_000 * SECOND);
    assert!(drift < Duration::from_nanos(7_000), "at most a nanosecond each, upwards: {drift:?}");
    // A fresh look at the same: the bucket itself has no drift at all.
    assert!(gcra.is_full(full, SECOND + 1_000 * SECOND + Duration::from_nanos(7_000)));
}

#[test]
fn more_than_the_bucket_holds_is_never_allowed() {
    let (gcra, mut full) = (gcra(10, 1, 3), Full::default());
    assert_eq!(gcra.charge(&mut full, 4, SECOND).err(), Some(Refused::Forever));
    assert_eq!(full, Full::default());
}

#[test]
fn what_was_charged_too_much_comes_back_as_far_as_it_is_owed() {
    let (gcra, mut full) = (gcra(10, 1, 100), Full::default());
    let charge = gcra.charge(&mut full, 50, SECOND).expect("allowed");
    gcra.settle(&mut full, charge, 20, SECOND);
    assert_eq!(gcra.standing(full, SECOND).remaining, 80);
    let charge = gcra.charge(&mut full, 10, SECOND).expect("allowed");
    // Two of three seconds have passed: ten are owed still.
    gcra.settle(&mut full, charge, 0, 3 * SECOND);
    assert_eq!(gcra.standing(full, 3 * SECOND).remaining, 100);
    let charge = gcra.charge(&mut full, 10, 3 * SECOND).expect("allowed");
    gcra.settle(&mut full, charge, 25, 3 * SECOND);
    assert_eq!(gcra.standing(full, 3 * SECOND).remaining, 75);
}

/// Requests as they came: when, how many tokens they were thought to have, and had, and when that was known.
#[derive(Clone, Copy, Debug)]
struct Past {
    at: Duration,
    actual: u64,
}

#[test]
fn in_no_span_of_time_more_gets_through_than_is_allowed() {
    for seed in 0..200 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (count, burst) = (rng.random_range(1..2_000), rng.random_range(1..500));
        let gcra = gcra(count, 1, burst);
        let (mut full, mut now, mut past) = (Full::default(), SECOND, Vec::new());
        for _ in 0..300 {
            now += Duration::from_nanos(rng.random_range(0..50_000_000));
            let cost = rng.random_range(1..=burst.min(20));
            if gcra.charge(&mut full, cost, now).is_ok() {
                past.push(Past { at: now, actual: cost });
            }
            // Every span that ends now.
            let mut sum = 0;
            for one in past.iter().rev() {
                sum += u128::from(one.actual);
                let span = (now - one.at).as_nanos();
                let allowed = u128::from(burst) * 1_000_000_000 + span * u128::from(count);
                assert!(sum * 1_000_000_000 <= allowed, "seed {seed}: {sum} in {span} ns");
            }
        }
    }
}

#[test]
fn nobody_gets_more_than_if_its_tokens_had_been_known_from_the_start() {
    for seed in 0..1_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (count, burst) = (rng.random_range(10..2_000), rng.random_range(50..500));
        let gcra = gcra(count, 1, burst);
        // The same requests with what they turned out to be; one that is not allowed there is charged all the same.
        let (mut ours, mut known, mut now) = (Full::default(), Full::default(), SECOND);
        let mut open: Vec<(Charge, u64)> = Vec::new();
        for _ in 0..200 {
            now += Duration::from_nanos(rng.random_range(0..100_000_000));
            let (guess, actual) = (rng.random_range(0..50), rng.random_range(0..80));
            if let Ok(charge) = gcra.charge(&mut ours, guess, now) {
                open.push((charge, actual));
                known.at = known.at.max(gcra.scaled(now)) + u128::from(actual) * gcra.period;
            }
            while !open.is_empty() && rng.random_bool(0.5) {
                let (charge, actual) = open.swap_remove(rng.random_range(0..open.len()));
                gcra.settle(&mut ours, charge, actual, now);
            }
            if open.is_empty() {
                let (ours, known) = (ours.at.max(gcra.scaled(now)), known.at.max(gcra.scaled(now)));
                assert!(ours >= known, "seed {seed}: {ours} {known}");
            }
        }
    }
}

fn ledger(requests: Option<Allowance>, tokens: Option<Allowance>) -> (Ledger, Instant) {
    let now = Instant::now();
    (Ledger::new(requests, tokens, now), now)
}

#[test]
fn each_key_has_an_allowance_of_its_own() {
    let (mut ledger, now) = ledger(Some(allowance(1, 60, 1)), None);
    ledger.charge(b"a", 0, 0, now).expect("the first of a");
    ledger.charge(b"b", 0, 0, now).expect("the first of b");
    let (excess, standing) = ledger.charge(b"a", 0, 0, now).expect_err("the second of a");
    assert_eq!(excess, Excess::Requests(Refused::For(60 * SECOND)));
    assert_eq!(standing.requests.map(|s| (s.limit, s.remaining)), Some((1, 0)));
}

#[test]
fn what_is_refused_for_its_tokens_costs_no_request() {
    let requests = Some(allowance(10, 1, 10));
    let (mut ledger, now) = ledger(requests, Some(allowance(100, 60, 100)));
    ledger.charge(b"a", 90, 90, now).expect("within");
    let (excess, standing) = ledger.charge(b"a", 20, 20, now).expect_err("too many tokens");
    assert_eq!(excess, Excess::Tokens(Refused::For(6 * SECOND)));
    assert_eq!(standing.requests.map(|s| s.remaining), Some(9));
    assert_eq!(standing.tokens.map(|s| s.remaining), Some(10));
    let (excess, _) = ledger.charge(b"a", 200, 200, now).expect_err("far too many");
    assert_eq!(excess, Excess::Tokens(Refused::Forever));
    // An answer that is only guessed is no reason to refuse it for ever.
    ledger.charge(b"b", 200, 10, now).expect("the bucket is full");
}

#[test]
fn what_is_undone_was_never_charged() {
    let requests = Some(allowance(1, 60, 2));
    let (mut ledger, now) = ledger(requests, Some(allowance(100, 60, 100)));
    let charged = ledger.charge(b"a", 50, 50, now).expect("within");
    ledger.undo(b"a", &charged, now);
    let standing = ledger.charge(b"a", 0, 0, now).expect("within").standing;
    assert_eq!(standing.requests.map(|s| s.remaining), Some(1));
    assert_eq!(standing.tokens.map(|s| s.remaining), Some(100));
}

#[test]
fn keys_that_owe_nothing_are_forgotten_and_debts_never() {
    let (mut ledger, start) = ledger(Some(allowance(1, 1, 1)), None);
    ledger.charge(b"debtor", 0, 0, start).expect("the first");
    let mut now = start;
    for index in 0..200_000 {
        // A hundred thousand a second, each of whom owes for a second: more than there is room for.
        now += Duration::from_micros(10);
        let _ = ledger.charge(index.to_string().as_bytes(), 0, 0, now);
        assert!(ledger.keys() <= MOST_KEYS);
        if index == 99_990 {
            ledger.charge(b"debtor", 0, 0, now).expect_err("it owes still");
        }
    }
    for index in 0..2_000 {
        now += SECOND;
        ledger.charge(index.to_string().as_bytes(), 0, 0, now).expect("nobody owes anything");
    }
    ledger.sweep(now - start);
    assert!(ledger.keys() <= 1, "at most the last one");
}
