//! What of a look is news, when to look again, and what is said about failures.
//!
//! An answer is good for as long as it says, within bounds. After a failure the next look comes soon, then less and less
//! often. A failure is said once, not whenever it is met again.

use std::{sync::Arc, time::Duration};

use super::{Found, News};
use crate::{telemetry::metrics::Verdict, upstream::Backend};

/// The next look after a failure; doubles with each one that follows.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// An answer that is good for less is taken to be good for this.
const MIN_TTL: Duration = Duration::from_secs(1);

/// What came of a look.
#[derive(Debug)]
pub(super) struct Look {
    /// What is there; `None` when that can not be told.
    pub(super) news: Option<News>,
    /// For how long that holds.
    pub(super) hold: Hold,
    /// What went wrong.
    pub(super) problem: Option<String>,
}

/// For how long something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    /// As it says itself.
    pub(super) ttl: Duration,
    /// Some of it failed in a way that may be over soon.
    pub(super) retry: bool,
}

impl Hold {
    /// It does not change.
    pub(super) const FOR_EVER: Hold = Hold { ttl: Duration::MAX, retry: false };
    /// It failed.
    pub(super) const RETRY: Hold = Hold { ttl: Duration::MAX, retry: true };

    /// So long and no longer.
    pub(super) fn of(ttl: Duration) -> Self {
        Hold { ttl, retry: false }
    }

    /// Both of them.
    pub(super) fn and(self, other: Hold) -> Self {
        Hold { ttl: self.ttl.min(other.ttl), retry: self.retry || other.retry }
    }
}

/// When to look again.
#[derive(Debug)]
struct Pace {
    longest: Duration,
    retry: Duration,
}

impl Pace {
    /// Never later than after `longest`.
    fn new(longest: Duration) -> Self {
        Pace { longest: longest.max(MIN_TTL), retry: FIRST_RETRY }
    }

    fn pause(&mut self, hold: Hold) -> Duration {
        let ttl = hold.ttl.clamp(MIN_TTL, self.longest);
        if !hold.retry {
            self.retry = FIRST_RETRY;
            return ttl;
        }
        let pause = self.retry.min(ttl);
        self.retry = self.retry.saturating_mul(2).min(self.longest);
        pause
    }
}

/// Keeps what was told last, so that only what is new is told.
pub(super) struct Desk {
    backend: Arc<Backend>,
    pace: Pace,
    told: Option<News>,
    problem: Option<String>,
}

impl Desk {
    /// Looks at least as often as every `longest`.
    pub(super) fn new(backend: Arc<Backend>, longest: Duration) -> Self {
        Desk { backend, pace: Pace::new(longest), told: None, problem: None }
    }

    /// What is to be told, and how long to wait before the next look.
    pub(super) fn take(&mut self, look: Look) -> (Option<News>, Duration) {
        self.count_and_say(look.problem);
        // Nothing but failures is not "there is nothing".
        let news = look.news.filter(|news| news.complete || !news.found.is_empty());
        let news = news.filter(|news| self.told.as_ref() != Some(news));
        if let Some(news) = &news {
            self.told = Some(news.clone());
        }
        (news, self.pace.pause(look.hold))
    }

    fn count_and_say(&mut self, problem: Option<String>) {
        let backend = &self.backend;
        let verdict = if problem.is_some() { Verdict::Failure } else { Verdict::Success };
        backend.metrics.resolved(verdict);
        match (&self.problem, &problem) {
            (before, Some(now)) if before.as_ref() != Some(now) => {
                tracing::warn!(backend = %backend.name, "what can not be looked up stays as it is: {now}");
            }
            (Some(_), None) => tracing::info!(backend = %backend.name, "all is looked up again"),
            (Some(_), Some(_)) | (None, Some(_) | None) => {}
        }
        self.problem = problem;
    }
}

/// These endpoints in a stable order, each once: answers of DNS rotate.
pub(super) fn in_order(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_by_key(|found| found.address);
    found.dedup_by_key(|found| found.address);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_is_asked_for_again_when_its_time_is_over() {
        let mut pace = Pace::new(seconds(30));
        assert_eq!(pace.pause(Hold::of(seconds(7))), seconds(7));
        assert_eq!(pace.pause(Hold::of(seconds(300))), seconds(30));
        assert_eq!(pace.pause(Hold::of(Duration::ZERO)), seconds(1));
        assert_eq!(pace.pause(Hold::FOR_EVER), seconds(30));
    }

    #[test]
    fn a_refresh_below_the_shortest_time_is_no_hot_loop() {
        let mut pace = Pace::new(Duration::from_millis(1));
        assert_eq!(pace.pause(Hold::of(seconds(7))), seconds(1));
    }

    #[test]
    fn failures_are_met_less_and_less_often() {
        let mut pace = Pace::new(seconds(3));
        let pauses: Vec<_> = (0..5).map(|_| pace.pause(Hold::RETRY).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 3000, 3000]);
        pace.pause(Hold::of(seconds(1)));
        assert_eq!(pace.pause(Hold::RETRY), FIRST_RETRY, "a success ends the row");
    }

    #[test]
    fn what_did_not_fail_is_not_late_for_what_did() {
        let mut pace = Pace::new(seconds(30));
        for _ in 0..10 {
            pace.pause(Hold::RETRY);
        }
        assert_eq!(pace.pause(Hold::RETRY.and(Hold::of(seconds(5)))), seconds(5));
    }

    #[test]
    fn an_address_that_is_found_twice_counts_once() {
        let at = |port, weight| Found {
            address: ([127, 0, 0, 1], port).into(),
            weight,
            zone: None,
            local: false,
        };
        assert_eq!(in_order(vec![at(2, 1), at(1, 5), at(2, 9)]), [at(1, 5), at(2, 1)]);
    }
}
