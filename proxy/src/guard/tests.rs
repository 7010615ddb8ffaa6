//! What the guard promises, on seeded worlds: how soon a bad arm is out and that a good one stays.
//!
//! Run with `--nocapture` for the tables of detection delays.

mod world;

use std::time::{Duration, Instant};

use world::{Arm, Latencies, Run, Slower, World, run, table};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The defaults of the configuration.
fn defaults() -> Settings {
    Settings { errors: 0.01, first_byte: Some(0.1), gap: None, false_alarm: 0.01, steps: None }
}

fn failing(errors: f64) -> Arm<'static> {
    Arm { errors, latencies: None }
}

/// That 95 of 100 worlds are found out within so many requests of the guarded arm.
fn assert_found(name: &str, world: &World<'_>, measure: Measure, within: u64) {
    assert_found_in(100, name, world, measure, within);
}

fn assert_found_in(seeds: u64, name: &str, world: &World<'_>, measure: Measure, within: u64) {
    let settings = Settings { gap: world.as_gap.then_some(0.1), ..defaults() };
    let runs: Vec<Run> = (0..seeds).map(|seed| run(&settings, world, seed, 4 * within)).collect();
    println!("{}", table(name, &runs));
    let found = runs.iter().filter(|run| run.found(measure).is_some_and(|after| after <= within));
    let found = found.count() as u64;
    assert!(found * 100 >= seeds * 95, "{name}: {found} of {seeds} within {within}");
}

fn assert_quiet(name: &str, world: &World<'_>, requests: u64, seeds: u64) {
    let guarded = world.guarded_of(requests);
    let alarmed = |seed: &u64| run(&defaults(), world, *seed, guarded).is_found();
    let alarms: Vec<_> = (0..seeds).filter(alarmed).collect();
    println!("{name:<44} {} of {seeds} alarms", alarms.len());
    assert!(alarms.len() <= 1, "{name}: seeds {alarms:?}");
}

#[test]
fn two_points_more_errors_are_found() {
    for (share, base, within) in [
        (0.5, 0.01, 12_500),
        (0.5, 0.005, 9_500),
        (0.1, 0.01, 9_000),
        (0.1, 0.005, 6_500),
        (0.01, 0.01, 7_500),
    ] {
        let world = World::new(share, failing(base), failing(base + 0.02));
        let name = format!("{share} errors {base} + 0.02");
        assert_found(&name, &world, Measure::Errors, within);
    }
}

#[test]
fn grosser_failures_are_found_sooner() {
    for (share, errors, within) in [
        (0.5, 0.06, 1_500),
        (0.5, 0.2, 220),
        (0.5, 1.0, 60),
        (0.1, 0.06, 850),
        (0.1, 0.2, 125),
        (0.1, 1.0, 25),
        (0.01, 0.06, 700),
        (0.01, 0.2, 110),
        (0.01, 1.0, 15),
    ] {
        let world = World::new(share, failing(0.01), failing(errors));
        let name = format!("{share} errors 0.01 -> {errors}");
        assert_found(&name, &world, Measure::Errors, within);
    }
}

#[test]
fn first_bytes_thirty_percent_later_are_found() {
    for (sigma, share, within) in [
        (0.5, 0.5, 1_150),
        (0.5, 0.1, 600),
        (0.5, 0.01, 500),
        (1.0, 0.5, 4_500),
        (1.0, 0.1, 2_300),
        (1.0, 0.01, 1_900),
    ] {
        assert_slower_found(sigma, share, Slower::All(1.3), within);
    }
}

#[test]
fn a_tail_thirty_percent_longer_is_found() {
    for (sigma, share, within) in [
        (0.5, 0.5, 6_500),
        (0.5, 0.1, 3_200),
        (0.5, 0.01, 2_700),
        (1.0, 0.5, 21_000),
        (1.0, 0.1, 11_500),
    ] {
        assert_slower_found(sigma, share, Slower::Tail(1.3), within);
    }
}

fn assert_slower_found(sigma: f64, share: f64, slower: Slower, within: u64) {
    let usual = Latencies::lognormal(sigma);
    let slow = usual.slower(slower);
    let world = World::new(share, Arm::slow(&usual), Arm::slow(&slow));
    let name = format!("{share} first byte, sigma {sigma}, {slower:?}");
    assert_found(&name, &world, Measure::FirstByte, within);
}

