//! The least mean first byte times requests in flight, as `least_time header` of nginx.
//!
//! `mean × (pending + 1) / weight`. Where nothing is known the mean of the peers is taken: neither
//! does a new endpoint draw all traffic, nor does it get none.

use rand::Rng;

use super::affinity::Named;
use super::choose::Looked;
use super::{Candidates, pending, weight};

/// The least expected time, of all or of a few among many.
pub(super) fn pick(candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
    let looked = Looked::at(candidates, rng, &Named::new());
    let mean = |i: usize| candidates.facts(i).first_byte_mean();
    let usual = looked.mean(mean).unwrap_or(1.0);
    looked.least(rng, |i| {
        mean(i).unwrap_or(usual) * (pending(candidates, i) + 1.0) / weight(candidates, i)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::fleet::Fleet;

    const KIND: Kind = Kind::LeastTime;

    #[test]
    fn mean_times_pending_over_weight() {
        let mut fleet = Fleet::idle(2);
        fleet.answer(0, 0.1);
        fleet.answer(1, 0.3);
        fleet.load(0, 1);
        assert_eq!(fleet.picks(KIND, 100, 1), [100, 0]);
        for _ in 0..2 {
            fleet.load(0, 1);
        }
        assert_eq!(fleet.picks(KIND, 100, 1), [0, 100]);
        fleet.weights[0] = 2.0;
        assert_eq!(fleet.picks(KIND, 100, 1), [100, 0]);
    }

    #[test]
    fn without_history_as_the_peers() {
        let fleet = Fleet::idle(3);
        fleet.answer(0, 0.1);
        fleet.answer(1, 0.3);
        // 0.1, 0.3, and 0.2 for the new one.
        assert_eq!(fleet.picks(KIND, 100, 2), [100, 0, 0]);
        for _ in 0..2 {
            fleet.load(0, 1);
        }
        assert_eq!(fleet.picks(KIND, 100, 2), [0, 0, 100]);
        fleet.load(2, 1);
        assert_eq!(fleet.picks(KIND, 100, 2)[2], 0);
    }
}
