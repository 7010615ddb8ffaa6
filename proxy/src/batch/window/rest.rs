//! A pause from batching after batches that came to nothing.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// Whether a key rests, and for how long after the next failure.
#[derive(Debug)]
pub(super) struct Rest {
    until: Option<Instant>,
    next: Duration,
}

impl Rest {
    pub(super) const fn new() -> Self {
        Self { until: None, next: FIRST }
    }

    /// Batches that were under way when the rest began do not make it longer.
    pub(super) fn failed(&mut self, now: Instant) {
        if !self.is_resting(now) {
            self.until = Some(now + self.next);
            self.next = (self.next * 2).min(LONGEST);
        }
    }

    pub(super) const fn succeeded(&mut self) {
        self.next = FIRST;
    }

    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it rests after a failure now.
    fn rest_of(rest: &mut Rest, now: Instant) -> Duration {
        rest.failed(now);
        rest.until.unwrap() - now
    }

    #[test]
    fn rests_double_until_a_success() {
        let (mut rest, mut now) = (Rest::new(), Instant::now());
        assert!(!rest.is_resting(now));
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            let expected = Duration::from_secs(seconds);
            assert_eq!(rest_of(&mut rest, now), expected);
            assert!(rest.is_resting(now + expected - Duration::from_nanos(1)));
            now += expected;
            assert!(!rest.is_resting(now));
        }
        rest.succeeded();
        assert_eq!(rest_of(&mut rest, now), FIRST);
    }

    #[test]
    fn one_rest_is_not_made_longer() {
        let (mut rest, now) = (Rest::new(), Instant::now());
        rest.failed(now);
        assert_eq!(rest_of(&mut rest, now + FIRST / 2), FIRST / 2);
    }
}
