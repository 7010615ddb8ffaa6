//! The same endpoint for the same key: from every proxy, and for as long as the endpoint is there.
//!
//! A table made of the endpoints' identities and weights says where a key belongs. What cannot be
//! picked, or is too full, passes the key on to the next in the table, always the same next: when
//! one endpoint fails its keys spread over all others, and nobody else's move.
//!
//! *Bounded load* (Mirrokni, Thorup and Zadimoghaddam, *Consistent Hashing with Bounded Loads*): an
//! endpoint takes a key only while it carries less than so many times the mean for its weight would
//! be with one request more, rounded up to whole requests. Some endpoint always does, and an idle
//! backend keeps its keys where they are. Load is work here, so one long prompt fills an endpoint as
//! many requests would. The mean is that of all endpoints up to 32, else that of [`SAMPLE`] random ones.
//!
//! A request without a key goes where there is the least work in flight.

use rand::Rng;

use super::choose::{FULL_SCAN, Looked};
use super::{Candidates, Cost, Table, carried, least_connection, pickable, weight};
use maglev::Maglev;
use ring::Ring;

mod maglev;
mod ring;

/// How many of many endpoints are looked at to know the mean load.
const SAMPLE: usize = 16;

/// How many places of a table are looked at. More is in vain where so little fits.
const STEPS: usize = 64;

/// A table and a bound.
#[derive(Debug)]
pub(super) struct ConsistentHash {
    table: Places,
    bounded_load: Option<f64>,
}

#[derive(Debug)]
enum Places {
    Maglev(Maglev),
    Ring(Ring),
}

impl ConsistentHash {
    pub(super) fn new(table: Table, bounded_load: Option<f64>, members: &[(u64, u32)]) -> Self {
        let table = match table {
            Table::Maglev => Places::Maglev(Maglev::new(members)),
            Table::Ring => Places::Ring(Ring::new(members)),
        };
        Self { table, bounded_load }
    }

    /// The endpoint of the key, or the next in the table that can be picked and is not too full.
    pub(super) fn pick(&self, candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
        let placed = candidates.ask().key.and_then(|key| {
            let bound = self.bounded_load.map(|factor| factor * next_mean(candidates, rng));
            let fits = |i: &usize| {
                *i < candidates.len()
                    && pickable(candidates, *i)
                    && is_within(bound, candidates, *i)
            };
            match &self.table {
                Places::Maglev(maglev) => maglev.places(key).take(STEPS).find(fits),
                Places::Ring(ring) => ring.places(key).take(STEPS).find(fits),
            }
        });
        placed.or_else(|| least_connection::pick(candidates, rng))
    }
}

fn is_within(bound: Option<f64>, candidates: &impl Candidates, i: usize) -> bool {
    let request = Cost::REQUEST as f64;
    bound.is_none_or(|bound| {
        let whole = (bound * weight(candidates, i) / request).ceil() * request;
        carried(candidates, i) < whole
    })
}

