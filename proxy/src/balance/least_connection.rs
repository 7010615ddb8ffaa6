//! The least work in flight for the weight: `(load + cost) / weight`, smallest first.
//!
//! Up to [`FULL_SCAN`] endpoints every one is looked at and ties are broken at random, since two
//! proxies that break them alike would herd. Two random choices are poor there: with few endpoints
//! and long requests they leave one idle while another queues. Above that a scan costs more than it
//! gains, and the lesser of two random endpoints is nearly as good: the fullest holds O(log log n)
//! more than the mean (Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*). The
//! random draws do not look at weights, only the comparison does.

use std::cmp::Ordering;

use rand::{Rng, RngExt};

use super::{Candidates, pickable};

/// The most endpoints of which every one is looked at.
const FULL_SCAN: usize = 32;

/// How many endpoints are drawn to find two that can be picked. With half of them usable it fails
/// once in 3,800 times; whoever fails scans, which is long only where little is usable.
const DRAWS: usize = 16;

/// The least loaded endpoint, or the lesser of two among many.
pub(super) fn pick(candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
    let lesser = if candidates.len() > FULL_SCAN { two_choices(candidates, rng) } else { None };
    lesser.or_else(|| scan(candidates, rng))
}

/// The lesser of two different endpoints drawn at random; `None` when too few of those drawn can be
/// picked.
fn two_choices(candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
    let mut drawn = (0..DRAWS)
        .map(|_| rng.random_range(0..candidates.len()))
        .filter(|&i| pickable(candidates, i));
    let first = drawn.next()?;
    let second = drawn.find(|&i| i != first)?;
    let better = Score::of(candidates, second) < Score::of(candidates, first);
    Some(if better { second } else { first })
}

/// The least loaded of all; each of those that tie with equal chance, by a reservoir of one.
fn scan(candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
    let mut best = None;
    let mut ties = 0_u32;
    for i in (0..candidates.len()).filter(|&i| pickable(candidates, i)) {
        let score = Score::of(candidates, i);
        let order = best.map_or(Ordering::Less, |(_, best)| score.cmp(&best));
        ties = match order {
            Ordering::Less => 1,
            Ordering::Equal => ties + 1,
            Ordering::Greater => continue,
        };
        if rng.random_ratio(1, ties) {
            best = Some((i, score));
        }
    }
    best.map(|(i, _)| i)
}

/// An endpoint's load with this request on it, over its weight. Ordered as that fraction.
#[derive(Clone, Copy, Debug)]
struct Score {
    load: u128,
    /// Above zero.
    weight: u32,
}

impl Score {
    fn of(candidates: &impl Candidates, i: usize) -> Self {
        let load = u128::from(candidates.load(i)) + u128::from(candidates.cost());
        Self { load, weight: candidates.weight(i) }
    }
}