#[test]
fn slower_chunks_are_found_by_their_gap() {
    let usual = Latencies::lognormal(0.5);
    let slow = usual.slower(Slower::All(1.3));
    let mut world = World::new(0.1, Arm::slow(&usual), Arm::slow(&slow));
    world.as_gap = true;
    assert_found("0.1 gap, sigma 0.5, All(1.3)", &world, Measure::Gap, 600);
    // Not when gaps are not compared, which is the default.
    assert_quiet("0.1 gap not compared", &world, 20_000, 20);
}

#[test]
fn a_change_after_a_long_good_time_is_found() {
    let usual = Latencies::lognormal(0.7);
    let slow = usual.slower(Slower::All(1.3));
    let good = Arm { errors: 0.01, latencies: Some(&usual) };
    for (name, changed, measure, within) in [
        ("late errors 0.01 -> 0.03", Arm { errors: 0.03, ..good }, Measure::Errors, 15_000),
        ("late errors 0.01 -> 1", Arm { errors: 1.0, ..good }, Measure::Errors, 45),
        ("late All(1.3)", Arm { latencies: Some(&slow), ..good }, Measure::FirstByte, 2_300),
    ] {
        let mut world = World::new(0.2, good, changed);
        world.good_for = 20_000;
        let name = format!("0.2 {name}, after 20,000 good ones");
        assert_found_in(20, &name, &world, measure, within);
    }
}

#[test]
fn equal_arms_stay() {
    let latencies = Latencies::lognormal(1.0);
    let arm = Arm { errors: 0.01, latencies: Some(&latencies) };
    for share in [0.5, 0.1, 0.01] {
        let world = World::new(share, arm, arm);
        assert_quiet(&format!("{share} equal"), &world, 100_000, 100);
    }
}

#[test]
fn equal_arms_that_drift_and_fail_together_stay() {
    let latencies = Latencies::lognormal(0.7);
    let arm = Arm { errors: 0.01, latencies: Some(&latencies) };
    for share in [0.5, 0.1, 0.01] {
        let mut world = World::new(share, arm, arm);
        world.drifting = true;
        assert_quiet(&format!("{share} drifting together"), &world, 60_000, 40);
    }
}

/// The very edge of what is tolerated: here the bound on false alarms is nearly used up.
#[test]
fn arms_exactly_as_much_worse_as_is_tolerated_stay_as_often_as_promised() {
    let usual = Latencies::lognormal(0.7);
    let slow = usual.slower(Slower::All(1.1));
    let settings = Settings { false_alarm: 0.1, ..defaults() };
    for share in [0.5, 0.1] {
        let stable = Arm { errors: 0.02, latencies: Some(&usual) };
        let edge = Arm { errors: 0.03, latencies: Some(&slow) };
        let world = World::new(share, stable, edge);
        let alarms = (0..300).filter(|seed| run(&settings, &world, *seed, 2_000).is_found());
        let alarms = alarms.count();
        println!("{share} at the edge, false_alarm 0.1: {alarms} of 300 alarms");
        assert!(alarms <= 30, "{share}: {alarms} of 300");
    }
}

#[test]
fn one_incident_is_one_piece_of_evidence() {
    let start = Instant::now();
    let mut guard = Guard::new(defaults(), start);
    seconds_of_peace(&mut guard, start, 200);
    // An engine dies with fifty requests at work.
    let crash = start + SECOND * 201;
    for _ in 0..50 {
        assert_eq!(None, guard.observe(Side::Against, &fine(crash), crash));
        assert_eq!(None, guard.observe(Side::Guarded, &failed(crash), crash));
    }
    // It does not come back.
    let failures = (1..100).map(|i| {
        let now = crash + SECOND * i;
        guard.observe(Side::Against, &fine(now), now);
        guard.observe(Side::Guarded, &failed(now), now)
    });
    let until = failures.take_while(Option::is_none).count();
    assert!((5..30).contains(&until), "{until} s");
}

#[test]
fn a_rollback_is_final_and_says_why() {
    let start = Instant::now();
    let mut guard = Guard::new(defaults(), start);
    let mut verdicts = Vec::new();
    for i in 0..1_000_u32 {
        let now = start + SECOND * i;
        let against = Sample { failed: i % 100 == 50, ..Sample::of(now) };
        verdicts.extend(guard.observe(Side::Against, &against, now));
        let guarded = Sample { failed: i % 2 == 0, ..Sample::of(now) };
        verdicts.extend(guard.observe(Side::Guarded, &guarded, now));
    }
    let [Verdict::RolledBack(finding)] = verdicts[..] else { panic!("{verdicts:?}") };
    assert_eq!((Measure::Errors, None), (finding.measure, finding.quantile));
    assert!((0.3..0.7).contains(&finding.guarded) && finding.against < 0.05, "{finding:?}");
    assert!(finding.evidence >= finding.alarm && finding.alarm == 200.0, "{finding:?}");
    let report = guard.report(start);
    assert_eq!(Some(finding), report.rolled_back);
    assert!(guard.is_rolled_back() && report.guarded.requests < 1_000);
}

