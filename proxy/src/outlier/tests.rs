use std::sync::Barrier;
use std::thread;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::settings::FOR_EVER;
use super::*;

const BASE: Duration = Duration::from_secs(10);
const SETTINGS: Settings = Settings {
    failures: 5,
    base: BASE,
    max: Duration::from_secs(300),
    jitter: 0.0,
    max_share: 0.5,
};
/// One of two endpoints, the other of which serves.
const SPARED: Group = Group { all: 2, out: 0, serving: 1 };
/// One of two endpoints, the other of which is not ready.
const LAST: Group = Group { all: 2, out: 0, serving: 0 };

/// An endpoint and the time at which it lives.
struct Bench {
    outlier: Arc<Outlier>,
    now: Instant,
    others: bool,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = Instant::now();
        Self { outlier: Outlier::new(settings, 1, now), now, others: true }
    }

    /// A bench whose endpoint has just been ejected for the first time.
    fn ejected() -> Self {
        let mut bench = Self::new(SETTINGS);
        assert_eq!(bench.fail_in_a_row(5), Some(BASE));
        bench
    }

    fn group(&self) -> Group {
        if self.others { SPARED } else { LAST }
    }

    /// A verdict from outside on the last `window`.
    fn eject(&self, window: Duration) -> Option<Transition> {
        let since = self.now - window;
        self.outlier.eject(Reason::Latency, since, self.now, || self.group())
    }

    fn wait(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    fn admits(&self) -> Admit {
        self.outlier.admits(self.now)
    }

    fn acquire(&self) -> Pass {
        self.outlier.acquire(self.now).expect("admitted")
    }

    fn fail(&self, pass: Pass, failure: Failure) -> Option<Transition> {
        self.outlier.on_failure(pass, failure, self.now, || self.group())
    }

    fn send(&self, failure: Failure) -> Option<Transition> {
        self.fail(self.acquire(), failure)
    }

    fn succeed(&self) -> Option<Transition> {
        self.outlier.on_success(self.acquire(), self.now)
    }

    /// How long the last of `n` failures ejects; the ones before must change nothing.
    fn fail_in_a_row(&mut self, n: u32) -> Option<Duration> {
        for _ in 1..n {
            assert_eq!(self.send(Failure::Reset), None);
        }
        self.send(Failure::Reset).and_then(|transition| self.length(transition))
    }

    fn length(&self, transition: Transition) -> Option<Duration> {
        match transition {
            Transition::Ejected { until, .. } => Some(until - self.now),
            Transition::Restored | Transition::KeptAsLast { .. } => None,
        }
    }
}

#[test]
fn failures_in_a_row_eject_until_the_base_is_over() {
    let mut bench = Bench::ejected();
    assert!(bench.outlier.is_ejected());
    assert_eq!(bench.admits(), Admit::No);
    assert!(bench.outlier.acquire(bench.now).is_none());
    assert_eq!(bench.wait(BASE - Duration::from_nanos(1)).admits(), Admit::No);
    assert_eq!(bench.wait(Duration::from_nanos(1)).admits(), Admit::Probe);
}

#[test]
fn a_success_between_begins_anew() {
    let mut bench = Bench::new(SETTINGS);
    for _ in 0..10 {
        assert_eq!(bench.fail_in_a_row(4), None);
        assert_eq!(bench.succeed(), None);
    }
    assert_eq!(bench.admits(), Admit::Yes);
}

#[test]
fn two_refused_connections_are_enough() {
    for failures in [2, 3, 4, 5, 50] {
        let bench = Bench::new(Settings { failures, ..SETTINGS });
        assert_eq!(bench.send(Failure::ConnectRefused), None, "{failures}");
        let second = bench.send(Failure::ConnectRefused);
        let until = bench.now + BASE;
        let (reason, failure) = (Reason::Failures, Some(Failure::ConnectRefused));
        assert_eq!(second, Some(Transition::Ejected { until, reason, failure }), "{failures}");
    }
    let strict = Bench::new(Settings { failures: 0, ..SETTINGS });
    assert!(strict.send(Failure::Invalid).is_some());
}

