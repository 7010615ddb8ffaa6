//! How long answers take, so that a deadline can be kept.

use std::time::{Duration, Instant};

/// Weight of a new sample in the mean and in the mean deviation, after TCP's estimate of the round
/// trip (RFC 6298, section 2), there 1/8 and 1/4.
const MEAN: f64 = 1.0 / 8.0;
const DEVIATION: f64 = 1.0 / 4.0;

/// How many mean deviations above the mean are reckoned with.
const CAUTION: f64 = 2.0;

/// The time from a call to its answer.
#[derive(Debug)]
pub(super) struct Service {
    /// Mean and mean deviation, in seconds.
    estimate: Option<(f64, f64)>,
}

impl Service {
    pub(super) const fn new() -> Self {
        Self { estimate: None }
    }

    pub(super) fn took(&mut self, time: Duration) {
        let time = time.as_secs_f64();
        self.estimate = Some(match self.estimate {
            None => (time, time / 2.0),
            Some((mean, deviation)) => {
                let off = (time - mean).abs();
                (mean + MEAN * (time - mean), deviation + DEVIATION * (off - deviation))
            }
        });
    }

    /// The latest time to send a request whose answer must be there at `deadline`; now, when that
    /// is past. While nothing is known, half of the time is kept for the answer.
    pub(super) fn latest_start(&self, now: Instant, deadline: Instant) -> Instant {
        let left = deadline.saturating_duration_since(now);
        let kept = match self.estimate {
            None => left / 2,
            Some((mean, deviation)) => {
                Duration::try_from_secs_f64(mean + CAUTION * deviation).unwrap_or(Duration::MAX)
            }
        };
        now + left.saturating_sub(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn steady_answers_leave_the_rest_to_wait() {
        let (mut service, now) = (Service::new(), Instant::now());
        (0..100).for_each(|_| service.took(20 * MS));
        let wait = service.latest_start(now, now + 50 * MS) - now;
        assert!(wait > 29 * MS && wait <= 30 * MS, "{wait:?}");
        assert_eq!(service.latest_start(now, now + 10 * MS), now);
    }

    #[test]
    fn unsteady_answers_leave_less() {
        let (mut service, now) = (Service::new(), Instant::now());
        (0..100).for_each(|i| service.took(if i % 2 == 0 { 10 * MS } else { 30 * MS }));
        let wait = service.latest_start(now, now + 50 * MS) - now;
        assert!(wait > 5 * MS && wait < 15 * MS, "{wait:?}");
    }
}
