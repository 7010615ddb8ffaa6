//! What an endpoint did in the last seconds: ten buckets in a ring.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::EVERY_REQUEST;
use super::{Histogram, Settings};

/// Buckets of a window.
const BUCKETS: u32 = 10;

/// What one endpoint did, over a sliding window. Written at the end and at the first byte of each
/// request, under a lock that is held for some ten instructions.
#[derive(Debug)]
pub struct Window {
    origin: Instant,
    ended: Mutex<Option<Ring<Ended>>>,
    first_bytes: Mutex<Option<Ring<Histogram>>>,
}

/// What one endpoint did in the window that ends now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Requests that ended well, as far as the endpoint is to blame.
    pub successes: u32,
    /// Requests that did not.
    pub failures: u32,
    /// Time to the first byte per prompt token.
    pub first_bytes: Histogram,
}

impl Sample {
    /// Requests that ended.
    pub fn ended(&self) -> u32 {
        self.successes.saturating_add(self.failures)
    }
}

impl Window {
    /// Nothing seen yet.
    pub fn new(settings: &Settings, origin: Instant) -> Self {
        let window = Self { origin, ended: Mutex::new(None), first_bytes: Mutex::new(None) };
        window.configure(settings);
        window
    }

    /// The same for whoever looks at how requests ended, and at nothing else.
    pub fn of_ends(span: Duration, origin: Instant) -> Self {
        let window = Self { origin, ended: Mutex::new(None), first_bytes: Mutex::new(None) };
        window.configure_ends(span);
        window
    }

    /// Another length from now on, as [`configure`](Self::configure).
    pub fn configure_ends(&self, span: Duration) {
        resize(&mut self.ended.lock(), Some(span));
    }

    /// Other settings from now on, after a reload. What keeps its length keeps its counts; what is
    /// not compared is not counted and takes no memory.
    pub fn configure(&self, settings: &Settings) {
        let [rate, latency] =
            [settings.success_rate.map(|it| it.window), settings.latency.map(|it| it.window)];
        resize(&mut self.ended.lock(), rate);
        resize(&mut self.first_bytes.lock(), latency);
    }

    /// A request ended well, as far as the endpoint is to blame.
    pub fn succeeded(&self, now: Instant) {
        self.end(now, |ended| ended.successes = ended.successes.saturating_add(1));
    }

    /// A request failed.
    pub fn failed(&self, now: Instant) {
        self.end(now, |ended| ended.failures = ended.failures.saturating_add(1));
    }

    /// An answer that is streamed has begun, `after` so long. `prompts`: the tokens of all prompts
    /// that awaited their first byte at this endpoint when the request was sent, its own among
    /// them ([`Turn::prompts`]). (The first byte of any other answer is its end, and says little.)
    ///
    /// [`Turn::prompts`]: crate::outlier::stall::Turn::prompts
    pub fn first_byte(&self, after: Duration, prompts: u64, now: Instant) {
        let per_token = after.as_nanos() / u128::from(prompts.saturating_add(EVERY_REQUEST));
        if let Some(ring) = &mut *self.first_bytes.lock() {
            ring.at(self.elapsed(now)).observe(u64::try_from(per_token).unwrap_or(u64::MAX));
        }
    }

    /// What the endpoint did until now.
    pub fn sample(&self, now: Instant) -> Sample {
        let (successes, failures) = self.ends(now);
        let mut sample = Sample { successes, failures, ..Sample::default() };
        if let Some(ring) = &mut *self.first_bytes.lock() {
            ring.last(self.elapsed(now)).iter().for_each(|it| sample.first_bytes.add(it));
        }
        sample
    }

    /// How many requests ended well until now, and how many did not.
    pub fn ends(&self, now: Instant) -> (u32, u32) {
        let (mut successes, mut failures) = (0_u32, 0_u32);
        if let Some(ring) = &mut *self.ended.lock() {
            for ended in ring.last(self.elapsed(now)) {
                successes = successes.saturating_add(ended.successes);
                failures = failures.saturating_add(ended.failures);
            }
        }
        (successes, failures)
    }

    /// Forgets everything: an endpoint that is restored after an ejection is judged by what it does
    /// from then on.
    pub fn clear(&self) {
        self.ended.lock().iter_mut().for_each(Ring::clear);
        self.first_bytes.lock().iter_mut().for_each(Ring::clear);
    }

    fn end(&self, now: Instant, count: impl FnOnce(&mut Ended)) {
        if let Some(ring) = &mut *self.ended.lock() {
            count(ring.at(self.elapsed(now)));
        }
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.origin)
    }
}

fn resize<T: Clone + Default>(ring: &mut Option<Ring<T>>, span: Option<Duration>) {
    let bucket = span.map(|span| (span / BUCKETS).max(Duration::from_nanos(1)));
    if ring.as_ref().map(|ring| ring.bucket) != bucket {
        *ring = bucket.map(Ring::new);
    }
}

/// How requests ended.
#[derive(Clone, Debug, Default)]
struct Ended {
    successes: u32,
    failures: u32,
}

