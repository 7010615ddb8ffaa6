//! Passive ejection: an endpoint that keeps failing is left alone for a while.
//!
//! One [`Outlier`] per endpoint, fed with how each attempt ended. It is a circuit breaker of three
//! states:
//!
//! ```text
//!            failures in a row                      ejection is over
//!   closed ────────────────────► ejected ──────────────────────────────► half open
//!     ▲                             ▲                                     │ one request
//!     │            success          └──────────────── failure ────────────┤ passes as a probe
//!     └───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! **How many failures.** [`Settings::failures`] in a row, any success begins anew. A refused
//! connection counts as half of them, so two in a row are enough: it is the kernel's own word that
//! nobody listens there, while a timeout, a reset or a 5xx may be load or one bad request. One
//! alone is not enough, because a server that restarts, or whose accept queue overflows for a
//! moment, refuses too and is back within milliseconds.
//!
//! **For how long.** `base × times`, at most `max`; `times` counts the ejections of this endpoint,
//! failed probes included, and forgets one for each `base` that passes in service without a
//! failure. (The form is Envoy's, there `base_ejection_time` 30 s and `max_ejection_time` 300 s;
//! there a timer does the forgetting, here it is reckoned at the next failure.)
//!
//! **Never the last.** An endpoint is ejected only when the caller says that another one is
//! available; otherwise it stays in, the fact is reported once, and the next failure asks again.
//! Two endpoints that fail in the same instant may each name the other, and others may become
//! unready later. A caller that finds no endpoint at all should therefore look once more without
//! regard to ejections ([`Pass::ordinary`]): a poor endpoint beats a sure 503.
//!
//! The good case costs one relaxed atomic load: a request that succeeds at an endpoint without
//! failures touches nothing. Everything else takes a mutex for a few instructions.
//!
//! Left out: rates of success and latencies compared between endpoints, and active checks
//! (`health`).

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The longest ejection, whatever the settings say: a year. Keeps every sum of times in range.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// When and for how long to eject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that eject. Zero is as good as one.
    pub failures: u32,
    /// The first ejection, and the time without trouble after which one ejection is forgotten.
    pub base: Duration,
    /// The longest ejection. Wins over `base`.
    pub max: Duration,
}

impl Settings {
    /// How much of [`failures`](Self::failures) one failure of this kind makes up.
    const fn points(&self, failure: Failure) -> u32 {
        match failure {
            Failure::ConnectRefused => self.failures.div_ceil(2),
            Failure::ConnectTimeout
            | Failure::Reset
            | Failure::FirstByteTimeout
            | Failure::ServerError
            | Failure::Invalid => 1,
        }
    }

    fn ejection(&self, times: u32) -> Duration {
        self.base.saturating_mul(times).min(self.max).min(FOR_EVER)
    }
}

/// How an attempt failed, as far as the endpoint is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Nobody listens: the connection was refused.
    ConnectRefused,
    /// No connection within the connect deadline.
    ConnectTimeout,
    /// The connection died before the answer was complete.
    Reset,
    /// No byte of an answer within the first-byte deadline.
    FirstByteTimeout,
    /// An answer that says so: 500, 502, 504. (429 and 503 mean busy, which is no failure.)
    ServerError,
    /// An answer that is not HTTP.
    Invalid,
}

impl Failure {
    /// The word for logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Reset => "reset",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::ServerError => "server_error",
            Self::Invalid => "invalid",
        }
    }
}

/// Whether an endpoint takes a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Like any other.
    Yes,
    /// As the one request that tries whether the endpoint is back; [`Outlier::acquire`] makes it
    /// that one.
    Probe,
    /// Ejected, or being probed by another request.
    No,
}

/// What a verdict changed; for the log and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The endpoint is left alone.
    Ejected {
        /// When a probe may try it.
        until: Instant,
        /// The last of the failures.
        reason: Failure,
    },
    /// A probe succeeded: the endpoint is back.
    Restored,
    /// The endpoint would be ejected, but nothing else is available. Reported once until it
    /// succeeds or is ejected.
    KeptAsLast {
        /// The last of the failures.
        reason: Failure,
    },
}

