//! The least work in flight for the weight.
//!
//! Only what is counted here: `(load + cost) / weight`, with what failures and distance count as
//! in the load. Nothing is guessed, so it is the policy to compare others with, and what they fall back to when
//! they know no better.

use rand::Rng;

use super::affinity::Named;
use super::choose::Looked;
use super::{Candidates, carried, weight};

/// The least loaded endpoint, of all or of a few among many.
pub(super) fn pick(candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
    Looked::at(candidates, rng, &Named::new()).least(rng, |i| score(candidates, i))
}

/// The work at endpoint `i` with this request on it, for its weight.
pub(super) fn score(candidates: &impl Candidates, i: usize) -> f64 {
    let added = candidates.ask().cost.total() + candidates.distance(i);
    (carried(candidates, i) + added as f64) / weight(candidates, i)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::choose::FULL_SCAN;
    use super::super::fleet::Fleet;
    use super::super::{Facts, Kind, pickable};
    use super::*;

    fn random(rng: &mut SmallRng) -> Fleet {
        let loads: Vec<u64> =
            (0..rng.random_range(0..=100)).map(|_| rng.random_range(0..5_000)).collect();
        let mut fleet = Fleet::loaded(&loads);
        let usable = rng.random_range(0.0..=1.0);
        for i in 0..loads.len() {
            fleet.usable[i] = rng.random_bool(usable);
            fleet.weights[i] = f64::from(rng.random_range(0..=3));
        }
        fleet
    }

    #[test]
    fn finds_one_whenever_there_is_one_and_the_least_of_few() {
        for seed in 0..5_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let fleet = random(&mut rng);
            let can: Vec<usize> = (0..fleet.len()).filter(|&i| pickable(&fleet, i)).collect();
            let picked = pick(&fleet, &mut rng);
            assert_eq!(picked.is_some(), !can.is_empty(), "seed {seed}");
            let Some(picked) = picked else { continue };
            assert!(can.contains(&picked), "seed {seed}: {picked} cannot be picked");
            let least = can.iter().map(|&i| score(&fleet, i)).fold(f64::INFINITY, f64::min);
            let is_least = score(&fleet, picked) == least;
            assert!(is_least || fleet.len() > FULL_SCAN, "seed {seed}: {picked}");
        }
    }

    #[test]
    fn weight_divides_the_load() {
        let fleet = |loads: [u64; 2]| Fleet { weights: vec![1.0, 3.0], ..Fleet::loaded(&loads) };
        // The request itself counts: (0 + 1000) / 1 against (1999 + 1000) / 3, and one more.
        assert_eq!(fleet([0, 1_999]).picks(Kind::LeastConnection, 100, 2), [0, 100]);
        assert_eq!(fleet([0, 2_001]).picks(Kind::LeastConnection, 100, 2), [100, 0]);
    }

    #[test]
    fn distance_is_work_that_must_be_outweighed() {
        let fleet = |loads: [u64; 2]| Fleet {
            weights: vec![5.0, 5.0],
            distances: vec![0, 4_000],
            ..Fleet::loaded(&loads)
        };
        assert_eq!(fleet([3_999, 0]).picks(Kind::LeastConnection, 100, 3), [100, 0]);
        assert_eq!(fleet([4_001, 0]).picks(Kind::LeastConnection, 100, 3), [0, 100]);
    }

    #[test]
    fn the_fullest_of_many_always_loses_to_another() {
        let mut loads = [0; FULL_SCAN + 1];
        loads[5] = 1;
        assert_eq!(Fleet::loaded(&loads).picks(Kind::LeastConnection, 100_000, 5)[5], 0);
    }

    #[test]
    fn two_choices_keep_the_fullest_near_the_mean() {
        for seed in 0..5 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let fleet = Fleet::idle(1_000);
            let policy = fleet.policy(Kind::LeastConnection);
            for _ in 0..10_000 {
                fleet.send(&policy, &mut rng).unwrap();
            }
            let fullest = fleet.facts.iter().map(Facts::in_flight).max().unwrap();
            // Ten each is the mean; picked at random the fullest holds more than twenty.
            assert!(fullest <= 14, "seed {seed}: {fullest}");
        }
    }
}