/// Work for each unit of weight, with one request more.
fn next_mean(candidates: &impl Candidates, rng: &mut impl Rng) -> f64 {
    let looked = if candidates.len() <= FULL_SCAN {
        Looked::all(candidates)
    } else {
        Looked::some(candidates, rng, SAMPLE)
    };
    let load: f64 = looked.indices().map(|i| carried(candidates, i)).sum();
    let weights: f64 = looked.indices().map(|i| weight(candidates, i)).sum();
    let next = load + Cost::REQUEST as f64;
    if weights > 0.0 { next / weights } else { next }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::fleet::Fleet;
    use super::super::{Ask, Facts, Kind, Policy};
    use super::*;

    const TABLES: [Table; 2] = [Table::Maglev, Table::Ring];

    fn unbounded(table: Table) -> Kind {
        Kind::ConsistentHash { table, bounded_load: None }
    }

    fn of_key(key: u64) -> Ask {
        Ask { key: Some(key), ..Ask::default() }
    }

    /// Where each of many keys goes, by identity.
    fn places(fleet: &mut Fleet, policy: &Policy) -> Vec<u64> {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut place = |key| {
            fleet.ask = of_key(key);
            fleet.facts[policy.pick(fleet, &mut rng).unwrap()].id()
        };
        (0..10_000_u64).map(|key| place(key.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect()
    }

    /// The share of keys that were not at `left` and moved all the same.
    fn moved(before: &[u64], after: &[u64], left: u64) -> f64 {
        let moved = |(before, after): &(&u64, &u64)| before != after && **before != left;
        before.iter().zip(after).filter(moved).count() as f64 / before.len() as f64
    }

    #[test]
    fn when_an_endpoint_leaves_few_other_keys_move() {
        for (table, most) in [(Table::Maglev, 0.04), (Table::Ring, 0.0)] {
            for endpoints in [3, 10, 50] {
                let mut fleet = Fleet::idle(endpoints);
                let policy = fleet.policy(unbounded(table));
                let before = places(&mut fleet, &policy);
                let left = fleet.facts.remove(1).id();
                let policy = fleet.policy(unbounded(table));
                let after = places(&mut fleet, &policy);
                let moved = moved(&before, &after, left);
                println!("{table:?}, {endpoints} endpoints: {moved} of the others' keys move");
                assert!(moved <= most, "{table:?}, {endpoints} endpoints: {moved}");
            }
        }
    }

    #[test]
    fn keys_of_one_that_cannot_be_picked_spread_and_no_other_moves() {
        for table in TABLES {
            let mut fleet = Fleet::idle(10);
            let policy = fleet.policy(unbounded(table));
            let before = places(&mut fleet, &policy);
            fleet.usable[4] = false;
            let after = places(&mut fleet, &policy);
            let failed = fleet.facts[4].id();
            assert_eq!(moved(&before, &after, failed), 0.0, "{table:?}");
            let heirs = |id: u64| {
                let inherited =
                    |(before, after): &(&u64, &u64)| **before == failed && **after == id;
                before.iter().zip(&after).filter(inherited).count()
            };
            let heirs: Vec<usize> = fleet.facts.iter().map(|facts| heirs(facts.id())).collect();
            assert_eq!(heirs[4], 0, "{table:?}");
            assert!(heirs.iter().filter(|&&count| count > 30).count() == 9, "{table:?}: {heirs:?}");
        }
    }

    #[test]
    fn shares_follow_weights() {
        for table in TABLES {
            let weights = vec![1.0, 2.0, 5.0, 0.0];
            let mut fleet = Fleet { weights, ..Fleet::idle(4) };
            let policy = fleet.policy(unbounded(table));
            let places = places(&mut fleet, &policy);
            let share = |i: usize| {
                let there = places.iter().filter(|id| **id == fleet.facts[i].id());
                there.count() as f64 / places.len() as f64
            };
            for (i, wanted) in [0.125, 0.25, 0.625, 0.0].into_iter().enumerate() {
                assert!((share(i) - wanted).abs() <= 0.25 * wanted, "{table:?} {i}: {}", share(i));
            }
        }
    }

    #[test]
    fn no_endpoint_carries_more_than_the_bound() {
        for (table, endpoints) in [(Table::Maglev, 10), (Table::Ring, 10), (Table::Ring, 32)] {
            let kind = Kind::ConsistentHash { table, bounded_load: Some(1.25) };
            let mut fleet = Fleet::idle(endpoints);
            let policy = fleet.policy(kind);
            let mut rng = SmallRng::seed_from_u64(endpoints as u64);
            for _ in 0..100 * endpoints {
                // Half of the requests are of one key.
                let key = if rng.random() { 7 } else { rng.random() };
                fleet.ask = of_key(key);
                let i = fleet.send(&policy, &mut rng).unwrap();
                let total: u64 = fleet.facts.iter().map(Facts::load).sum();
                let mean = total as f64 / endpoints as f64;
                let most = fleet.facts[i].load() as f64;
                assert!(most <= 1.25 * mean + 1_000.0, "{table:?}: {most} against {mean}");
            }
        }
    }

    #[test]
    fn the_bound_is_near_for_many() {
        let kind = Kind::ConsistentHash { table: Table::Maglev, bounded_load: Some(1.25) };
        let mut fleet = Fleet::idle(500);
        let policy = fleet.policy(kind);
        let mut rng = SmallRng::seed_from_u64(3);
        for _ in 0..20_000 {
            let key = if rng.random() { 7 } else { rng.random() };
            fleet.ask = of_key(key);
            fleet.send(&policy, &mut rng).unwrap();
        }
        let most = fleet.facts.iter().map(Facts::in_flight).max().unwrap();
        assert!(most <= 60, "{most} where the mean is 40, seed 3");
    }

    #[test]
    fn a_key_stays_while_its_endpoint_is_within_the_bound() {
        for table in TABLES {
            let kind = Kind::ConsistentHash { table, bounded_load: Some(1.25) };
            let mut fleet = Fleet { ask: of_key(7), ..Fleet::loaded(&[1_000; 8]) };
            let policy = fleet.policy(kind);
            let mut rng = SmallRng::seed_from_u64(4);
            let home = policy.pick(&fleet, &mut rng).unwrap();
            fleet.load(home, 400);
            assert_eq!(
                policy.pick(&fleet, &mut rng),
                Some(home),
                "{table:?}: less than two requests"
            );
            fleet.load(home, 600);
            let next = policy.pick(&fleet, &mut rng).unwrap();
            assert_ne!(home, next, "{table:?}");
            assert_eq!(policy.pick(&fleet, &mut rng), Some(next), "{table:?}");
            // Twice the weight may carry twice as much.
            fleet.weights[home] = 2.0;
            assert_eq!(policy.pick(&fleet, &mut rng), Some(home), "{table:?}");
        }
    }

    #[test]
    fn without_a_key_it_is_the_least_loaded() {
        let fleet = Fleet::loaded(&[1, 0, 1]);
        assert_eq!(fleet.picks(unbounded(Table::Maglev), 100, 5), [0, 100, 0]);
    }

    #[test]
    fn one_usable_of_many_is_found() {
        for table in TABLES {
            let mut fleet = Fleet { ask: of_key(7), ..Fleet::idle(1_000) };
            (0..1_000).for_each(|i| fleet.usable[i] = i == 777);
            assert_eq!(fleet.picks(unbounded(table), 10, 6)[777], 10, "{table:?}");
        }
    }
}