/// The ejection state of one endpoint.
#[derive(Debug)]
pub struct Outlier {
    /// From where [`Gate`] counts time.
    origin: Instant,
    /// A [`Gate`]. Written under `record`, but for the slot of the probe, which is claimed by
    /// compare-and-swap and belongs to whoever claimed it until the verdict.
    gate: AtomicU64,
    record: Mutex<Record>,
}

/// The state as far as requests need to see it, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Closed, and the last attempt succeeded.
    Calm,
    /// Closed, with failures counted.
    Failing,
    /// Half open, and a probe is on its way.
    Probing,
    /// Ejected until this long after the origin; half open from then on.
    Ejected(Duration),
}

impl Gate {
    /// Half open since for ever.
    const HALF_OPEN: Self = Self::Ejected(Duration::ZERO);

    /// Three small numbers, and the nanoseconds of an ejection's end above them. 2⁶⁴ ns are 584
    /// years.
    fn encode(self) -> u64 {
        match self {
            Self::Calm => 0,
            Self::Failing => 1,
            Self::Probing => 2,
            Self::Ejected(end) => u64::try_from(end.as_nanos()).unwrap_or(u64::MAX).max(3),
        }
    }

    const fn decode(word: u64) -> Self {
        match word {
            0 => Self::Calm,
            1 => Self::Failing,
            2 => Self::Probing,
            end => Self::Ejected(Duration::from_nanos(end)),
        }
    }
}

/// What only verdicts need.
#[derive(Debug)]
struct Record {
    settings: Settings,
    /// [`Settings::points`] of the failures since the last success; none while ejected.
    points: u32,
    /// Ejections not yet forgotten.
    times: u32,
    /// When the endpoint was last restored or last failed while in service.
    calm_since: Instant,
    /// That it is kept as the last one has been reported.
    kept: bool,
}

/// The right to send one request to an endpoint, and the duty to say how it ended.
///
/// Give it to [`Outlier::on_success`] or [`Outlier::on_failure`] of the same endpoint: a probe at
/// the first byte of the answer, since nobody else is let in before; an ordinary request at the
/// end, so that an endpoint whose answers break off is found out. A probe that is dropped without a
/// verdict, because the client went away, makes room for another one.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    probe: Option<Probe>,
}

impl Pass {
    /// A pass for a request that is sent whatever the state is, because nothing else is left. While
    /// the endpoint is ejected its verdict changes nothing.
    pub const fn ordinary() -> Self {
        Self { probe: None }
    }

    /// Whether this request is the probe of a half-open endpoint.
    pub const fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// A probe of another endpoint says nothing about this one.
    fn is_probe_of(&self, outlier: &Outlier) -> bool {
        self.probe.as_ref().is_some_and(|probe| ptr::eq(&raw const *probe.of, outlier))
    }

    /// The verdict has been taken and the gate shows it.
    fn settle(mut self) {
        if let Some(probe) = &mut self.probe {
            probe.settled = true;
        }
    }
}

/// The slot of the probe, given back on drop unless a verdict has settled what comes next.
#[derive(Debug)]
struct Probe {
    of: Arc<Outlier>,
    settled: bool,
}

impl Drop for Probe {
    fn drop(&mut self) {
        if !self.settled {
            self.of.set_gate(Gate::HALF_OPEN);
        }
    }
}

impl Outlier {
    /// An endpoint in service, without any failure.
    pub fn new(settings: Settings, now: Instant) -> Arc<Self> {
        let record = Record { settings, points: 0, times: 0, calm_since: now, kept: false };
        Arc::new(Self {
            origin: now,
            gate: AtomicU64::new(Gate::Calm.encode()),
            record: Mutex::new(record),
        })
    }

