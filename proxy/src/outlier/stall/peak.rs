//! The greatest value seen lately.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// In so much time of work a peak comes down to its half.
pub const HALF_LIFE: Duration = Duration::from_secs(600);

/// How often a peak is let down; in nanoseconds.
const TICK: u64 = 10_000_000_000;

/// The most that counts between two requests: an engine that does nothing does not change; in
/// nanoseconds.
const IDLE: u64 = 60_000_000_000;

/// A peak that is held and slowly let down. Zero is unknown.
#[derive(Debug, Default)]
pub(super) struct Peak {
    value: AtomicU64,
    /// When it was last let down, in nanoseconds from anywhere.
    at: AtomicU64,
}

impl Peak {
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.value.load(Relaxed)).filter(|value| *value > 0)
    }

    /// Whether this value would be a new peak. One load.
    pub(super) fn is_below(&self, value: u64) -> bool {
        self.value.load(Relaxed) < value
    }

    pub(super) fn raise(&self, value: u64) {
        self.value.fetch_max(value, Relaxed);
    }

    pub(super) fn forget(&self) {
        self.value.store(0, Relaxed);
    }

    /// Lets it down by what has passed.
    pub(super) fn decay(&self, now: u64) {
        let at = self.at.load(Relaxed);
        let passed = now.saturating_sub(at);
        // One of several that come at the same time.
        if passed < TICK || self.at.compare_exchange(at, now, Relaxed, Relaxed).is_err() {
            return;
        }
        let half_lives = passed.min(IDLE) as f64 / HALF_LIFE.as_nanos() as f64;
        if let Some(value) = self.get() {
            self.value.store(((value as f64 * (-half_lives).exp2()) as u64).max(1), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn only_a_higher_value_is_news() {
        let peak = Peak::default();
        assert_eq!(peak.get(), None);
        peak.raise(7);
        peak.raise(3);
        assert_eq!(peak.get(), Some(7));
        assert!(peak.is_below(8) && !peak.is_below(7));
    }

    #[test]
    fn halves_in_its_half_life_of_work() {
        let peak = Peak::default();
        peak.raise(1_000_000);
        (0..=600).for_each(|second| peak.decay(second * SECOND));
        let value = peak.get().unwrap();
        assert!((499_900..500_100).contains(&value), "{value}");
    }

    #[test]
    fn hardly_changes_while_nothing_is_done() {
        let peak = Peak::default();
        peak.raise(1_000_000);
        peak.decay(86_400 * SECOND);
        assert!(peak.get().unwrap() > 900_000);
    }

    #[test]
    fn never_comes_down_to_unknown() {
        let peak = Peak::default();
        peak.raise(1);
        (0..10_000).for_each(|minute| peak.decay(minute * 60 * SECOND));
        assert_eq!(peak.get(), Some(1));
    }
}
