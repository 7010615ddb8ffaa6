//! When the guarded arm may have the next weight, as far as time and requests decide it.

use std::time::{Duration, Instant};

use super::Steps;

/// Where the guarded arm is on its way up.
#[derive(Debug)]
pub(super) struct Stairs {
    /// Index of the present weight.
    at: usize,
    /// When it was reached.
    since: Instant,
    /// How many guarded requests have ended since then.
    requests: u64,
}

impl Stairs {
    pub(super) fn new(now: Instant) -> Self {
        Self { at: 0, since: now, requests: 0 }
    }

    /// Index of the present weight.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// A guarded request has ended.
    pub(super) fn count(&mut self) {
        self.requests += 1;
    }

    /// The present weight and the next, unless this is the last.
    pub(super) fn next(&self, steps: &Steps) -> Option<(u32, u32)> {
        Some((*steps.weights.get(self.at)?, *steps.weights.get(self.at + 1)?))
    }

    /// How much time and how many requests are missing for the next step.
    pub(super) fn missing(&self, steps: &Steps, now: Instant) -> (Duration, u64) {
        let passed = now.saturating_duration_since(self.since);
        (steps.every.saturating_sub(passed), steps.requests.saturating_sub(self.requests))
    }

    /// Whether nothing is missing.
    pub(super) fn is_due(&self, steps: &Steps, now: Instant) -> bool {
        self.missing(steps, now) == (Duration::ZERO, 0)
    }

    /// Takes the step.
    pub(super) fn climb(&mut self, now: Instant) {
        *self = Self { at: self.at + 1, since: now, requests: 0 };
    }
}
