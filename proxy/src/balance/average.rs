//! Averages that any thread may add to without waiting.
//!
//! They weigh late samples more than early ones. Two threads that add at the same instant may lose
//! one of the two samples; an average bears that, a count would not.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// An `f64` that any thread may set.
#[derive(Debug)]
pub(super) struct Number(AtomicU64);

impl Number {
    pub(super) const fn new(value: f64) -> Self {
        Self(AtomicU64::new(value.to_bits()))
    }

    pub(super) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    pub(super) fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
}

/// A moment: nanoseconds since the endpoint is known, plus one. Zero is never.
pub(super) type Stamp = u64;

/// Seconds between two moments; 0 when `from` is the later one.
pub(super) fn seconds(from: Stamp, to: Stamp) -> f64 {
    to.saturating_sub(from) as f64 * 1e-9
}

/// An average and the moment of its last sample.
#[derive(Debug)]
pub(super) struct Average {
    value: Number,
    last: AtomicU64,
}

impl Average {
    pub(super) const fn new() -> Self {
        Self { value: Number::new(0.0), last: AtomicU64::new(0) }
    }

    /// The average and when its last sample came; `None` before the first.
    pub(super) fn get(&self) -> Option<(f64, Stamp)> {
        match self.last.load(Relaxed) {
            0 => None,
            last => Some((self.value.get(), last)),
        }
    }

    /// Adds a sample. `keep` says how much of the old average stays, `0.0..=1.0`, given how many
    /// seconds old it is.
    pub(super) fn add(&self, sample: f64, now: Stamp, keep: impl FnOnce(f64) -> f64) {
        let new = match self.get() {
            None => sample,
            Some((old, last)) => sample + (old - sample) * keep(seconds(last, now)),
        };
        self.put(new, now);
    }

    pub(super) fn put(&self, value: f64, now: Stamp) {
        self.value.set(value);
        self.last.store(now, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sample_is_the_average_and_the_next_ones_move_it() {
        let average = Average::new();
        assert_eq!(average.get(), None);
        average.add(8.0, 1, |_| 1.0);
        assert_eq!(average.get(), Some((8.0, 1)));
        average.add(4.0, 2_000_000_001, |age| 1.0 / (2.0 * age));
        assert_eq!(average.get(), Some((5.0, 2_000_000_001)));
    }

    #[test]
    fn time_does_not_run_backwards() {
        assert_eq!(seconds(5, 3), 0.0);
        assert_eq!(seconds(1, 500_000_001), 0.5);
    }
}