#[test]
fn a_refusal_counts_as_half_among_other_failures() {
    let bench = Bench::new(SETTINGS);
    assert_eq!(bench.send(Failure::ConnectRefused), None);
    assert_eq!(bench.send(Failure::ConnectTimeout), None);
    assert!(bench.send(Failure::ServerError).is_some());
}

#[test]
fn a_probe_that_succeeds_restores() {
    let mut bench = Bench::ejected();
    bench.wait(BASE);
    assert_eq!(bench.succeed(), Some(Transition::Restored));
    assert_eq!(bench.admits(), Admit::Yes);
    assert!(!bench.outlier.is_ejected());
    assert!(bench.fail_in_a_row(4).is_none(), "failures before the ejection are forgotten");
}

#[test]
fn failed_probes_eject_for_longer_up_to_the_maximum() {
    let mut bench = Bench::ejected();
    let mut last = BASE;
    for times in 2..40 {
        bench.wait(last);
        let transition = bench.send(Failure::ConnectTimeout).expect("a probe has a verdict");
        last = bench.length(transition).expect("ejected");
        assert_eq!(last, (BASE * times).min(SETTINGS.max));
    }
}

#[test]
fn calm_forgets_one_ejection_for_each_base() {
    let mut bench = Bench::ejected();
    for length in [BASE, 2 * BASE] {
        bench.wait(length);
        assert!(bench.send(Failure::Reset).is_some());
    }
    // Three times ejected, restored, and 29 seconds of service: two are forgotten.
    bench.wait(3 * BASE);
    assert_eq!(bench.succeed(), Some(Transition::Restored));
    bench.wait(Duration::from_secs(29));
    assert_eq!(bench.fail_in_a_row(5), Some(2 * BASE));
    // And no less than none.
    bench.wait(2 * BASE);
    assert_eq!(bench.succeed(), Some(Transition::Restored));
    bench.wait(100 * BASE);
    assert_eq!(bench.fail_in_a_row(5), Some(BASE));
}

#[test]
fn time_under_ejection_is_not_calm() {
    let mut bench = Bench::ejected();
    bench.wait(100 * BASE);
    assert_eq!(bench.succeed(), Some(Transition::Restored));
    assert_eq!(bench.fail_in_a_row(5), Some(2 * BASE));
}

