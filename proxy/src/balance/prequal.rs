//! The fastest of those that are not among the fullest: the hot-cold rule of Prequal (Wydrowski and
//! others, *Load is not what you should balance*, NSDI 2024).
//!
//! An endpoint is *hot* when it has more requests in flight than a quantile of the pool, [`HOT`].
//! Of [`TRIED`] random ones the fastest wins that is not hot, where latency is that of recent requests
//! which found about as many in flight; when all are hot the least full does.
//!
//! What differs from the paper: there are no probes. A probe tells a client what a server has in
//! flight from all clients, and how long it takes with so many; a sidecar counts its own requests
//! exactly, learns times from its own answers, and hears of other clients from the endpoints'
//! reports. So the pool is drawn anew for every decision and the quantile is that of the pool. What
//! keeps all requests from running to the one that was fastest lately is in the paper that a probe is
//! used up; here it is that few are tried, as many as the paper's synchronous mode probes. Latencies are those of first bytes: totals of model servers tell of the length of answers.

use rand::Rng;

use super::choose::Looked;
use super::score::Foreign;
use super::{Candidates, pending, weight};

/// How many endpoints one decision compares.
const POOL: usize = 16;

/// How many of them can win. With the whole pool it herds: on simulated fleets the slowest first bytes
/// take twice as long.
const TRIED: usize = 3;

/// The share of the pool that is not hot: the least of what the paper finds good (0.6 to 0.9).
const HOT: f64 = 0.6;

/// The rank of a hot endpoint, above any latency in seconds.
const BEHIND: f64 = 1e9;

/// The fastest of a few that is not hot.
pub(super) fn pick(candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
    let pool = sample(candidates, rng, POOL);
    let foreign = Foreign::among(&pool, candidates);
    let fullness =
        |i| (pending(candidates, i) + foreign.requests(candidates, i)) / weight(candidates, i);
    let hot = threshold(pool.indices().map(fullness));
    let tried = sample(candidates, rng, TRIED);
    let rank = |i| match fullness(i) {
        full if full > hot => BEHIND + full,
        _ => latency(candidates, i),
    };
    tried.least(rng, rank)
}

/// So many random endpoints, or all.
fn sample(candidates: &impl Candidates, rng: &mut impl Rng, count: usize) -> Looked {
    if candidates.len() <= count {
        Looked::all(candidates)
    } else {
        Looked::some(candidates, rng, count)
    }
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
        let fleet = fleet(&[(3, 0.5), (4, 0.2), (9, 0.1)]);
        assert_eq!(fleet.picks(KIND, 100, 1), [0, 100, 0]);
        for _ in 0..20 {
            fleet.load(1, 1);
        }
        // Now the second is the fullest, and the last, the fastest, is not.
        assert_eq!(fleet.picks(KIND, 100, 1), [0, 0, 100]);
    }

    #[test]
    fn not_everybody_runs_to_the_fastest() {
        let endpoints: Vec<_> = (0..12).map(|i| (1, 0.1 + 0.01 * f64::from(i))).collect();
        let picks = fleet(&endpoints).picks(KIND, 12_000, 1);
        // The fastest is among three of twelve once in four times, the last two never win.
        assert!((2_800..3_200).contains(&picks[0]) && picks.is_sorted_by(|a, b| a >= b));
        assert_eq!(picks[10..], [0, 0]);
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
        assert_eq!([of(1), of(2), of(7), of(16)], [1.0, 1.0, 4.0, 10.0]);
    }
}
