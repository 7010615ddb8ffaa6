//! Which endpoints a decision looks at, and which of them is the least.
//!
//! Up to [`FULL_SCAN`] endpoints every one is looked at: two random choices are poor there, since
//! with few endpoints and long requests they leave one idle while another queues. Above that a scan
//! costs more than it gains, and the least of a few random endpoints is nearly as good: already of
//! two the fullest holds O(log log n) more than the mean (Mitzenmacher, *The Power of Two Choices in
//! Randomized Load Balancing*). [`FEW`] is four: on a simulated fleet of 64 the slowest first bytes
//! are a tenth faster than with two, and with eight hardly faster still. Endpoints that [`Memory`](super::Memory) names are looked at besides. The draws do
//! not look at weights, only the comparison does.
//!
//! Ties are broken at random: two proxies that break them alike would herd.

use rand::{Rng, RngExt};

use super::affinity::Named;
use super::{Candidates, pickable};

/// The most endpoints of which every one is looked at.
pub(super) const FULL_SCAN: usize = 32;

/// How many random endpoints of more are looked at.
pub(super) const FEW: usize = 4;

/// How many draws are tried for each endpoint that is wanted. With half of the endpoints usable
/// two are found but once in 3,800 times.
const DRAWS: usize = 8;

/// Different endpoints that can be picked, in no order.
pub(super) struct Looked {
    list: [usize; FULL_SCAN + Named::MAX],
    len: usize,
}

impl Looked {
    /// All that can be picked, or of many endpoints a few random ones and those that are named.
    pub(super) fn at(candidates: &impl Candidates, rng: &mut impl Rng, named: &Named) -> Self {
        if candidates.len() <= FULL_SCAN {
            return Self::all(candidates);
        }
        let mut looked = Self::some(candidates, rng, FEW);
        looked.add(candidates, named.indices(), usize::MAX);
        looked
    }

    /// All that can be picked of at most [`FULL_SCAN`] endpoints.
    pub(super) fn all(candidates: &impl Candidates) -> Self {
        let mut looked = Self::none();
        (0..candidates.len()).filter(|&i| pickable(candidates, i)).for_each(|i| looked.push(i));
        looked
    }

    /// Up to `count` random ones that can be picked, at most [`FULL_SCAN`] and at least two where
    /// there are two. Only where little can be picked does it take long.
    pub(super) fn some(candidates: &impl Candidates, rng: &mut impl Rng, count: usize) -> Self {
        let mut looked = Self::none();
        if candidates.is_empty() {
            return looked;
        }
        let draws = (0..DRAWS * count).map(|_| rng.random_range(0..candidates.len()));
        looked.add(candidates, draws, count);
        if looked.len < 2 {
            looked.add(candidates, walk(candidates.len(), rng), 2);
        }
        looked
    }

    const fn none() -> Self {
        Self { list: [0; FULL_SCAN + Named::MAX], len: 0 }
    }

    /// Adds those of `indices` that can be picked and are not there, until there are `most`.
    fn add(
        &mut self,
        candidates: &impl Candidates,
        mut indices: impl Iterator<Item = usize>,
        most: usize,
    ) {
        while self.len < most {
            let Some(i) = indices.next() else { return };
            if pickable(candidates, i) && !self.indices().any(|known| known == i) {
                self.push(i);
            }
        }
    }

    fn push(&mut self, i: usize) {
        self.list[self.len] = i;
        self.len += 1;
    }

    pub(super) fn indices(&self) -> impl Iterator<Item = usize> {
        self.list[..self.len].iter().copied()
    }

    /// The mean of what is known of them; `None` when nothing is.
    pub(super) fn mean(&self, known: impl Fn(usize) -> Option<f64>) -> Option<f64> {
        let add = |(sum, count), value| (sum + value, count + 1.0);
        let (sum, count) = self.indices().filter_map(known).fold((0.0, 0.0), add);
        (count > 0.0).then(|| sum / count)
    }

    /// The one of the least score; each of those that tie with equal chance, by a reservoir of one.
    pub(super) fn least(&self, rng: &mut impl Rng, score: impl Fn(usize) -> f64) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        let mut ties = 0_u32;
        for i in self.indices() {
            let score = score(i);
            ties = match best {
                Some((_, least)) if score > least => continue,
                Some((_, least)) if score == least => ties + 1,
                _ => 1,
            };
            if rng.random_ratio(1, ties) {
                best = Some((i, score));
            }
        }
        best.map(|(i, _)| i)
    }
}

