//! Endpoints in turn, by weight, leaving out those that cannot be picked.
//!
//! A turn that falls on an unusable endpoint is *consumed*, not passed to the neighbour: the walk
//! goes on along the one sequence that all requests share. What remains is the sequence without the
//! missing endpoint, so its share goes to all the others by their weights. Passing the turn on
//! without consuming it would give the next one in the list twice its share.

use super::{Candidates, pickable};
use crate::split::Schedule;

/// The next endpoint in turn that can be picked, within one period; after that the first in the
/// list that can.
pub(super) fn pick(candidates: &impl Candidates, schedule: &Schedule) -> Option<usize> {
    let pickable = |i: &usize| *i < candidates.len() && pickable(candidates, *i);
    let first = schedule.next();
    if pickable(&first) {
        return Some(first);
    }
    // Without it nothing can be picked and the walk would be in vain. With it the walk can come
    // back empty only when other threads were dealt all the turns that could be used.
    let spare = (0..candidates.len()).find(pickable)?;
    let rest = (1..schedule.period()).map(|_| schedule.next()).find(pickable);
    rest.or(Some(spare))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    struct Table {
        usable: Vec<bool>,
        weights: Vec<u32>,
    }

    impl Candidates for Table {
        fn len(&self) -> usize {
            self.usable.len()
        }

        fn usable(&self, i: usize) -> bool {
            self.usable[i]
        }

        fn load(&self, _: usize) -> u64 {
            0
        }

        fn weight(&self, i: usize) -> u32 {
            self.weights[i]
        }
    }

    fn table(weights: &[u32], down: &[usize]) -> (Table, Schedule) {
        let usable = (0..weights.len()).map(|i| !down.contains(&i)).collect();
        (Table { usable, weights: weights.into() }, Schedule::new(weights).unwrap())
    }

    fn counts(table: &Table, schedule: &Schedule, picks: usize) -> Vec<usize> {
        let mut counts = vec![0; table.len()];
        for _ in 0..picks {
            counts[pick(table, schedule).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn follows_the_schedule() {
        let (table, schedule) = table(&[5, 1, 1], &[]);
        let picks: Vec<_> = (0..7).filter_map(|_| pick(&table, &schedule)).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn the_turns_of_a_missing_endpoint_go_to_all_others() {
        let (table, schedule) = table(&[1, 1, 1, 1], &[1]);
        assert_eq!(counts(&table, &schedule, 3_000), [1_000, 0, 1_000, 1_000]);
    }

    #[test]
    fn the_turns_of_a_missing_endpoint_go_by_weight() {
        let (table, schedule) = table(&[4, 3, 2, 1], &[1]);
        assert_eq!(counts(&table, &schedule, 7_000), [4_000, 0, 2_000, 1_000]);
    }

    #[test]
    fn a_rare_endpoint_is_reached_when_the_heavy_one_is_missing() {
        let (table, schedule) = table(&[1_000, 1], &[0]);
        assert_eq!(counts(&table, &schedule, 10), [0, 10]);
    }

    #[test]
    fn nothing_usable_is_nothing_picked() {
        let (mut table, schedule) = table(&[2, 1], &[0, 1]);
        assert_eq!(pick(&table, &schedule), None);
        (table.usable, table.weights) = (vec![true, true], vec![0, 0]);
        assert_eq!(pick(&table, &schedule), None);
        (table.usable, table.weights) = (vec![], vec![]);
        assert_eq!(pick(&table, &schedule), None);
    }

    #[test]
    fn one_usable_endpoint_is_found_by_every_thread() {
        // Eight threads and one useful turn in a hundred: without the spare some would walk a
        // period in vain.
        let down: Vec<usize> = (0..99).collect();
        let (table, schedule) = table(&[1; 100], &down);
        let all_found = || (0..2_000).all(|_| pick(&table, &schedule) == Some(99));
        thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(all_found)).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
        });
    }
}
