use super::*;

const SECOND: Duration = Duration::from_secs(1);
const SETTINGS: Settings = Settings {
    failures: 0.5,
    attempts: 20,
    window: Duration::from_secs(10),
    base: Duration::from_secs(5),
    max: Duration::from_secs(60),
    jitter: 0.0,
};

/// A backend of three endpoints and the time at which it lives.
struct Bench {
    breaker: Breaker,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { breaker: Breaker::new(SETTINGS, 1, now), now }
    }

    /// One that a full window of failures has opened.
    fn open() -> Self {
        let bench = Self::new();
        let transitions = bench.fail(20, Failure::Reset);
        assert!(matches!(transitions[..], [Transition::Ejected { .. }]), "{transitions:?}");
        bench
    }

    fn wait(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    fn pass(&self) -> Pass {
        self.breaker.acquire(self.now).expect("admitted")
    }

    /// So many attempts that are let in now fail; what changed.
    fn fail(&self, count: usize, failure: Failure) -> Vec<Transition> {
        let passes: Vec<_> = (0..count).map(|_| self.pass()).collect();
        let failed = |pass| self.breaker.failed(pass, failure, 3, self.now);
        passes.into_iter().filter_map(failed).collect()
    }

    fn succeed(&self, count: usize) -> Vec<Transition> {
        let passes: Vec<_> = (0..count).map(|_| self.pass()).collect();
        passes.into_iter().filter_map(|pass| self.breaker.succeeded(pass, self.now)).collect()
    }

    fn circuit(&self) -> Circuit {
        self.breaker.circuit(self.now)
    }
}

#[test]
fn half_of_enough_attempts_open_it_for_its_base() {
    let mut bench = Bench::new();
    assert_eq!(bench.succeed(10), []);
    assert_eq!(bench.fail(9, Failure::ServerError), []);
    assert_eq!(bench.circuit(), Circuit::Closed);
    assert_eq!(bench.fail(1, Failure::ServerError).len(), 1);
    assert_eq!(bench.circuit(), Circuit::Open(SETTINGS.base));
    assert!(bench.breaker.acquire(bench.now).is_none() && !bench.breaker.is_closed());
    bench.wait(SETTINGS.base - Duration::from_nanos(1));
    assert!(bench.breaker.acquire(bench.now).is_none());
    bench.wait(Duration::from_nanos(1));
    assert_eq!(bench.circuit(), Circuit::HalfOpen);
    assert!(bench.pass().is_probe());
}

#[test]
fn a_lesser_share_does_not_open_it() {
    let mut bench = Bench::new();
    for _ in 0..50 {
        assert_eq!(bench.succeed(11), []);
        assert_eq!(bench.fail(10, Failure::FirstByteTimeout), []);
        bench.wait(SECOND);
    }
}

#[test]
fn what_is_older_than_the_window_does_not_count() {
    let mut bench = Bench::new();
    assert_eq!(bench.fail(19, Failure::Reset), []);
    bench.wait(SETTINGS.window);
    assert_eq!(bench.fail(19, Failure::Reset), []);
    assert_eq!(bench.fail(1, Failure::Reset).len(), 1);
}

#[test]
fn two_failed_connections_for_each_endpoint_open_it_at_once() {
    for failure in [Failure::ConnectRefused, Failure::ConnectTimeout] {
        let bench = Bench::new();
        assert_eq!(bench.fail(5, failure), []);
        assert_eq!(bench.fail(1, failure).len(), 1);
    }
}

#[test]
fn one_that_can_be_connected_to_is_enough_to_keep_it_closed() {
    let bench = Bench::new();
    for _ in 0..3 {
        assert_eq!(bench.fail(5, Failure::ConnectRefused), []);
        bench.breaker.reached();
    }
}

#[test]
fn a_probe_that_succeeds_closes_it_and_all_is_forgotten() {
    let mut bench = Bench::open();
    bench.wait(SETTINGS.base);
    assert_eq!(bench.succeed(1), [Transition::Restored]);
    assert_eq!(bench.circuit(), Circuit::Closed);
    assert_eq!(bench.fail(19, Failure::Reset), [], "the failures of before are gone");
    assert_eq!(bench.fail(1, Failure::Reset).len(), 1);
}

#[test]
fn one_probe_at_a_time_and_a_failed_one_opens_it_for_longer() {
    let mut bench = Bench::open();
    let mut open = SETTINGS.base;
    for times in 2..30 {
        bench.wait(open);
        let probe = bench.pass();
        assert!(probe.is_probe() && bench.breaker.acquire(bench.now).is_none());
        assert!(bench.breaker.failed(probe, Failure::Reset, 3, bench.now).is_some());
        open = (SETTINGS.base * times).min(SETTINGS.max);
        assert_eq!(bench.circuit(), Circuit::Open(open));
    }
}

#[test]
fn a_probe_that_nobody_waits_for_makes_room_for_another() {
    let mut bench = Bench::open();
    bench.wait(SETTINGS.base);
    drop(bench.pass());
    assert_eq!(bench.circuit(), Circuit::HalfOpen);
    assert!(bench.pass().is_probe());
}

#[test]
fn verdicts_of_before_change_nothing_while_it_is_open() {
    let bench = Bench::new();
    let (early, late) = (bench.pass(), bench.pass());
    assert_eq!(bench.fail(20, Failure::Reset).len(), 1);
    assert_eq!(bench.breaker.succeeded(early, bench.now), None);
    assert_eq!(bench.breaker.failed(late, Failure::Reset, 3, bench.now), None);
    assert_eq!(bench.circuit(), Circuit::Open(SETTINGS.base));
}

#[test]
fn other_settings_are_taken_over_and_an_open_one_keeps_its_end() {
    let mut bench = Bench::open();
    bench.breaker.configure(Settings { attempts: 2, base: 10 * SECOND, ..SETTINGS });
    assert_eq!(bench.circuit(), Circuit::Open(SETTINGS.base));
    bench.wait(SETTINGS.base);
    assert_eq!(bench.succeed(1), [Transition::Restored]);
    assert_eq!(bench.fail(2, Failure::Reset).len(), 1);
}