/// The last buckets, each one tenth of the window; the one at `number % BUCKETS` is filled now.
#[derive(Debug)]
struct Ring<T> {
    bucket: Duration,
    number: u64,
    buckets: Box<[T]>,
}

impl<T: Clone + Default> Ring<T> {
    fn new(bucket: Duration) -> Self {
        Self { bucket, number: 0, buckets: vec![T::default(); BUCKETS as usize].into() }
    }

    /// The bucket of this time, or of the latest time seen when it runs backwards.
    fn at(&mut self, elapsed: Duration) -> &mut T {
        let number = elapsed.as_nanos() / self.bucket.as_nanos();
        let number = u64::try_from(number).unwrap_or(u64::MAX);
        // Those that have come in between were never filled, or too long ago.
        for passed in 0..number.saturating_sub(self.number).min(BUCKETS.into()) {
            self.buckets[index(number - passed)] = T::default();
        }
        self.number = self.number.max(number);
        &mut self.buckets[index(self.number)]
    }

    fn last(&mut self, elapsed: Duration) -> &[T] {
        self.at(elapsed);
        &self.buckets
    }

    fn clear(&mut self) {
        self.buckets.fill(T::default());
    }
}

const fn index(number: u64) -> usize {
    (number % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::super::{Latency, SuccessRate};
    use super::*;

    const SPAN: Duration = Duration::from_secs(30);

    fn settings(span: Duration) -> Settings {
        let success_rate = SuccessRate { window: span, requests: 20, margin: 0.2 };
        let latency = Latency { window: span, requests: 20, factor: 4.0 };
        Settings { success_rate: Some(success_rate), latency: Some(latency) }
    }

    fn at(origin: Instant, seconds: f64) -> Instant {
        origin + Duration::from_secs_f64(seconds)
    }

    fn counts(window: &Window, now: Instant) -> (u32, u32, u64) {
        let sample = window.sample(now);
        (sample.successes, sample.failures, sample.first_bytes.total())
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let origin = Instant::now();
        let window = Window::new(&settings(SPAN), origin);
        window.succeeded(at(origin, 1.0));
        window.failed(at(origin, 4.0));
        window.first_byte(SPAN, 1_000, at(origin, 4.0));
        assert_eq!(counts(&window, at(origin, 4.0)), (1, 1, 1));
        assert_eq!(counts(&window, at(origin, 29.9)), (1, 1, 1));
        assert_eq!(counts(&window, at(origin, 30.0)), (0, 1, 1));
        assert_eq!(counts(&window, at(origin, 33.0)), (0, 0, 0));
    }

    #[test]
    fn a_long_silence_leaves_nothing() {
        let origin = Instant::now();
        let window = Window::new(&settings(SPAN), origin);
        (0..300).for_each(|tenth| window.succeeded(at(origin, f64::from(tenth) / 10.0)));
        assert_eq!(counts(&window, at(origin, 29.9)).0, 300);
        assert_eq!(counts(&window, at(origin, 1e9)).0, 0);
        window.succeeded(at(origin, 1e9));
        assert_eq!(counts(&window, at(origin, 1e9)).0, 1);
    }

    #[test]
    fn time_that_runs_backwards_loses_nothing() {
        let origin = Instant::now();
        let window = Window::new(&settings(SPAN), origin);
        window.succeeded(at(origin, 20.0));
        window.succeeded(at(origin, 1.0));
        assert_eq!(counts(&window, at(origin, 20.0)).0, 2);
    }

    #[test]
    fn other_settings_keep_what_keeps_its_length() {
        let origin = Instant::now();
        let window = Window::new(&settings(SPAN), origin);
        window.succeeded(origin);
        window.first_byte(SPAN, 0, origin);
        window.configure(&Settings { latency: None, ..settings(SPAN) });
        assert_eq!(counts(&window, origin), (1, 0, 0));
        window.configure(&settings(2 * SPAN));
        assert_eq!(counts(&window, origin), (0, 0, 0));
    }

    #[test]
    fn a_cleared_window_begins_anew() {
        let origin = Instant::now();
        let window = Window::new(&settings(SPAN), origin);
        window.failed(origin);
        window.first_byte(SPAN, 0, origin);
        window.clear();
        assert_eq!(counts(&window, origin), (0, 0, 0));
    }

    #[test]
    fn first_bytes_are_counted_per_prompt_token() {
        let origin = Instant::now();
        let window = Window::new(&settings(SPAN), origin);
        window.first_byte(Duration::from_millis(125), 936, origin);
        let median = window.sample(origin).first_bytes.median().unwrap();
        assert!((median / 125_000.0 - 1.0).abs() < 0.13, "{median} ns per token");
    }

    #[test]
    fn a_window_without_length_does_not_panic() {
        let origin = Instant::now();
        for span in [Duration::ZERO, Duration::MAX] {
            let window = Window::new(&settings(span), origin);
            window.succeeded(at(origin, 1e9));
            window.first_byte(Duration::MAX, u64::MAX, at(origin, 1e9));
            assert_eq!(counts(&window, at(origin, 1e9)), (1, 0, 1));
        }
    }
}