    /// Other settings from now on, after a reload. An ejection under way keeps its end.
    pub fn configure(&self, settings: Settings) {
        self.record.lock().settings = settings;
    }

    /// Whether a request may be sent now. Claims nothing: for the balancer, which looks at many
    /// endpoints. One atomic load.
    pub fn admits(&self, now: Instant) -> Admit {
        match self.gate() {
            Gate::Calm | Gate::Failing => Admit::Yes,
            Gate::Ejected(end) if self.elapsed(now) >= end => Admit::Probe,
            Gate::Probing | Gate::Ejected(_) => Admit::No,
        }
    }

    /// Whether the endpoint is out of service: ejected or half open.
    pub fn is_ejected(&self) -> bool {
        !matches!(self.gate(), Gate::Calm | Gate::Failing)
    }

    /// The right to send one request now, for the endpoint that the balancer chose. `None` when it
    /// is ejected or another request took the probe in between; then choose again.
    pub fn acquire(self: &Arc<Self>, now: Instant) -> Option<Pass> {
        match self.gate() {
            Gate::Calm | Gate::Failing => Some(Pass::ordinary()),
            open @ Gate::Ejected(end) if self.elapsed(now) >= end => self.claim_probe(open),
            Gate::Probing | Gate::Ejected(_) => None,
        }
    }

    /// The request succeeded, as far as the endpoint is concerned.
    pub fn on_success(&self, pass: Pass, now: Instant) -> Option<Transition> {
        if pass.is_probe_of(self) {
            self.restore(&mut self.record.lock(), now);
            pass.settle();
            return Some(Transition::Restored);
        }
        if self.gate() == Gate::Failing {
            self.begin_anew(&mut self.record.lock());
        }
        None
    }

    /// The request failed. `others_available` is asked only when the endpoint is about to be
    /// ejected: is there another endpoint of this backend that is ready and not ejected? It must
    /// not give a verdict on this one.
    pub fn on_failure(
        &self,
        pass: Pass,
        failure: Failure,
        now: Instant,
        others_available: impl FnOnce() -> bool,
    ) -> Option<Transition> {
        let mut record = self.record.lock();
        let probe = pass.is_probe_of(self);
        if probe {
            record.points = record.settings.failures;
        } else if self.is_ejected() {
            // Sent before the ejection; its cause is known by now.
            return None;
        } else {
            self.count(&mut record, failure, now);
        }
        let transition = if record.points < record.settings.failures {
            None
        } else if others_available() {
            Some(self.eject(&mut record, failure, now))
        } else {
            self.keep(&mut record, failure, now)
        };
        if probe {
            pass.settle();
        }
        transition
    }

    /// Takes the slot of the probe, unless someone else does first.
    fn claim_probe(self: &Arc<Self>, open: Gate) -> Option<Pass> {
        let (from, to) = (open.encode(), Gate::Probing.encode());
        self.gate.compare_exchange(from, to, Relaxed, Relaxed).ok()?;
        Some(Pass { probe: Some(Probe { of: Arc::clone(self), settled: false }) })
    }

    fn restore(&self, record: &mut Record, now: Instant) {
        record.calm_since = now;
        self.set_gate(Gate::Calm);
    }

    /// Forgets the failures, unless the endpoint was ejected for them a moment ago.
    fn begin_anew(&self, record: &mut Record) {
        if !self.is_ejected() {
            (record.points, record.kept) = (0, false);
            self.set_gate(Gate::Calm);
        }
    }