#[test]
fn exactly_one_of_many_threads_gets_the_probe() {
    for _ in 0..200 {
        let mut bench = Bench::ejected();
        bench.wait(BASE);
        let start = Barrier::new(8);
        let passes = thread::scope(|scope| {
            let acquire = || {
                start.wait();
                bench.outlier.acquire(bench.now)
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(acquire)).collect();
            threads.into_iter().filter_map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(passes.len(), 1);
        assert!(passes[0].is_probe());
        assert_eq!(bench.admits(), Admit::No);
    }
}

#[test]
fn a_probe_without_a_verdict_makes_room_for_another() {
    let mut bench = Bench::ejected();
    bench.wait(BASE);
    drop(bench.acquire());
    assert_eq!(bench.admits(), Admit::Probe);
    assert_eq!(bench.succeed(), Some(Transition::Restored));
    drop(bench.acquire());
    assert_eq!(bench.admits(), Admit::Yes);
}

/// Ejections of no length, so that every failure opens the race for the next probe at once.
#[test]
fn racing_verdicts_leave_at_most_one_probe_out() {
    let settings = Settings { failures: 1, base: Duration::ZERO, ..SETTINGS };
    let mut bench = Bench::new(settings);
    bench.wait(BASE);
    let (out, probes) = (AtomicU64::new(0), AtomicU64::new(0));
    let race = |seed: u64| {
        let mut rng = SmallRng::seed_from_u64(seed);
        for _ in 0..200_000 {
            let Some(pass) = bench.outlier.acquire(bench.now) else { continue };
            if pass.is_probe() {
                assert_eq!(out.fetch_add(1, Relaxed), 0, "two probes, seed {seed}");
                probes.fetch_add(1, Relaxed);
                out.fetch_sub(1, Relaxed);
            }
            match rng.random_range(0..3) {
                0 => drop(pass),
                1 => drop(bench.outlier.on_success(pass, bench.now)),
                _ => drop(bench.fail(pass, Failure::Reset)),
            }
        }
    };
    thread::scope(|scope| {
        let race = &race;
        for seed in 0..4 {
            scope.spawn(move || race(seed));
        }
    });
    assert!(probes.into_inner() > 1_000);
    assert_ne!(bench.admits(), Admit::No, "the slot of the probe was lost");
}

#[test]
fn a_success_that_waits_for_the_ejection_does_not_undo_it() {
    for _ in 0..50 {
        let mut bench = Bench::new(SETTINGS);
        assert_eq!(bench.fail_in_a_row(4), None);
        let (succeeds, fails) = (bench.acquire(), bench.acquire());
        let (outlier, now) = (&bench.outlier, bench.now);
        thread::scope(|scope| {
            // Asked under the lock, while the endpoint is still in service.
            let others = || {
                scope.spawn(move || outlier.on_success(succeeds, now));
                (0..100).for_each(|_| thread::yield_now());
                SPARED
            };
            assert!(outlier.on_failure(fails, Failure::Reset, now, others).is_some());
        });
        assert_eq!(bench.admits(), Admit::No);
    }
}

#[test]
fn the_probe_of_one_endpoint_is_no_verdict_on_another() {
    let mut bench = Bench::ejected();
    bench.wait(BASE);
    let other = Bench::new(SETTINGS);
    assert_eq!(other.outlier.on_success(bench.acquire(), other.now), None);
    assert_eq!(other.fail(bench.acquire(), Failure::Reset), None);
    assert_eq!(bench.admits(), Admit::Probe);
}

#[test]
fn verdicts_on_requests_from_before_the_ejection_change_nothing() {
    let mut bench = Bench::new(SETTINGS);
    let early = [bench.acquire(), bench.acquire(), bench.acquire()];
    assert_eq!(bench.fail_in_a_row(5), Some(BASE));
    let [fails, succeeds, fails_late] = early;
    assert_eq!(bench.fail(fails, Failure::Reset), None);
    assert_eq!(bench.outlier.on_success(succeeds, bench.now), None);
    assert_eq!(bench.admits(), Admit::No);
    let probe = bench.wait(BASE).acquire();
    assert_eq!(bench.fail(fails_late, Failure::Reset), None);
    assert_eq!(bench.outlier.on_success(probe, bench.now), Some(Transition::Restored));
}

fn kept(failure: Failure) -> Option<Transition> {
    Some(Transition::KeptAsLast { reason: Reason::Failures, failure: Some(failure) })
}

#[test]
fn the_last_endpoint_stays_and_says_so_once() {
    let mut bench = Bench::new(SETTINGS);
    bench.others = false;
    assert_eq!(bench.fail_in_a_row(4), None);
    let failure = Failure::ServerError;
    assert_eq!(bench.send(failure), kept(failure));
    assert_eq!(bench.send(failure), None);
    assert_eq!(bench.admits(), Admit::Yes);
    bench.others = true;
    assert!(matches!(bench.send(failure), Some(Transition::Ejected { .. })));
    bench.wait(BASE).others = false;
    assert_eq!(bench.send(failure), kept(failure), "once each time");
}

#[test]
fn a_failed_probe_of_the_last_endpoint_lets_it_in() {
    let mut bench = Bench::ejected();
    bench.wait(BASE);
    bench.others = false;
    assert_eq!(bench.send(Failure::Reset), kept(Failure::Reset));
    assert_eq!(bench.admits(), Admit::Yes);
    assert_eq!(bench.succeed(), None);
    bench.others = true;
    assert_eq!(bench.fail_in_a_row(5), Some(2 * BASE));
}

/// Which of `all` endpoints may go one after the other, when each finds the ones before out.
fn may_go(all: usize, max_share: f64) -> usize {
    let spared = |out| Group { all, out, serving: all - 1 - out }.spares_one(max_share);
    (0..all).take_while(|&out| spared(out)).count()
}

#[test]
fn a_share_of_the_endpoints_may_go_but_always_one_and_never_the_last() {
    assert_eq!([1, 2, 3, 4, 5, 10].map(|all| may_go(all, 0.5)), [0, 1, 1, 2, 2, 5]);
    assert_eq!([1, 2, 3, 10, 20].map(|all| may_go(all, 0.1)), [0, 1, 1, 1, 2]);
    assert_eq!([1, 2, 3, 10].map(|all| may_go(all, 1.0)), [0, 1, 2, 9]);
    assert_eq!([2, 10].map(|all| may_go(all, 0.0)), [1, 1]);
    assert_eq!(may_go(100, 0.29), 29, "0.29 is a little less than 29 %");
}

#[test]
fn what_is_unready_does_not_count_as_left() {
    assert!(!Group { all: 10, out: 1, serving: 0 }.spares_one(1.0));
}

#[test]
fn jitter_lengthens_an_ejection_by_a_share_at_most() {
    let settings = Settings { jitter: 0.2, ..SETTINGS };
    let lengths: Vec<_> = (0..1_000)
        .map(|seed| {
            let mut bench = Bench::new(settings);
            bench.outlier = Outlier::new(settings, seed, bench.now);
            bench.fail_in_a_row(5).unwrap()
        })
        .collect();
    assert!(lengths.iter().all(|length| (BASE..BASE.mul_f64(1.2)).contains(length)));
    let early = lengths.iter().filter(|length| **length < BASE.mul_f64(1.05)).count();
    assert!((200..300).contains(&early), "{early} of 1000 in the first quarter");
}

#[test]
fn jitter_comes_on_top_of_the_longest() {
    let settings = Settings { jitter: 0.5, ..SETTINGS };
    let longest = settings.max.mul_f64(1.25);
    assert_eq!(settings.ejection(1_000, 0.5), longest);
}

#[test]
fn a_verdict_from_outside_ejects_like_failures_do() {
    let mut bench = Bench::new(SETTINGS);
    let until = bench.now + BASE;
    let reason = Reason::Latency;
    let ejected = Some(Transition::Ejected { until, reason, failure: None });
    assert_eq!(bench.eject(Duration::ZERO), ejected);
    assert_eq!(bench.eject(Duration::ZERO), None, "it is out already");
    assert_eq!(bench.wait(BASE).admits(), Admit::Probe);
    let probe = bench.acquire();
    assert_eq!(bench.eject(Duration::ZERO), None, "half open is out");
    assert_eq!(bench.outlier.on_success(probe, bench.now), Some(Transition::Restored));
}

#[test]
fn time_that_a_verdict_looked_at_is_not_calm() {
    let window = Duration::from_secs(30);
    let mut bench = Bench::new(SETTINGS);
    for times in 1..5 {
        let transition = bench.wait(window).eject(window).unwrap();
        assert_eq!(bench.length(transition), Some(BASE * times));
        bench.wait(BASE * times);
        assert_eq!(bench.succeed(), Some(Transition::Restored));
    }
    let transition = bench.wait(window + 2 * BASE).eject(window).unwrap();
    assert_eq!(bench.length(transition), Some(3 * BASE), "two are forgotten");
}

#[test]
fn a_verdict_on_the_last_endpoint_is_reported_once_for_as_long_as_it_stands() {
    let mut bench = Bench::new(SETTINGS);
    bench.others = false;
    let kept = Some(Transition::KeptAsLast { reason: Reason::Latency, failure: None });
    assert_eq!(bench.eject(Duration::ZERO), kept);
    for _ in 0..100 {
        bench.wait(Duration::from_secs(1));
        assert_eq!(bench.succeed(), None);
        assert_eq!(bench.eject(Duration::ZERO), None);
    }
    assert_eq!(bench.wait(BASE).eject(Duration::ZERO), None);
    assert_eq!(bench.wait(BASE + Duration::from_nanos(1)).eject(Duration::ZERO), kept);
    bench.others = true;
    assert!(matches!(bench.eject(Duration::ZERO), Some(Transition::Ejected { .. })));
}

#[test]
fn one_stall_is_enough() {
    let bench = Bench::new(SETTINGS);
    assert_eq!(bench.succeed(), None);
    let until = bench.now + BASE;
    let (reason, failure) = (Reason::Stalled, Some(Failure::Stalled));
    let ejected = Transition::Ejected { until, reason, failure };
    assert_eq!(bench.send(Failure::Stalled), Some(ejected));
}

#[test]
fn others_are_asked_only_on_the_brink() {
    let bench = Bench::new(SETTINGS);
    for _ in 0..4 {
        let asked = || unreachable!("not on the brink");
        let outcome = bench.outlier.on_failure(bench.acquire(), Failure::Reset, bench.now, asked);
        assert_eq!(outcome, None);
    }
}

#[test]
fn other_settings_hold_from_the_next_failure() {
    let mut bench = Bench::new(SETTINGS);
    assert_eq!(bench.fail_in_a_row(2), None);
    bench.outlier.configure(Settings { failures: 3, base: 2 * BASE, ..SETTINGS });
    assert_eq!(bench.fail_in_a_row(1), Some(2 * BASE));
}

#[test]
fn settings_without_sense_do_not_panic() {
    let extremes = [Duration::ZERO, Duration::MAX];
    let shares = [f64::NAN, f64::INFINITY, f64::MAX, -1.0];
    let spans = extremes.into_iter().flat_map(|b| extremes.map(|m| (b, m)));
    for ((base, max), share) in spans.flat_map(|spans| shares.map(|share| (spans, share))) {
        let settings = Settings { failures: 1, base, max, jitter: share, max_share: share };
        let mut bench = Bench::new(settings);
        for _ in 0..3 {
            assert!(bench.send(Failure::Reset).is_some());
            bench.wait(2 * FOR_EVER);
            assert_eq!(bench.succeed(), Some(Transition::Restored));
        }
    }
}

/// Requests begin, end well, end badly or vanish, in any order.
#[test]
fn invariants_hold_in_any_order_of_events() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut bench = Bench::new(Settings { failures: rng.random_range(1..=6), ..SETTINGS });
        let mut under_way: Vec<Pass> = Vec::new();
        for _ in 0..1_000 {
            bench.now += Duration::from_millis(rng.random_range(0..4_000));
            bench.others = rng.random_bool(0.7);
            act(&bench, &mut under_way, &mut rng, seed);
            let probes = under_way.iter().filter(|pass| pass.is_probe()).count();
            assert!(probes <= 1, "seed {seed}: {probes} probes");
            assert!(probes == 0 || bench.admits() == Admit::No, "seed {seed}: probe and more");
        }
    }
}

