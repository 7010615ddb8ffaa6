//! The present, from one place: whatever decides by the time asks here and nowhere else.
//!
//! It is the clock that tokio's timers go by. A test that pauses that one has the whole path of a request in virtual
//! time; a second clock beside it would go on and tell the path that nothing had taken any time.

use std::time::{Duration, Instant};

/// The present.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long it has been since then.
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}
