//! Whether a slow attempt gets company: a second attempt of the same request at another endpoint,
//! before the first one has begun to answer.
//!
//! A hedge buys a shorter tail with double work (Dean and Barroso, *The Tail at Scale*, 2013: a
//! second request after the 95th percentile costs 5 % and takes most of the tail away). [`decide`]
//! keeps the price where it was agreed; the first objection wins:
//!
//! 1. one request has at most [`Policy::max`] hedges;
//! 2. hedges are attempts, and attempts are counted: [`Policy::attempts`] bounds retries and hedges
//!    together;
//! 3. the whole request must be at hand: there is no second copy of what is still coming in;
//! 4. there must be an endpoint that serves like any other and has not been tried. One that is
//!    ejected is no help to a request that is in trouble already;
//! 5. the [`Allowance`] must have saved a hedge up;
//! 6. the route's [retry budget](crate::retry::Budget) must have room. It is shared, so that a
//!    backend in trouble is not hedged while it is retried; it is asked last, since what fails for
//!    another reason must not spend it.
//!
//! The allowance is a share of the requests without any reserve: over any stretch of time
//!
//! ```text
//! hedges ≤ requests × share + BURST,      and from the start:  hedges ≤ requests × share
//! ```
//!
//! so where every endpoint is slow, hedging adds its share and no more. Unlike the retry budget it
//! does not lapse: a model server may see one request in ten seconds, and 5 % of that should be
//! hedges too.
//!
//! Left out: when a hedge is due, the race itself, and who wins it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Hedges that can be saved up: what a bad second may spend of a quiet minute.
pub const BURST: u64 = 10;

/// One hedge, in the millionths that a share is counted in.
const HEDGE: u64 = 1_000_000;

/// What a route allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Hedges of one request.
    pub max: u32,
    /// Attempts of one request in all: the first, retries, hedges.
    pub attempts: u32,
}

/// An attempt that waits for its first byte, and its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Hedges that the request has had.
    pub hedges: u32,
    /// Attempts that it has had, this one and hedges included.
    pub attempts: u32,
    /// The request is here as a whole and can be sent again from its first byte.
    pub replayable: bool,
    /// There is an endpoint that serves and has not been tried.
    pub endpoint_left: bool,
}

/// Why there is no hedge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denied {
    /// The request has had all that it may have.
    Max,
    /// All attempts are used up.
    Attempts,
    /// The request body is no longer whole.
    Buffer,
    /// Every endpoint that serves has been tried.
    NoEndpoint,
    /// There have been too many hedges for so few requests.
    Share,
    /// There have been too many retries and hedges lately.
    Budget,
}

/// Whether a hedge follows. `withdraw` is [`Budget::try_withdraw`](crate::retry::Budget::try_withdraw);
/// it is called at most once, and `true` is followed by a hedge.
///
/// # Errors
/// The first objection.
pub fn decide(
    policy: Policy,
    waiting: &Waiting,
    allowance: &Allowance,
    withdraw: impl FnOnce() -> bool,
) -> Result<(), Denied> {
    let objections = [
        (waiting.hedges >= policy.max, Denied::Max),
        (waiting.attempts >= policy.attempts, Denied::Attempts),
        (!waiting.replayable, Denied::Buffer),
        (!waiting.endpoint_left, Denied::NoEndpoint),
    ];
    if let Some(why) = objections.into_iter().find_map(|(holds, why)| holds.then_some(why)) {
        return Err(why);
    }
    if !allowance.try_withdraw() {
        return Err(Denied::Share);
    }
    if !withdraw() {
        allowance.give_back();
        return Err(Denied::Budget);
    }
    Ok(())
}

/// How many hedges the requests of a route have earned. Any number of threads may use it.
#[derive(Debug)]
pub struct Allowance {
    /// What each request brings in, in millionths of a hedge.
    share: u64,
    saved: AtomicU64,
}

impl Allowance {
    /// Nothing saved yet; `share` hedges for each request, 0.0 to 1.0.
    pub fn new(share: f64) -> Self {
        // In range: a share is at most 1.
        let share = (share.clamp(0.0, 1.0) * HEDGE as f64).round() as u64;
        Self { share, saved: AtomicU64::new(0) }
    }

    /// Counts a request; its first attempt, not its hedges.
    pub fn deposit(&self) {
        self.add(self.share);
    }

    fn try_withdraw(&self) -> bool {
        let spend = |saved: u64| saved.checked_sub(HEDGE);
        self.saved.fetch_update(Relaxed, Relaxed, spend).is_ok()
    }

    /// A hedge that was not made after all.
    fn give_back(&self) {
        self.add(HEDGE);
    }

    fn add(&self, amount: u64) {
        // Full most of the time: then nothing is written.
        let add = |saved: u64| (saved < BURST * HEDGE).then(|| (saved + amount).min(BURST * HEDGE));
        let _ = self.saved.fetch_update(Relaxed, Relaxed, add);
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod simulation;
