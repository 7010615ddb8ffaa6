//! Deadlines: the one timer that watches those of a request, and how they are learned ([`Learner`]).
//!
//! A deadline moves with every chunk, a timer should not: arming one costs more than relaying a chunk. So the timer
//! is left where it is when a deadline moves further away, and looks at the clock when it fires early. It lives with
//! the client's connection and serves one request after the other.

mod budget;
mod histogram;
mod learner;
mod prices;
mod strategy;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::time::Sleep;

pub use budget::Budget;
pub use learner::{Basis, Forecast, Knowledge, Learner, Limit, Patience, Settings, Size, Summary};
pub use prices::{Answer, Work};
pub use strategy::Known;

/// What a request may run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The endpoint sent nothing yet.
    FirstByte,
    /// The endpoint fell silent in the middle.
    Gap,
    /// The endpoint stopped working on everything it has.
    Stalled,
    /// The request as a whole took too long.
    Total,
    /// The client did not go on with its request body.
    ClientBody,
    /// The client did not read what was sent.
    ClientRead,
}

/// The earliest of several deadlines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Next(Option<(Instant, Expiry)>);

impl Next {
    /// No deadline.
    pub fn never() -> Self {
        Next(None)
    }

    /// The earlier of this and `at`.
    #[must_use]
    pub fn or(self, at: Option<Instant>, expiry: Expiry) -> Self {
        match (self.0, at) {
            (Some((known, _)), Some(at)) if known <= at => self,
            (_, Some(at)) => Next(Some((at, expiry))),
            (_, None) => self,
        }
    }
}

/// A timer that is armed as seldom as possible.
#[derive(Default)]
pub struct Watchdog {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watchdog {
    /// A timer that has not been needed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ready when `at` has passed.
    pub fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let at = tokio::time::Instant::from_std(at);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if tokio::time::Instant::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }

    /// Ready with what expired first, as soon as it did.
    pub fn poll_expired(&mut self, next: Next, cx: &mut Context<'_>) -> Poll<Expiry> {
        match next.0 {
            Some((at, expiry)) => self.poll_until(at, cx).map(|()| expiry),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    #[test]
    fn the_earliest_deadline_counts() {
        let now = Instant::now();
        let at = |seconds| Some(now + Duration::from_secs(seconds));
        let next = Next::never()
            .or(at(3), Expiry::Total)
            .or(None, Expiry::Gap)
            .or(at(2), Expiry::FirstByte);
        assert_eq!(next.or(at(5), Expiry::Gap).0, at(2).map(|at| (at, Expiry::FirstByte)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_away_is_met_where_it_moved_to() {
        let start = tokio::time::Instant::now();
        let mut dog = Watchdog::new();
        let soon = start + Duration::from_secs(1);
        let late = start + Duration::from_secs(60);
        assert!(poll_fn(|cx| Poll::Ready(dog.poll_until(soon.into_std(), cx))).await.is_pending());
        poll_fn(|cx| dog.poll_until(late.into_std(), cx)).await;
        assert!(start.elapsed() >= Duration::from_secs(60));
        poll_fn(|cx| dog.poll_until(soon.into_std(), cx)).await;
        assert!(start.elapsed() < Duration::from_secs(61), "a past deadline is ready at once");
    }
}
