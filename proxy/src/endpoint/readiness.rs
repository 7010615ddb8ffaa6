//! Whether an endpoint may be sent requests, and for how long it has been so.
//!
//! Three things must hold: its active check says that it can serve, its agent does not say that it will not, and it is
//! warm, which it is when nothing asks for a warm-up or when its warm-up has run to its end. Slow start reckons from the
//! moment at which all came to hold.
//!
//! Left out: ejection, which is [`crate::outlier`]'s.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// The readiness of one endpoint.
pub struct Readiness {
    /// From where `since` counts.
    origin: Instant,
    checked: AtomicBool,
    willing: AtomicBool,
    warm: AtomicBool,
    /// How often it has become cold.
    chills: AtomicU64,
    /// Nanoseconds from the origin to when it last came into service.
    since: AtomicU64,
    changed: Notify,
}

impl Readiness {
    /// Not ready: unchecked, though willing and warm.
    pub fn new(origin: Instant) -> Self {
        Readiness {
            origin,
            checked: AtomicBool::new(false),
            willing: AtomicBool::new(true),
            warm: AtomicBool::new(true),
            chills: AtomicU64::new(0),
            since: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    /// Whether it may be sent requests.
    pub fn is_ready(&self) -> bool {
        self.is_checked() && self.willing.load(Relaxed) && self.is_warm()
    }

    /// Whether its active check says that it can serve.
    pub fn is_checked(&self) -> bool {
        self.checked.load(Relaxed)
    }

    /// Whether it needs no warm-up.
    pub fn is_warm(&self) -> bool {
        self.warm.load(Relaxed)
    }

    /// How long it has been in service.
    pub fn age(&self, now: Instant) -> Duration {
        let since = Duration::from_nanos(self.since.load(Relaxed));
        now.saturating_duration_since(self.origin).saturating_sub(since)
    }

    /// What its check says from now on.
    pub fn set_checked(&self, checked: bool, now: Instant) {
        self.change(&self.checked, checked, now);
    }

    /// What its agent says from now on.
    pub fn set_willing(&self, willing: bool, now: Instant) {
        self.change(&self.willing, willing, now);
    }

    /// It needs a warm-up from now on.
    pub fn chill(&self, now: Instant) {
        self.chills.fetch_add(1, Relaxed);
        self.change(&self.warm, false, now);
    }

    /// Nothing needs to be warmed up.
    pub fn set_warm(&self, now: Instant) {
        self.change(&self.warm, true, now);
    }

    /// The warm-up has ended for which [`Readiness::wants_warm_up`] gave this number, unless it has become cold again.
    pub fn warmed_up(&self, chill: u64, now: Instant) -> bool {
        let still = self.chills.load(Relaxed) == chill;
        if still {
            self.set_warm(now);
        }
        still
    }

    /// It begins anew, as after an ejection.
    pub fn begin(&self, now: Instant) {
        let since = now.saturating_duration_since(self.origin).as_nanos();
        self.since.store(u64::try_from(since).unwrap_or(u64::MAX), Relaxed);
    }

    fn change(&self, what: &AtomicBool, to: bool, now: Instant) {
        let before = self.is_ready();
        what.store(to, Relaxed);
        if !before && self.is_ready() {
            self.begin(now);
        }
        self.changed.notify_one();
    }

    /// Waits until it is checked and cold: until a warm-up can and must run; which one that is. One task at a time may
    /// wait.
    pub async fn wants_warm_up(&self) -> u64 {
        while self.is_warm() || !self.is_checked() {
            self.changed.notified().await;
        }
        self.chills.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_begins_when_the_last_condition_comes_to_hold() {
        let origin = Instant::now();
        let at = |seconds| origin + Duration::from_secs(seconds);
        let readiness = Readiness::new(origin);
        readiness.chill(at(1));
        readiness.set_checked(true, at(2));
        assert!(!readiness.is_ready());
        assert!(readiness.warmed_up(1, at(5)));
        assert!(readiness.is_ready());
        assert_eq!(readiness.age(at(9)), Duration::from_secs(4));
        readiness.set_checked(true, at(10));
        assert_eq!(readiness.age(at(12)), Duration::from_secs(7), "nothing changed");
        readiness.begin(at(13));
        assert_eq!(readiness.age(at(14)), Duration::from_secs(1));
    }

    #[test]
    fn a_warm_up_from_before_it_became_cold_again_does_not_count() {
        let now = Instant::now();
        let readiness = Readiness::new(now);
        readiness.set_checked(true, now);
        readiness.chill(now);
        readiness.chill(now);
        assert!(!readiness.warmed_up(1, now) && !readiness.is_ready());
        assert!(readiness.warmed_up(2, now) && readiness.is_ready());
    }

    #[tokio::test]
    async fn a_warm_up_waits_for_the_check() {
        let now = Instant::now();
        let readiness = Readiness::new(now);
        readiness.chill(now);
        let mut wanted = std::pin::pin!(readiness.wants_warm_up());
        assert!(futures_util::poll!(&mut wanted).is_pending());
        readiness.set_checked(true, now);
        assert!(futures_util::poll!(&mut wanted).is_ready());
    }
}