    /// Counts a failure in service, after forgetting the ejections that earlier calm has earned.
    fn count(&self, record: &mut Record, failure: Failure, now: Instant) {
        let calm = now.saturating_duration_since(record.calm_since);
        let forgotten = calm.as_nanos().checked_div(record.settings.base.as_nanos());
        let forgotten = forgotten.map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX));
        record.times = record.times.saturating_sub(forgotten);
        record.calm_since = now;
        record.points = record.points.saturating_add(record.settings.points(failure));
        self.set_gate(Gate::Failing);
    }

    fn eject(&self, record: &mut Record, reason: Failure, now: Instant) -> Transition {
        (record.points, record.kept) = (0, false);
        record.times = record.times.saturating_add(1);
        let ejection = record.settings.ejection(record.times);
        self.set_gate(Gate::Ejected(self.elapsed(now) + ejection));
        Transition::Ejected { until: now + ejection, reason }
    }

    /// Stays in, or comes back in, with all its failures: the next one asks again.
    fn keep(&self, record: &mut Record, reason: Failure, now: Instant) -> Option<Transition> {
        record.calm_since = now;
        self.set_gate(Gate::Failing);
        let first = !std::mem::replace(&mut record.kept, true);
        first.then_some(Transition::KeptAsLast { reason })
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.origin)
    }

    fn gate(&self) -> Gate {
        Gate::decode(self.gate.load(Relaxed))
    }

    fn set_gate(&self, gate: Gate) {
        self.gate.store(gate.encode(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const BASE: Duration = Duration::from_secs(10);
    const SETTINGS: Settings = Settings { failures: 5, base: BASE, max: Duration::from_secs(300) };

    /// An endpoint and the time at which it lives.
    struct Bench {
        outlier: Arc<Outlier>,
        now: Instant,
        others: bool,
    }

    impl Bench {
        fn new(settings: Settings) -> Self {
            let now = Instant::now();
            Self { outlier: Outlier::new(settings, now), now, others: true }
        }

        /// A bench whose endpoint has just been ejected for the first time.
        fn ejected() -> Self {
            let mut bench = Self::new(SETTINGS);
            assert_eq!(bench.fail_in_a_row(5), Some(BASE));
            bench
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
            self.outlier.on_failure(pass, failure, self.now, || self.others)
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
            let reason = Failure::ConnectRefused;
            assert_eq!(second, Some(Transition::Ejected { until, reason }), "{failures}");
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
                    true
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

    #[test]
    fn the_last_endpoint_stays_and_says_so_once() {
        let mut bench = Bench::new(SETTINGS);
        bench.others = false;
        assert_eq!(bench.fail_in_a_row(4), None);
        let reason = Failure::ServerError;
        assert_eq!(bench.send(reason), Some(Transition::KeptAsLast { reason }));
        assert_eq!(bench.send(reason), None);
        assert_eq!(bench.admits(), Admit::Yes);
        bench.others = true;
        assert!(matches!(bench.send(reason), Some(Transition::Ejected { .. })));
        bench.wait(BASE).others = false;
        assert_eq!(bench.send(reason), Some(Transition::KeptAsLast { reason }), "once each time");
    }

    #[test]
    fn a_failed_probe_of_the_last_endpoint_lets_it_in() {
        let mut bench = Bench::ejected();
        bench.wait(BASE);
        bench.others = false;
        let reason = Failure::Reset;
        assert_eq!(bench.send(reason), Some(Transition::KeptAsLast { reason }));
        assert_eq!(bench.admits(), Admit::Yes);
        assert_eq!(bench.succeed(), None);
        bench.others = true;
        assert_eq!(bench.fail_in_a_row(5), Some(2 * BASE));
    }

    #[test]
    fn others_are_asked_only_on_the_brink() {
        let bench = Bench::new(SETTINGS);
        for _ in 0..4 {
            let asked = || unreachable!("not on the brink");
            let outcome =
                bench.outlier.on_failure(bench.acquire(), Failure::Reset, bench.now, asked);
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
        for (base, max) in extremes.into_iter().flat_map(|b| extremes.map(|m| (b, m))) {
            let mut bench = Bench::new(Settings { failures: 1, base, max });
            for _ in 0..3 {
                assert!(bench.send(Failure::Reset).is_some());
                bench.wait(FOR_EVER);
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
        assert!(
            !was_out || probe || bench.outlier.is_ejected(),
            "seed {seed}: let in by a failure"
        );
    }
}
