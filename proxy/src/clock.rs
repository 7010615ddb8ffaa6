//! The present, from one place: whatever decides by the time asks here and nowhere else.
//!
//! It is the clock that tokio's timers go by. A test that pauses that one has the whole path of a request in virtual
//! time; a second clock beside it would go on and tell the path that nothing had taken any time.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The present.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long it has been since then.
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// What is to be done at most once in so long, by whoever comes by. One atomic load to ask.
#[derive(Debug)]
pub struct Every {
    origin: Instant,
    pause: Duration,
    /// From when on it is due, in nanoseconds since the origin.
    due: AtomicU64,
}

impl Every {
    /// Due at once.
    pub fn new(pause: Duration, now: Instant) -> Self {
        Every { origin: now, pause, due: AtomicU64::new(0) }
    }

    /// Whether it is due.
    pub fn is_due(&self, now: Instant) -> bool {
        self.nanos(now) >= self.due.load(Relaxed)
    }

    /// It was done, and is not due again before the pause is over.
    pub fn done(&self, now: Instant) {
        self.due.store(self.nanos(now + self.pause), Relaxed);
    }

    /// Of 500 years and more the last are alike.
    fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.origin);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_at_once_and_then_after_each_pause() {
        let (start, ms) = (Instant::now(), Duration::from_millis(1));
        let every = Every::new(10 * ms, start);
        assert!(every.is_due(start));
        every.done(start + ms);
        assert!(!every.is_due(start + 10 * ms));
        assert!(every.is_due(start + 11 * ms));
    }
}
