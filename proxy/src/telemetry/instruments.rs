//! The numbers behind the metrics: counters, gauges and histograms of durations.
//!
//! Why not those of the metrics library: its histogram takes several atomic operations and a loop
//! per observation, and has no way to add many observations at once, which is what a stream of
//! thousands of events needs ([`LocalHistogram`]). A series also lives in its map under a hash of
//! the bare label values, where `("ab", "c")` and `("a", "bc")` are the same.
//!
//! All operations are relaxed: a scrape may see a sum without its last count, never a torn number.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// A number with a fraction that may be unknown.
#[derive(Debug)]
pub struct Level(AtomicU64);

impl Default for Level {
    /// Unknown.
    fn default() -> Self {
        Self(AtomicU64::new(f64::NAN.to_bits()))
    }
}

impl Level {
    /// Replaces the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// Replaces the value; `None` is unknown.
    pub fn set_or_unknown(&self, value: Option<f64>) {
        self.set(value.unwrap_or(f64::NAN));
    }

    /// The value now, if it is known.
    #[must_use]
    pub fn get(&self) -> Option<f64> {
        let value = f64::from_bits(self.0.load(Relaxed));
        (!value.is_nan()).then_some(value)
    }
}

/// Most bucket bounds that a histogram can have.
pub const MAX_BOUNDS: usize = 23;

/// Buckets including the last one, which has no bound.
const MAX_BUCKETS: usize = MAX_BOUNDS + 1;

/// Upper bounds of the buckets of a histogram in microseconds, ascending, at most [`MAX_BOUNDS`].
#[derive(Clone, Copy, Debug)]
pub struct Bounds(&'static [u64]);

impl Bounds {
    /// Checked when the program is compiled, if used for a constant.
    ///
    /// # Panics
    /// If the bounds do not ascend or are too many.
    #[must_use]
    pub const fn micros(bounds: &'static [u64]) -> Self {
        assert!(bounds.len() <= MAX_BOUNDS, "too many bounds");
        let mut index = 1;
        while index < bounds.len() {
            assert!(bounds[index - 1] < bounds[index], "bounds must ascend");
            index += 1;
        }
        Self(bounds)
    }

    /// The bucket that a duration belongs to: the first whose bound is not below it.
    fn bucket(self, nanos: u64) -> usize {
        let micros = nanos.div_ceil(1000);
        self.0.partition_point(|bound| *bound < micros)
    }

    /// The bounds in seconds.
    pub fn seconds(self) -> impl Iterator<Item = f64> {
        self.0.iter().map(|micros| as_seconds(*micros))
    }
}

/// Exact up to 285 years.
#[expect(clippy::cast_precision_loss, reason = "the sum of a histogram is a float by definition")]
fn as_seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn as_nanos(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

fn nearest_micros(nanos: u64) -> u64 {
    nanos.saturating_add(500) / 1000
}

/// Adds to a number that nobody else adds to.
fn add_alone(number: &AtomicU64, more: u64) {
    number.store(number.load(Relaxed).wrapping_add(more), Relaxed);
}

/// A distribution of durations.
#[derive(Debug)]
pub struct Histogram {
    bounds: Bounds,
    counts: [AtomicU64; MAX_BUCKETS],
    sum_micros: AtomicU64,
}

/// What a histogram holds at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramView {
    /// Upper bound in seconds, and the observations up to it. The bucket without a bound is left
    /// out.
    pub cumulative: Vec<(f64, u64)>,
    /// All observations.
    pub count: u64,
    /// The sum of all observations in seconds.
    pub sum: f64,
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { bounds, counts, sum_micros: AtomicU64::new(0) }
    }

    /// Counts one duration. The sum is kept to the nearest microsecond.
    pub fn observe(&self, elapsed: Duration) {
        let nanos = as_nanos(elapsed);
        self.counts[self.bounds.bucket(nanos)].fetch_add(1, Relaxed);
        self.add_sum(nanos);
    }

    /// The same, for one that only one thread ever observes: without an instruction that locks memory.
    pub fn observe_alone(&self, elapsed: Duration) {
        let nanos = as_nanos(elapsed);
        add_alone(&self.counts[self.bounds.bucket(nanos)], 1);
        add_alone(&self.sum_micros, nearest_micros(nanos));
    }

    fn add_sum(&self, nanos: u64) {
        self.sum_micros.fetch_add(nearest_micros(nanos), Relaxed);
    }

    /// What it holds now.
    #[must_use]
    pub fn view(&self) -> HistogramView {
        let mut count = 0;
        let mut up_to = |bucket: &AtomicU64| {
            count += bucket.load(Relaxed);
            count
        };
        let cumulative = self.bounds.seconds().zip(self.counts.iter().map(&mut up_to)).collect();
        up_to(&self.counts[self.bounds.0.len()]);
        HistogramView { cumulative, count, sum: as_seconds(self.sum_micros.load(Relaxed)) }
    }
}

