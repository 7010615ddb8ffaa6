//! Endpoints in turn, by weight, leaving out those that cannot be picked.
//!
//! For endpoints whose load is not visible from here, and for comparison.
//!
//! A turn that falls on an unusable endpoint is *consumed*, not passed to the neighbour: the walk
//! goes on along the one sequence that all requests share. What remains is the sequence without the
//! missing endpoint, so its share goes to all the others by their weights. Passing the turn on
//! without consuming it would give the next one in the list twice its share.
//!
//! An endpoint whose weight is another than the configured one, because it starts slowly or its agent
//! says so, takes that share of its turns, at random; a share above 1 by the others' taking fewer,
//! with as many endpoints as can be looked at for it.

use rand::{Rng, RngExt};

use super::choose::FULL_SCAN;
use super::{Candidates, least_connection, pickable, weight};
use crate::split::Schedule;

/// The turns, and what the configured weights were.
#[derive(Debug)]
pub(super) struct RoundRobin {
    /// `None` without any weight, or with more endpoints than a schedule holds.
    schedule: Option<Schedule>,
    weights: Box<[u32]>,
}

impl RoundRobin {
    pub(super) fn new(members: &[(u64, u32)]) -> Self {
        let weights: Box<[u32]> = members.iter().map(|(_, weight)| *weight).collect();
        Self { schedule: Schedule::fitted(&weights).ok(), weights }
    }

    /// The next endpoint in turn that can be picked and takes its turn, within one period; where none takes it, all being
    /// new, the one whose turn it was; after that the first in the list that can.
    pub(super) fn pick(&self, candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
        let Some(schedule) = &self.schedule else { return least_connection::pick(candidates, rng) };
        let most = self.largest_share(candidates);
        let first = schedule.next();
        if is_pickable(candidates, first) && self.takes_turn(candidates, first, most, rng) {
            return Some(first);
        }
        // Without it nothing can be picked and the walk would be in vain. With it the walk can come
        // back empty only when other threads were dealt all the turns that could be used.
        let last_resort = (0..candidates.len()).find(|&i| pickable(candidates, i))?;
        let mut in_turn = is_pickable(candidates, first).then_some(first);
        for i in (1..schedule.period()).map(|_| schedule.next()) {
            if is_pickable(candidates, i) {
                if self.takes_turn(candidates, i, most, rng) {
                    return Some(i);
                }
                in_turn.get_or_insert(i);
            }
        }
        in_turn.or(Some(last_resort))
    }

    fn takes_turn(
        &self,
        candidates: &impl Candidates,
        i: usize,
        most: f64,
        rng: &mut impl Rng,
    ) -> bool {
        let share = self.share(candidates, i) / most;
        share >= 1.0 || rng.random_bool(share)
    }

    /// The largest share that any of a few endpoints takes of its turns.
    fn largest_share(&self, candidates: &impl Candidates) -> f64 {
        if candidates.len() > FULL_SCAN {
            return 1.0;
        }
        let pickable = (0..candidates.len()).filter(|&i| pickable(candidates, i));
        let largest = pickable.map(|i| self.share(candidates, i)).fold(0.0, f64::max);
        if largest > 0.0 { largest } else { 1.0 }
    }

    /// The weight now for the configured one.
    fn share(&self, candidates: &impl Candidates, i: usize) -> f64 {
        weight(candidates, i) / f64::from(self.weights[i])
    }
}

fn is_pickable(candidates: &impl Candidates, i: usize) -> bool {
    i < candidates.len() && pickable(candidates, i)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::super::fleet::Fleet;
    use super::*;

    fn table(weights: &[u32], down: &[usize]) -> (Fleet, RoundRobin) {
        let mut fleet = Fleet::idle(weights.len());
        fleet.weights = weights.iter().copied().map(f64::from).collect();
        down.iter().for_each(|&i| fleet.usable[i] = false);
        let turns = RoundRobin::new(&fleet.members());
        (fleet, turns)
    }

    fn counts(fleet: &Fleet, turns: &RoundRobin, picks: usize) -> Vec<usize> {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut counts = vec![0; fleet.len()];
        for _ in 0..picks {
            counts[turns.pick(fleet, &mut rng).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn follows_the_schedule() {
        let (fleet, turns) = table(&[5, 1, 1], &[]);
        let mut rng = SmallRng::seed_from_u64(1);
        let picks: Vec<_> = (0..7).filter_map(|_| turns.pick(&fleet, &mut rng)).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn the_turns_of_a_missing_endpoint_go_to_all_others() {
        let (fleet, turns) = table(&[1, 1, 1, 1], &[1]);
        assert_eq!(counts(&fleet, &turns, 3_000), [1_000, 0, 1_000, 1_000]);
    }

    #[test]
    fn the_turns_of_a_missing_endpoint_go_by_weight() {
        let (fleet, turns) = table(&[4, 3, 2, 1], &[1]);
        assert_eq!(counts(&fleet, &turns, 7_000), [4_000, 0, 2_000, 1_000]);
    }

    #[test]
    fn a_rare_endpoint_is_reached_when_the_heavy_one_is_missing() {
        let (fleet, turns) = table(&[1_000, 1], &[0]);
        assert_eq!(counts(&fleet, &turns, 10), [0, 10]);
    }

    #[test]
    fn an_endpoint_that_starts_slowly_takes_a_share_of_its_turns() {
        let (mut fleet, turns) = table(&[4, 4, 4], &[]);
        fleet.weights[0] = 1.0;
        let counts = counts(&fleet, &turns, 9_000);
        assert!((850..=1_150).contains(&counts[0]), "{counts:?}, seed 1");
        assert!(counts[1].abs_diff(counts[2]) < 200, "{counts:?}, seed 1");
    }

    #[test]
    fn nothing_usable_is_nothing_picked() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (mut fleet, turns) = table(&[2, 1], &[0, 1]);
        assert_eq!(turns.pick(&fleet, &mut rng), None);
        (fleet.usable, fleet.weights) = (vec![true, true], vec![0.0, 0.0]);
        assert_eq!(turns.pick(&fleet, &mut rng), None);
        assert_eq!(turns.pick(&Fleet::idle(0), &mut rng), None);
        let (fleet, turns) = table(&[], &[]);
        assert_eq!(turns.pick(&fleet, &mut rng), None);
    }

    #[test]
    fn more_endpoints_than_a_schedule_holds_are_balanced_all_the_same() {
        let (fleet, turns) = table(&vec![1; (1 << 16) + 1], &[]);
        assert!(turns.pick(&fleet, &mut SmallRng::seed_from_u64(1)).is_some());
    }

    #[test]
    fn one_usable_endpoint_is_found_by_every_thread() {
        // Eight threads and one useful turn in a hundred: without the spare some would walk a
        // period in vain.
        let down: Vec<usize> = (0..99).collect();
        let (fleet, turns) = table(&[1; 100], &down);
        let all_found = |seed| {
            let mut rng = SmallRng::seed_from_u64(seed);
            (0..2_000).all(|_| turns.pick(&fleet, &mut rng) == Some(99))
        };
        thread::scope(|scope| {
            let all_found = &all_found;
            let threads: Vec<_> = (0..8).map(|seed| scope.spawn(move || all_found(seed))).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
        });
    }
}
