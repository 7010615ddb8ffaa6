//! A circle on which each endpoint has many points; a key belongs to the first point at or after it
//! (Karger and others, *Consistent Hashing and Random Trees*).
//!
//! When an endpoint leaves, its points go to their successors and no other key moves. The price is
//! less even shares: with [`POINTS`] points they differ by about a tenth.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Points of an endpoint of the mean weight.
const POINTS: u64 = 100;

/// Points in order.
#[derive(Debug)]
pub(super) struct Ring {
    /// Where it is, as a fraction of 2³², and whose it is.
    points: Box<[(u32, u32)]>,
}

impl Ring {
    /// The circle of these endpoints, given as identity and weight. Their order does not matter.
    pub(super) fn new(members: &[(u64, u32)]) -> Self {
        let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let count = members.iter().filter(|(_, weight)| *weight > 0).count() as u64;
        let points_of = |weight: u32| match weight {
            0 => 0,
            weight => (POINTS * u64::from(weight) * count / total).max(1),
        };
        let mut points = Vec::new();
        for (index, &(id, weight)) in (0..).zip(members) {
            let place = |point| (xxh3_64_with_seed(&id.to_le_bytes(), point) >> 32) as u32;
            points.extend((0..points_of(weight)).map(|point| (place(point), id, index)));
        }
        points.sort_unstable();
        Self { points: points.into_iter().map(|(place, _, index)| (place, index)).collect() }
    }

    /// The point of `key`, and those after it.
    pub(super) fn places(&self, key: u64) -> impl Iterator<Item = usize> {
        let key = (key >> 32) as u32;
        let (before, from) = self.points.split_at(self.points.partition_point(|p| p.0 < key));
        from.iter().chain(before).map(|point| point.1 as usize)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn members(weights: &[u32]) -> Vec<(u64, u32)> {
        let id = |i: u64| xxh3_64(&i.to_le_bytes());
        (0..).map(id).zip(weights.iter().copied()).collect()
    }

    fn shares(weights: &[u32]) -> Vec<f64> {
        let ring = Ring::new(&members(weights));
        let mut rng = SmallRng::seed_from_u64(1);
        let mut shares = vec![0.0; weights.len()];
        for _ in 0..100_000 {
            shares[ring.places(rng.random()).next().unwrap()] += 1e-5;
        }
        shares
    }

    #[test]
    fn shares_follow_weights_roughly() {
        let equal = shares(&[3; 20]);
        assert!(equal.iter().all(|share| (0.03..0.075).contains(share)), "{equal:?}, seed 1");
        let weighted = shares(&[1, 2, 0, 5]);
        for (share, wanted) in weighted.iter().zip([0.125, 0.25, 0.0, 0.625]) {
            assert!((share - wanted).abs() <= 0.3 * wanted, "{weighted:?}, seed 1");
        }
    }

    #[test]
    fn the_smallest_weight_has_a_point_and_none_has_none() {
        let ring = Ring::new(&members(&[1_000_000, 1, 0]));
        assert_eq!(ring.points.iter().filter(|point| point.1 == 1).count(), 1);
        assert_eq!(ring.points.iter().filter(|point| point.1 == 2).count(), 0);
        assert_eq!(Ring::new(&members(&[0, 0])).places(7).count(), 0);
        assert_eq!(Ring::new(&[]).places(7).count(), 0);
    }

    #[test]
    fn every_key_has_a_place_and_all_others_follow() {
        let ring = Ring::new(&members(&[1, 1, 1]));
        for key in [0, 1, u64::MAX / 2, u64::MAX] {
            assert_eq!(ring.places(key).count(), ring.points.len());
        }
    }

    #[test]
    fn places_are_the_same_from_every_proxy() {
        let mut members = members(&[1, 2, 1, 3, 1]);
        let of = |members: &[(u64, u32)]| {
            let ring = Ring::new(members);
            ring.points.iter().map(|point| members[point.1 as usize].0).collect::<Vec<_>>()
        };
        let points = of(&members);
        members.reverse();
        assert_eq!(of(&members), points);
        // Pinned: a release that places keys elsewhere empties every cache behind it.
        let first: Vec<u8> = points[..8].iter().flat_map(|id| id.to_le_bytes()).collect();
        assert_eq!(xxh3_64(&first), 3_481_656_731_370_631_764);
    }
}
