//! Where the longest part of the prompt was computed, unless too much is there already.
//!
//! The load comes first: an endpoint that has the prompt is taken only while it carries at most
//! [`FACTOR`] times what the least loaded one does, and [`SLACK`] on top. So a popular prefix spreads
//! to another endpoint, which then has it as well, before it piles up. Without a prompt that is
//! known, or with too much work there, it is the least work in flight.

use rand::Rng;

use super::affinity::{Affinity, Named};
use super::choose::Looked;
use super::cost::Cost;
use super::least_connection::score;
use super::{Candidates, pickable, weight};

/// How many times the work of the least loaded endpoint does not matter.
const FACTOR: f64 = 1.5;

/// The work that does not matter, at a weight of 1.0: four running requests.
const SLACK: f64 = 4.0 * Cost::REQUEST as f64;

/// Who has the longest part of the prompt and is not too full, of these the least loaded; else the
/// least loaded.
pub(super) fn pick(
    candidates: &impl Candidates,
    affinity: &Affinity,
    rng: &mut impl Rng,
) -> Option<usize> {
    let least = Looked::at(candidates, rng, &Named::new()).least(rng, |i| score(candidates, i))?;
    let gate = FACTOR * score(candidates, least);
    let named = affinity.of_prompt(&candidates.ask().prefix, candidates);
    let fits = |i: &usize| {
        let saved = saved(candidates, named.bytes(*i)) + SLACK;
        score(candidates, *i) <= gate + saved / weight(candidates, *i)
    };
    let better = |a: &usize, b: &usize| {
        let shorter = named.bytes(*a).cmp(&named.bytes(*b));
        shorter.then(score(candidates, *b).total_cmp(&score(candidates, *a)))
    };
    let has_it = named.indices().filter(|&i| pickable(candidates, i)).filter(fits);
    has_it.max_by(better).or(Some(least))
}

/// The work of computing so much of the prompt.
fn saved(candidates: &impl Candidates, bytes: usize) -> f64 {
    let cost = candidates.ask().cost;
    (cost.total() - cost.with_cached(bytes as u64).total()) as f64
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::super::fleet::Fleet;
    use super::super::{Ask, Kind, Policy, Prefix};
    use super::*;

    const KIND: Kind = Kind::PrefixAffinity;

    fn ask(text: &[u8]) -> Ask {
        Ask { cost: Cost::of_prompt(text.len() as u64), prefix: Prefix::of(text), key: None }
    }

    fn fleet(endpoints: usize, text: &[u8]) -> (Fleet, Policy) {
        let fleet = Fleet { ask: ask(text), ..Fleet::idle(endpoints) };
        let policy = fleet.policy(KIND);
        (fleet, policy)
    }

    #[test]
    fn a_prompt_goes_where_its_head_was_computed() {
        for endpoints in [2, 32, 33, 1_000] {
            let (fleet, policy) = fleet(endpoints, &[1; 3_000]);
            let mut rng = SmallRng::seed_from_u64(endpoints as u64);
            let first = fleet.send(&policy, &mut rng).unwrap();
            assert_eq!(policy.pick(&fleet, &mut rng), Some(first), "{endpoints} endpoints");
        }
    }

    #[test]
    fn the_longest_match_wins_and_of_those_the_least_loaded() {
        let (fleet, policy) = fleet(5, &[1; 9_000]);
        policy.sent(&ask(&[1; 9_000]), &fleet.facts[1], fleet.now);
        policy.sent(&ask(&[1; 9_000]), &fleet.facts[2], fleet.now);
        policy.sent(&ask(&[1; 5_000]), &fleet.facts[3], fleet.now);
        fleet.load(1, 100);
        assert_eq!(fleet.picks(KIND, 100, 1), [0, 0, 100, 0, 0]);
        fleet.load(2, 200);
        assert_eq!(fleet.picks(KIND, 100, 1), [0, 100, 0, 0, 0]);
    }

    #[test]
    fn a_popular_prefix_does_not_pile_up_beyond_the_gate() {
        for endpoints in [2, 8, 32] {
            let (fleet, policy) = fleet(endpoints, &[1; 4_096]);
            let mut rng = SmallRng::seed_from_u64(endpoints as u64);
            let own = fleet.ask.cost.total();
            for _ in 0..endpoints * 50 {
                let i = fleet.send(&policy, &mut rng).unwrap();
                let loads = || fleet.facts.iter().map(|facts| facts.load() as f64);
                let least = loads().fold(f64::INFINITY, f64::min) + own as f64;
                let most = fleet.facts[i].load() as f64;
                assert!(most <= FACTOR * least + SLACK, "{endpoints}: {most} against {least}");
            }
        }
    }

    #[test]
    fn what_cannot_be_picked_is_not_for_its_cache() {
        let (mut fleet, policy) = fleet(3, &[1; 3_000]);
        policy.sent(&fleet.ask, &fleet.facts[1], fleet.now);
        fleet.usable[1] = false;
        assert_eq!(fleet.picks(KIND, 1_000, 2)[1], 0);
        fleet.usable[1] = true;
        fleet.weights[1] = 0.5;
        assert_eq!(fleet.picks(KIND, 1_000, 2)[1], 1_000);
    }

    #[test]
    fn other_prompts_go_where_there_is_least() {
        let (mut fleet, policy) = fleet(3, &[1; 3_000]);
        policy.sent(&fleet.ask, &fleet.facts[1], fleet.now);
        fleet.ask = ask(&[2; 3_000]);
        fleet.load(1, 1);
        fleet.load(2, 1);
        assert_eq!(fleet.picks(KIND, 100, 3), [100, 0, 0]);
    }
}