#[test]
fn a_finding_reads_well() {
    let errors = Finding {
        measure: Measure::Errors,
        quantile: None,
        guarded: 0.031,
        against: 0.0095,
        requests: 2841,
        evidence: 203.0,
        alarm: 200.0,
    };
    assert_eq!("errors: 3.10% against 0.95% in 2841 requests", errors.to_string());
    let slower = Finding {
        measure: Measure::FirstByte,
        quantile: Some(0.975),
        guarded: 0.612,
        against: 0.48,
        ..errors
    };
    let text = slower.to_string();
    assert_eq!("first_byte: p97.5 612 ms against 480 ms in 2841 requests", text);
}

#[test]
fn a_late_first_byte_is_told_in_seconds_at_a_quantile() {
    let usual = Latencies::lognormal(0.5);
    let slow = usual.slower(Slower::All(2.0));
    let world = World::new(0.1, Arm::slow(&usual), Arm::slow(&slow));
    let Run::RolledBack { finding, .. } = run(&defaults(), &world, 1, 1_000) else {
        panic!("not found")
    };
    let ratio = finding.guarded / finding.against;
    assert_eq!(Measure::FirstByte, finding.measure);
    assert!(finding.quantile.is_some() && (1.4..3.0).contains(&ratio), "{finding:?}");
    assert!((0.1..10.0).contains(&finding.against), "{finding:?}");
}

fn climbing(weights: &[u32]) -> Settings {
    let steps = Steps { weights: weights.to_vec(), every: 600 * SECOND, requests: 500 };
    Settings { steps: Some(steps), ..defaults() }
}

fn fine(now: Instant) -> Sample {
    Sample { first_byte: Some(SECOND), ..Sample::of(now) }
}

fn failed(now: Instant) -> Sample {
    Sample { failed: true, ..Sample::of(now) }
}

/// Feeds one request of either arm each second, all well.
fn seconds_of_peace(guard: &mut Guard, from: Instant, seconds: u32) -> Vec<(u32, Verdict)> {
    let mut verdicts = Vec::new();
    for i in 1..=seconds {
        let now = from + SECOND * i;
        assert_eq!(None, guard.observe(Side::Against, &fine(now), now));
        verdicts.extend(guard.observe(Side::Guarded, &fine(now), now).map(|verdict| (i, verdict)));
    }
    verdicts
}

#[test]
fn a_step_needs_time_and_requests() {
    let start = Instant::now();
    let mut guard = Guard::new(climbing(&[1, 25, 100]), start);
    assert_eq!(Some(1), guard.weight());
    let next = guard.report(start + 100 * SECOND).next;
    let missing = NextStep { to: 25, wait: 500 * SECOND, requests: 500, held_by: None };
    assert_eq!(Some(missing), next);

    // The requests are there after 500 s, the time after 600 s.
    let verdicts = seconds_of_peace(&mut guard, start, 1_199);
    assert_eq!(vec![(600, Verdict::Stepped { from: 1, to: 25 })], verdicts);
    assert_eq!(Some(25), guard.weight());

    // The time is there after 600 s, the requests only later.
    let mut guard = Guard::new(climbing(&[1, 25]), start);
    let late = start + 6_000 * SECOND;
    let verdicts = seconds_of_peace(&mut guard, late, 2_000);
    assert_eq!(vec![(500, Verdict::Stepped { from: 1, to: 25 })], verdicts);
    assert_eq!((Some(25), None), (guard.weight(), guard.report(late).next));
}

#[test]
fn evidence_holds_a_step_back_until_it_is_gone() {
    let start = Instant::now();
    let mut guard = Guard::new(climbing(&[1, 25]), start);
    seconds_of_peace(&mut guard, start, 500);
    let held = |guard: &Guard, now| guard.report(now).next.and_then(|next| next.held_by);
    let mut now = start + SECOND * 500;
    while held(&guard, now).is_none() {
        now += SECOND;
        assert_eq!(None, guard.observe(Side::Against, &fine(now), now));
        assert_eq!(None, guard.observe(Side::Guarded, &failed(now), now));
    }
    assert_eq!(Some(Measure::Errors), held(&guard, now));

    // Time and requests are there, but not until the evidence has gone.
    now = start + SECOND * 600;
    let verdicts = seconds_of_peace(&mut guard, now, 1_000);
    let [(after, Verdict::Stepped { from: 1, to: 25 })] = verdicts[..] else {
        panic!("{verdicts:?}")
    };
    assert!(after > 1, "{after} s");
}

