//! The fastest of those that are not among the fullest: the hot-cold rule of Prequal (Wydrowski and
//! others, *Load is not what you should balance*, NSDI 2024).
//!
//! An endpoint is *hot* when it has more requests in flight than a quantile of the pool, [`HOT`].
//! Of those that are not hot the one with the least latency wins, where latency is that of recent
//! requests which found about as many in flight.
//!
//! What differs from the paper: there are no probes. A probe tells a client what a server has in
//! flight from all clients, and how long it takes with so many; a sidecar counts its own requests
//! exactly, learns times from its own answers, and hears of other clients from the endpoints'
//! reports. So the pool is drawn anew for every decision, nothing in it is used up or too old,
//! latencies are of the last minute, and the quantile is that of the pool, so that never all of it
//! is hot. Latencies are those of first bytes: totals of model servers tell of the length of answers.

use rand::Rng;

use super::choose::Looked;
use super::score::Foreign;
use super::{Candidates, pending, weight};

/// How many endpoints one decision compares.
const POOL: usize = 16;

/// The share of the pool that is not hot: 2 to the power of −0.25, from the paper.
const HOT: f64 = 0.84;

/// The fastest of a pool that is not hot.
pub(super) fn pick(candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
    let pool = if candidates.len() <= POOL {
        Looked::all(candidates)
    } else {
        Looked::some(candidates, rng, POOL)
    };
    let foreign = Foreign::among(&pool, candidates);
    let fullness =
        |i| (pending(candidates, i) + foreign.requests(candidates, i)) / weight(candidates, i);
    let hot = threshold(pool.indices().map(fullness));
    pool.least(rng, |i| if fullness(i) > hot { f64::INFINITY } else { latency(candidates, i) })
}

/// The usual first byte of a request that joins those at endpoint `i`, in seconds. One of which
/// nothing is known is tried first; it is hot before it has more than the others.
fn latency(candidates: &impl Candidates, i: usize) -> f64 {
    let facts = candidates.facts(i);
    facts.first_byte_at(facts.in_flight() + 1, candidates.now()).unwrap_or(0.0)
}

/// The value above which an endpoint is hot: the quantile [`HOT`] of at most [`POOL`] values.
fn threshold(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted = [f64::INFINITY; POOL];
    let count = sorted.iter_mut().zip(values).map(|(slot, value)| *slot = value).count();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[(HOT * count.saturating_sub(1) as f64) as usize]
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::fleet::Fleet;
    use super::super::reported::Report;
    use super::*;

    const KIND: Kind = Kind::Prequal;

    /// Endpoints with so many in flight, of which each answered in so many seconds.
    fn fleet(endpoints: &[(usize, f64)]) -> Fleet {
        let fleet = Fleet::idle(endpoints.len());
        for (i, &(in_flight, seconds)) in endpoints.iter().enumerate() {
            for _ in 0..in_flight {
                fleet.load(i, 1);
            }
            fleet.answer(i, seconds);
        }
        fleet
    }

    #[test]
    fn the_fastest_that_is_not_hot() {
        let fleet = fleet(&[(3, 0.5), (4, 0.2), (5, 0.3), (9, 0.1)]);
        assert_eq!(fleet.picks(KIND, 100, 1), [0, 100, 0, 0]);
        for _ in 0..20 {
            fleet.load(1, 1);
        }
        // Now the second is the fullest, and the last, the fastest, is not.
        assert_eq!(fleet.picks(KIND, 100, 1), [0, 0, 0, 100]);
    }

    #[test]
    fn of_two_the_less_full() {
        let fleet = fleet(&[(3, 9.0), (4, 0.1)]);
        assert_eq!(fleet.picks(KIND, 100, 2), [100, 0]);
    }

    #[test]
    fn latency_is_that_of_as_many_in_flight() {
        let fleet = fleet(&[(0, 0.1), (0, 0.2), (40, 0.0)]);
        for _ in 0..20 {
            fleet.load(0, 1);
        }
        fleet.answer(0, 1.0);
        // The first was fast with one in flight; it has twenty now, and is slow with them.
        assert_eq!(fleet.picks(KIND, 100, 3), [0, 100, 0]);
    }

    #[test]
    fn without_history_it_is_tried_until_it_is_hot() {
        let mut fleet = fleet(&[(2, 0.1), (2, 0.4), (2, 0.2)]);
        fleet.facts[1] = Fleet::idle(1).facts.remove(0);
        assert_eq!(fleet.picks(KIND, 100, 4), [0, 100, 0]);
        for _ in 0..3 {
            fleet.load(1, 1);
        }
        assert_eq!(fleet.picks(KIND, 100, 4), [100, 0, 0]);
    }

    #[test]
    fn requests_of_others_make_hot() {
        let fleet = fleet(&[(1, 0.1), (1, 0.2), (1, 0.3)]);
        let report = |running| Report { running: Some(running), ..Report::default() };
        fleet.report(0, report(30.0));
        fleet.report(1, report(1.0));
        fleet.report(2, report(1.0));
        assert_eq!(fleet.picks(KIND, 100, 5), [0, 100, 0]);
    }

    #[test]
    fn the_threshold_is_the_quantile() {
        let of = |count: u32| threshold((0..count).map(|i| f64::from(count - i)));
        assert_eq!([of(1), of(2), of(7), of(16)], [1.0, 1.0, 6.0, 13.0]);
    }
}