fn act(bench: &Bench, under_way: &mut Vec<Pass>, rng: &mut SmallRng, seed: u64) {
    if under_way.is_empty() || rng.random_bool(0.5) {
        let admits = bench.admits();
        let pass = bench.outlier.acquire(bench.now);
        assert_eq!(pass.is_some(), admits != Admit::No, "seed {seed}");
        assert_eq!(pass.as_ref().is_some_and(Pass::is_probe), admits == Admit::Probe);
        under_way.extend(pass);
        return;
    }
    let pass = under_way.swap_remove(rng.random_range(0..under_way.len()));
    match rng.random_range(0..10) {
        0 => drop(pass),
        1..4 => check_success(bench, pass, seed),
        _ => check_failure(bench, pass, seed),
    }
}

fn check_success(bench: &Bench, pass: Pass, seed: u64) {
    let probe = pass.is_probe();
    let transition = bench.outlier.on_success(pass, bench.now);
    assert_eq!(transition, probe.then_some(Transition::Restored), "seed {seed}");
}

fn check_failure(bench: &Bench, pass: Pass, seed: u64) {
    let (was_out, probe) = (bench.outlier.is_ejected(), pass.is_probe());
    match bench.fail(pass, Failure::Reset) {
        Some(Transition::Ejected { until, .. }) => {
            let length = until - bench.now;
            assert!(bench.others, "seed {seed}: the last one was ejected");
            assert!((BASE..=SETTINGS.max).contains(&length), "seed {seed}: {length:?}");
            assert_eq!(bench.admits(), Admit::No, "seed {seed}");
        }
        Some(Transition::KeptAsLast { .. }) => {
            assert!(!bench.others, "seed {seed}");
            assert_eq!(bench.admits(), Admit::Yes, "seed {seed}");
        }
        Some(Transition::Restored) => panic!("seed {seed}: restored by a failure"),
        None => assert!(!probe || !bench.others, "seed {seed}: a probe without a verdict"),
    }
    assert!(!was_out || probe || bench.outlier.is_ejected(), "seed {seed}: let in by a failure");
}