impl Ord for Score {
    /// `a / b < c / d` is `a × d < c × b`. At most 2⁶⁵ × 2³², so nothing overflows and nothing is
    /// rounded.
    fn cmp(&self, other: &Self) -> Ordering {
        let (mine, theirs) = (u128::from(self.weight), u128::from(other.weight));
        (self.load * theirs).cmp(&(other.load * mine))
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    /// Endpoints as (usable, load, weight).
    struct Table(Vec<(bool, u64, u32)>);

    impl Candidates for Table {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn usable(&self, i: usize) -> bool {
            self.0[i].0
        }

        fn load(&self, i: usize) -> u64 {
            self.0[i].1
        }

        fn weight(&self, i: usize) -> u32 {
            self.0[i].2
        }
    }

    impl Table {
        fn idle(endpoints: usize) -> Self {
            Self(vec![(true, 0, 1); endpoints])
        }

        fn random(rng: &mut SmallRng) -> Self {
            let endpoints = rng.random_range(0..=100);
            let usable = rng.random_range(0.0..=1.0);
            let row = |rng: &mut SmallRng| {
                (rng.random_bool(usable), rng.random_range(0..5_000), rng.random_range(0..=3))
            };
            Self((0..endpoints).map(|_| row(rng)).collect())
        }
    }

    fn picks(table: &Table, times: usize, seed: u64) -> Vec<usize> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut counts = vec![0; table.len()];
        for _ in 0..times {
            counts[pick(table, &mut rng).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn finds_one_whenever_there_is_one_and_the_least_of_few() {
        for seed in 0..5_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let table = Table::random(&mut rng);
            let can: Vec<usize> = (0..table.len()).filter(|&i| pickable(&table, i)).collect();
            let picked = pick(&table, &mut rng);
            assert_eq!(picked.is_some(), !can.is_empty(), "seed {seed}");
            let Some(picked) = picked else { continue };
            assert!(can.contains(&picked), "seed {seed}: {picked} cannot be picked");
            let least = can.iter().map(|&i| Score::of(&table, i)).min().unwrap();
            let is_least = Score::of(&table, picked) == least;
            assert!(is_least || table.len() > FULL_SCAN, "seed {seed}: {picked}");
        }
    }

    #[test]
    fn ties_are_broken_evenly() {
        let mut table = Table::idle(8);
        table.0[3] = (false, 0, 1);
        table.0[5] = (true, 1, 1);
        for (i, count) in picks(&table, 60_000, 1).into_iter().enumerate() {
            let expected = if [3, 5].contains(&i) { 0..=0 } else { 9_500..=10_500 };
            assert!(expected.contains(&count), "endpoint {i}: {count}, seed 1");
        }
    }

    #[test]
    fn weight_divides_the_load() {
        let table = |loads: [u64; 2]| Table(vec![(true, loads[0], 1), (true, loads[1], 3)]);
        // The request itself counts: (0 + 1000) / 1 against (1999 + 1000) / 3, and one more.
        assert_eq!(picks(&table([0, 1_999]), 100, 2), [0, 100]);
        assert_eq!(picks(&table([0, 2_001]), 100, 2), [100, 0]);
    }

    #[test]
    fn the_largest_loads_compare_exactly() {
        let score = |load: u64, weight| Score { load: load.into(), weight };
        assert!(score(u64::MAX - 1, u32::MAX) < score(u64::MAX, u32::MAX));
        assert!(score(u64::MAX, u32::MAX) < score(u64::MAX, u32::MAX - 1));
        assert_eq!(score(2, 4), score(1, 2));
        let huge = Table(vec![(true, u64::MAX, u32::MAX), (true, u64::MAX, 1)]);
        assert_eq!(picks(&huge, 10, 3), [10, 0]);
    }

    #[test]
    fn one_usable_among_ten_thousand_is_found() {
        let mut table = Table(vec![(false, 0, 1); 10_000]);
        table.0[7_777].0 = true;
        assert_eq!(pick(&table, &mut SmallRng::seed_from_u64(4)), Some(7_777));
        table.0[7_777].2 = 0;
        assert_eq!(pick(&table, &mut SmallRng::seed_from_u64(4)), None);
    }

    #[test]
    fn the_fullest_of_many_always_loses_to_another() {
        let mut table = Table::idle(FULL_SCAN + 1);
        table.0[5].1 = 1;
        assert_eq!(picks(&table, 100_000, 5)[5], 0);
    }

    #[test]
    fn two_choices_keep_the_fullest_near_the_mean() {
        for seed in 0..5 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut table = Table::idle(1_000);
            for _ in 0..10_000 {
                let picked = pick(&table, &mut rng).unwrap();
                table.0[picked].1 += 1_000;
            }
            let fullest = table.0.iter().map(|row| row.1 / 1_000).max().unwrap();
            // Ten each is the mean; picked at random the fullest holds more than twenty.
            assert!(fullest <= 14, "seed {seed}: {fullest}");
        }
    }
}
