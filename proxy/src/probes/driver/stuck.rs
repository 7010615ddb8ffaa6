//! Calls under way: how many, for how long, and which do not return.
//!
//! Decides: a call is stuck when it has been under way for longer than the configuration allows, unless its command is
//! there to wait for something. Each is told once when it is stuck, and once more when it has returned. A pure core: no
//! kernel, no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use outrigger_probes::Flight;

/// Who called, and when.
pub(super) type Caller = (u64, u64);

/// How it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Calls under way.
    pub(super) in_flight: usize,
    /// How long the oldest has been, of those that do not wait by design; 0 when there is none.
    pub(super) oldest: Duration,
    /// Calls that are stuck.
    pub(super) stuck: usize,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A call is stuck: who called, what, and for how long it has been under way.
    Stuck(Caller, u64, Duration),
    /// One that was stuck is not under way any more.
    Returned(Caller, u64),
}

/// What has been told of calls.
#[derive(Debug)]
pub(super) struct Stuck {
    after: Duration,
    /// What the calls were that are known to be stuck.
    told: BTreeMap<Caller, u64>,
}

impl Stuck {
    /// A call is stuck after so long.
    pub(super) fn new(after: Duration) -> Self {
        Stuck { after, told: BTreeMap::new() }
    }

    /// Looks at all calls under way, each with its thread, at `now`, in nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn look(
        &mut self,
        now: u64,
        flights: &BTreeMap<u64, Flight>,
        waits: impl Fn(u64) -> bool,
    ) -> (Standing, Vec<News>) {
        let mut standing = Standing { in_flight: flights.len(), ..Standing::default() };
        let (mut stuck, mut news) = (BTreeSet::new(), Vec::new());
        for (task, flight) in flights.iter().filter(|(_, flight)| !waits(flight.what)) {
            let age = Duration::from_nanos(now.saturating_sub(flight.start));
            standing.oldest = standing.oldest.max(age);
            if age < self.after {
                continue;
            }
            let caller = (*task, flight.start);
            stuck.insert(caller);
            if self.told.insert(caller, flight.what).is_none() {
                news.push(News::Stuck(caller, flight.what, age));
            }
        }
        standing.stuck = stuck.len();
        self.told.retain(|caller, what| {
            let is_stuck = stuck.contains(caller);
            if !is_stuck {
                news.push(News::Returned(*caller, *what));
            }
            is_stuck
        });
        (standing, news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: u64 = 99;

    fn look(stuck: &mut Stuck, now: u64, flights: &[(u64, u64, u64)]) -> (Standing, Vec<News>) {
        let flights = flights.iter().map(|(task, start, what)| {
            let (start, what) = (*start, *what);
            (*task, Flight { start, what })
        });
        stuck.look(now, &flights.collect(), |what| what == WAIT)
    }

    #[test]
    fn a_stuck_call_is_told_once_and_once_more_when_it_returns() {
        let mut stuck = Stuck::new(Duration::from_nanos(100));
        let nanos = Duration::from_nanos;
        let young = Standing { in_flight: 1, oldest: nanos(99), stuck: 0 };
        assert_eq!(look(&mut stuck, 1099, &[(7, 1000, 3)]), (young, vec![]));
        let old = Standing { in_flight: 1, oldest: nanos(100), stuck: 1 };
        let told = vec![News::Stuck((7, 1000), 3, nanos(100))];
        assert_eq!(look(&mut stuck, 1100, &[(7, 1000, 3)]), (old, told));
        assert_eq!(look(&mut stuck, 1101, &[(7, 1000, 3)]).1, []);
        let (standing, news) = look(&mut stuck, 1102, &[(7, 1101, 3)]);
        assert_eq!(news, [News::Returned((7, 1000), 3)], "the next of the same thread is another");
        assert_eq!(standing.stuck, 0);
        assert_eq!(look(&mut stuck, 1103, &[]), (Standing::default(), vec![]));
    }

    #[test]
    fn what_is_there_to_wait_is_not_stuck() {
        let mut stuck = Stuck::new(Duration::from_nanos(100));
        let (standing, news) = look(&mut stuck, 5000, &[(7, 1000, WAIT), (8, 4990, 3)]);
        let oldest = Duration::from_nanos(10);
        assert_eq!(standing, Standing { in_flight: 2, oldest, stuck: 0 });
        assert_eq!(news, []);
    }

    #[test]
    fn nothing_is_older_than_now() {
        let mut stuck = Stuck::new(Duration::from_secs(1));
        assert_eq!(look(&mut stuck, 1000, &[(7, 1001, 3)]).0.oldest, Duration::ZERO);
    }
}