#[test]
fn requests_begun_before_a_step_are_not_judged() {
    let start = Instant::now();
    let mut guard = Guard::new(climbing(&[1, 25]), start);
    seconds_of_peace(&mut guard, start, 600);
    assert_eq!(Some(25), guard.weight());
    let judged = |guard: &Guard| guard.report(start).guarded;
    let before = judged(&guard);
    let now = start + SECOND * 700;
    guard.observe(Side::Guarded, &failed(start + SECOND * 600), now);
    assert_eq!(before, judged(&guard));
    guard.observe(Side::Guarded, &failed(start + SECOND * 602), now);
    assert_eq!((601, 1), (judged(&guard).requests, judged(&guard).failed));
}

#[test]
fn equal_arms_climb_to_the_top_and_bad_ones_do_not() {
    let settings = climbing(&[1, 5, 25, 50, 100]);
    let climb = |errors| -> Vec<_> {
        let world = World::new(0.01, failing(0.01), failing(errors));
        (0..50).map(|seed| world::climb(&settings, &world, seed)).collect()
    };
    // At 50 requests a second: 1000 s until 500 requests of 1 %, 600 s for each other step.
    let least = 2_800 * SECOND;
    let equal = climb(0.01);
    let top = equal.iter().filter(|end| end.weight == 100 && end.after < least * 5 / 4).count();
    println!("equal: {top} of 50 at the top in about the least time");
    assert!(top >= 48, "{equal:?}");
    let bad = climb(0.06);
    let stopped = bad.iter().filter(|end| end.rolled_back && end.weight <= 5).count();
    println!("6 % errors: {stopped} of 50 stopped at 1 % or 5 %");
    assert!(stopped >= 48, "{bad:?}");
}

/// After a step up the guarded arm's first answers are those that fail at once: no evidence, if
/// only requests are judged that began after it.
#[test]
fn failures_that_end_early_are_no_evidence() {
    let alarms = |told| {
        let alarmed = |seed: &u64| world::early_failures(&defaults(), *seed, told);
        (0..10).filter(alarmed).collect::<Vec<_>>()
    };
    let (told, untold) = (alarms(true), alarms(false));
    assert!(told.is_empty(), "{told:?}");
    assert!(untold.len() > 5, "the world is too kind: {untold:?}");
}

#[test]
fn a_report_tells_everything() {
    let start = Instant::now();
    let settings = Settings { gap: Some(0.2), ..defaults() };
    let mut guard = Guard::new(settings, start);
    for millis in 1..=100 {
        let first_byte = Some(Duration::from_millis(millis));
        guard.observe(Side::Against, &Sample { first_byte, ..Sample::of(start) }, start);
    }
    let report = guard.report(start);
    let quantiles = report.against.first_byte.unwrap();
    assert_eq!(
        (100, [51, 91, 100].map(Duration::from_millis)),
        (quantiles.of, [quantiles.p50, quantiles.p90, quantiles.p99])
    );
    assert_eq!((None, None), (report.against.gap, report.guarded.first_byte));
    let tolerated: Vec<_> = report.measures.iter().map(|of| (of.measure, of.tolerated)).collect();
    let expected = vec![(Measure::Errors, 0.01), (Measure::FirstByte, 0.1), (Measure::Gap, 0.2)];
    assert_eq!(expected, tolerated);
    assert!(report.measures.iter().all(|of| of.alarm == 300.0 && of.evidence == 1.0));
    assert_eq!((None, None), (report.weight, report.next));
}

#[test]
fn nothing_is_allocated_for_a_request() {
    let start = Instant::now();
    let mut guard = Guard::new(Settings { gap: Some(0.1), ..defaults() }, start);
    let info = allocation_counter::measure(|| {
        for i in 0..5_000_u32 {
            let time = Some(Duration::from_micros(u64::from(i * 7_919 % 10_007) * 100));
            let now = start + SECOND / 50 * i;
            let sample = Sample { began: now, failed: i % 50 == 0, first_byte: time, gap: time };
            let side = if i % 3 == 0 { Side::Guarded } else { Side::Against };
            assert_eq!(None, guard.observe(side, &sample, now));
        }
    });
    assert_eq!(0, info.count_total);
}