/// Every index below `len`, in an order that differs from time to time: steps of a random stride
/// that shares no divisor with `len`. For when random draws find too little.
fn walk(len: usize, rng: &mut impl Rng) -> impl Iterator<Item = usize> {
    let stride =
        (0..).map(|_| rng.random_range(1..=len)).find(|&stride| gcd(stride, len) == 1).unwrap_or(1);
    let start = rng.random_range(0..len);
    (0..len).scan(start, move |next, _| {
        let i = *next;
        *next = (i + stride) % len;
        Some(i)
    })
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::super::fleet::Fleet;
    use super::*;

    fn looked(fleet: &Fleet, seed: u64) -> Vec<usize> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut looked: Vec<usize> = Looked::at(fleet, &mut rng, &Named::new()).indices().collect();
        looked.sort_unstable();
        looked
    }

    #[test]
    fn every_one_of_few_is_looked_at_and_a_few_of_many() {
        let mut fleet = Fleet::idle(FULL_SCAN);
        fleet.usable[3] = false;
        fleet.weights[5] = 0.0;
        fleet.facts[7].reported().set_agent_weight(Some(0.0));
        let expected: Vec<usize> = (0..FULL_SCAN).filter(|i| ![3, 5, 7].contains(i)).collect();
        assert_eq!(looked(&fleet, 1), expected);
        let fleet = Fleet::idle(FULL_SCAN + 1);
        for seed in 0..1_000 {
            let looked = looked(&fleet, seed);
            assert!(looked.len() == FEW && looked.is_sorted_by(|a, b| a < b), "seed {seed}");
        }
    }

    #[test]
    fn two_are_found_whenever_there_are_two() {
        for seed in 0..500 {
            let mut fleet = Fleet::idle(500);
            let mut rng = SmallRng::seed_from_u64(seed);
            let can: Vec<usize> = (0..seed as usize % 4).map(|k| (k * 163 + 7) % 500).collect();
            (0..500).for_each(|i| fleet.usable[i] = can.contains(&i));
            let found = looked(&fleet, rng.random());
            assert!(found.len() >= can.len().min(2), "seed {seed}");
            assert!(found.iter().all(|i| can.contains(i)), "seed {seed}");
        }
    }

    #[test]
    fn where_little_is_usable_all_of_it_is_found_alike() {
        let mut fleet = Fleet::idle(1_000);
        let can: Vec<usize> = [1, 2, 3, 400, 650].into();
        (0..1_000).for_each(|i| fleet.usable[i] = can.contains(&i));
        let mut counts = [0; 5];
        for seed in 0..5_000 {
            for i in looked(&fleet, seed) {
                counts[can.iter().position(|&can| can == i).unwrap()] += 1;
            }
        }
        assert!(counts.iter().all(|count| (1_600..=2_400).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_walk_visits_every_one_once() {
        for len in 1..200 {
            let mut visited: Vec<usize> =
                walk(len, &mut SmallRng::seed_from_u64(len as u64)).collect();
            visited.sort_unstable();
            assert!(visited.into_iter().eq(0..len), "{len}");
        }
    }

    #[test]
    fn a_sample_of_many_is_of_different_ones() {
        let fleet = Fleet::idle(100);
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut sample: Vec<usize> = Looked::some(&fleet, &mut rng, 16).indices().collect();
            sample.sort_unstable();
            sample.dedup();
            assert_eq!(sample.len(), 16, "seed {seed}");
        }
    }

    #[test]
    fn those_that_tie_win_evenly() {
        let fleet = Fleet::idle(8);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut wins = [0; 8];
        for _ in 0..60_000 {
            let looked = Looked::at(&fleet, &mut rng, &Named::new());
            let least = looked.least(&mut rng, |i| if [3, 5].contains(&i) { 2.0 } else { 1.0 });
            wins[least.unwrap()] += 1;
        }
        for (i, wins) in wins.into_iter().enumerate() {
            let expected = if [3, 5].contains(&i) { 0..=0 } else { 9_500..=10_500 };
            assert!(expected.contains(&wins), "endpoint {i}: {wins}, seed 1");
        }
    }
}
