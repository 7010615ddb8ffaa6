//! A balancing decision allocates nothing, however many endpoints there are.

use std::hint::black_box;
use std::time::Instant;

use outrigger::balance::{Candidates, Policy};
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// Endpoints with different loads, of which every seventh is unusable.
struct Endpoints(Vec<u64>);

impl Candidates for Endpoints {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn usable(&self, i: usize) -> bool {
        i % 7 != 1
    }

    fn load(&self, i: usize) -> u64 {
        self.0[i]
    }

    fn weight(&self, _: usize) -> u32 {
        1
    }
}

#[test]
fn a_decision_does_not_allocate() {
    const PICKS: u32 = 10_000;
    let mut rng = SmallRng::seed_from_u64(1);
    for size in [2, 32, 33, 1_000, 10_000] {
        let endpoints = Endpoints((0..size).map(|i| i * 37 % 11).collect());
        let turns = Policy::round_robin(&vec![1; endpoints.len()]).unwrap();
        for policy in [Policy::LeastConnection, turns] {
            let start = Instant::now();
            let picks = || {
                for _ in 0..PICKS {
                    black_box(policy.pick(black_box(&endpoints), &mut rng).unwrap());
                }
            };
            let allocated = allocation_counter::measure(picks);
            let each = start.elapsed() / PICKS;
            let name = if matches!(policy, Policy::LeastConnection) { "least" } else { "turns" };
            println!("{name} of {size}: {each:?}");
            assert_eq!(allocated.count_total, 0, "{name} of {size}");
        }
    }
}