/// Observations that are kept before they are added to the shared histogram.
const FLUSH_AT: u16 = 256;

/// A histogram's front, owned by one request: observing costs no atomic operation. It is added to
/// the shared one after every 256 observations and when it is dropped, so a scrape lags behind a
/// running stream by fewer than 256 events (a few seconds for a quick model).
#[derive(Debug)]
pub struct LocalHistogram {
    shared: Arc<Histogram>,
    counts: [u16; MAX_BUCKETS],
    pending: u16,
    sum_nanos: u64,
}

impl LocalHistogram {
    /// An empty one in front of `shared`.
    #[must_use]
    pub fn new(shared: Arc<Histogram>) -> Self {
        Self { shared, counts: [0; MAX_BUCKETS], pending: 0, sum_nanos: 0 }
    }

    /// Counts one duration.
    pub fn observe(&mut self, elapsed: Duration) {
        let nanos = as_nanos(elapsed);
        self.counts[self.shared.bounds.bucket(nanos)] += 1;
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
        self.pending += 1;
        if self.pending == FLUSH_AT {
            self.flush();
        }
    }

    /// Adds what is pending to the shared histogram.
    pub fn flush(&mut self) {
        if self.pending == 0 {
            return;
        }
        for (shared, count) in self.shared.counts.iter().zip(&mut self.counts) {
            let count = std::mem::take(count);
            if count > 0 {
                shared.fetch_add(u64::from(count), Relaxed);
            }
        }
        self.shared.add_sum(std::mem::take(&mut self.sum_nanos));
        self.pending = 0;
    }
}

impl Drop for LocalHistogram {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds::micros(&[100, 1000, 60_000_000]);

    fn counts(histogram: &Histogram) -> (Vec<u64>, u64) {
        let view = histogram.view();
        (view.cumulative.iter().map(|(_, count)| *count).collect(), view.count)
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(BOUNDS);
        histogram.observe(Duration::from_micros(100));
        histogram.observe(Duration::from_nanos(100_001));
        histogram.observe(Duration::from_secs(60));
        histogram.observe(Duration::from_secs(61));
        histogram.observe(Duration::MAX);
        assert_eq!(counts(&histogram), (vec![1, 2, 3], 5));
        let bounds: Vec<f64> = BOUNDS.seconds().collect();
        assert_eq!(bounds, [0.0001, 0.001, 60.0]);
    }

    #[test]
    fn the_sum_is_in_seconds() {
        let histogram = Histogram::new(BOUNDS);
        histogram.observe(Duration::from_millis(1500));
        histogram.observe(Duration::from_nanos(1_600));
        assert!((histogram.view().sum - 1.500_002).abs() < 1e-12);
    }

    #[test]
    fn a_local_one_adds_the_same_as_the_shared_one() {
        let (direct, shared) = (Histogram::new(BOUNDS), Arc::new(Histogram::new(BOUNDS)));
        let mut local = LocalHistogram::new(Arc::clone(&shared));
        for step in 0..1000_u64 {
            let elapsed = Duration::from_micros(step * step);
            direct.observe(elapsed);
            local.observe(elapsed);
            assert_eq!(shared.view().count, (step + 1) / 256 * 256, "flushed every 256");
        }
        drop(local);
        assert_eq!(direct.view(), shared.view());
    }

    #[test]
    fn one_of_a_single_thread_counts_the_same() {
        let [direct, alone] = std::array::from_fn(|_| Histogram::new(BOUNDS));
        for step in 0..1000_u64 {
            direct.observe(Duration::from_micros(step * step));
            alone.observe_alone(Duration::from_micros(step * step));
        }
        assert_eq!(direct.view(), alone.view());
    }

    #[test]
    fn many_threads_lose_nothing() {
        let (histogram, counter) = (Arc::new(Histogram::new(BOUNDS)), Counter::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut local = LocalHistogram::new(Arc::clone(&histogram));
                    for _ in 0..1000 {
                        local.observe(Duration::from_micros(5));
                        histogram.observe(Duration::from_micros(500));
                        counter.inc();
                    }
                });
            }
        });
        assert_eq!(counts(&histogram), (vec![4000, 8000, 8000], 8000));
        assert_eq!(counter.get(), 4000);
    }

    /// Prints what one observation costs; run with `--nocapture` in a build with optimisation.
    #[test]
    fn time_of_an_observation() {
        let shared = Arc::new(Histogram::new(BOUNDS));
        let mut local = LocalHistogram::new(Arc::clone(&shared));
        let rounds = 1_000_000;
        let start = std::time::Instant::now();
        for step in 0..rounds {
            local.observe(Duration::from_micros(u64::from(step & 0xFFF)));
        }
        let each = start.elapsed() / rounds;
        drop(local);
        assert_eq!(shared.view().count, u64::from(rounds));
        println!("a local observation: {each:?}");
    }
}
