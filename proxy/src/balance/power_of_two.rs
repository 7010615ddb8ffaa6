//! The lesser of two random endpoints, by requests in flight for the weight.
//!
//! For comparison, and for endpoints whose requests are all alike: it looks at two endpoints however
//! few there are, and counts requests, not work.

use rand::Rng;

use super::choose::Looked;
use super::{Candidates, pending, weight};

/// The lesser of two different endpoints.
pub(super) fn pick(candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
    let two = Looked::some(candidates, rng, 2);
    two.least(rng, |i| (pending(candidates, i) + 1.0) / weight(candidates, i))
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::fleet::Fleet;

    const KIND: Kind = Kind::PowerOfTwo;

    #[test]
    fn the_lesser_of_two_wins_whatever_its_work() {
        // One large request against two small ones.
        let fleet = Fleet::loaded(&[100_000, 10]);
        fleet.load(1, 10);
        assert_eq!(fleet.picks(KIND, 100, 1), [100, 0]);
    }

    #[test]
    fn each_pair_is_as_likely() {
        // Of three, the fullest never wins, the emptiest in the two pairs that it is in.
        let fleet = Fleet::loaded(&[1, 1, 0]);
        fleet.load(0, 1);
        let picks = fleet.picks(KIND, 30_000, 2);
        assert_eq!(picks[0], 0);
        assert!((9_500..=10_500).contains(&picks[1]), "{picks:?}, seed 2");
    }

    #[test]
    fn weight_divides_the_requests() {
        let fleet = Fleet { weights: vec![1.0, 3.0], ..Fleet::loaded(&[0, 1]) };
        assert_eq!(fleet.picks(KIND, 100, 3), [0, 100]);
        fleet.load(1, 1);
        fleet.load(1, 1);
        assert_eq!(fleet.picks(KIND, 100, 3), [100, 0]);
    }
}
