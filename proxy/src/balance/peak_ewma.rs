//! The least peak of first bytes times requests in flight, as in Finagle (`PeakEwma.scala`).
//!
//! `cost = peak × (pending + 1)`, where the peak jumps to a longer first byte at once and falls back
//! over ten seconds ([`Facts::first_byte_peak`](super::Facts::first_byte_peak)): quick to leave an
//! endpoint that stalls, slow to trust it again. An endpoint without history costs nothing while it
//! is idle, so that it gets one request, and [`PENALTY`] for each that it has, so that it gets no
//! more before the first has answered.
//!
//! First bytes are taken as they are, for long and short prompts alike. So a single long prompt makes
//! an endpoint look slow: for requests that are alike.

use rand::Rng;

use super::affinity::Named;
use super::choose::Looked;
use super::{Candidates, pending, weight};

/// What a pending request costs where nothing has answered yet, in seconds: more than a first byte
/// takes.
const PENALTY: f64 = 60.0;

/// The least cost, of all or of a few among many.
pub(super) fn pick(candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
    Looked::at(candidates, rng, &Named::new()).least(rng, |i| cost(candidates, i))
}

fn cost(candidates: &impl Candidates, i: usize) -> f64 {
    let pending = pending(candidates, i);
    let cost = match candidates.facts(i).first_byte_peak(candidates.now()) {
        Some(peak) => peak * (pending + 1.0),
        None => PENALTY * pending,
    };
    cost / weight(candidates, i)
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::fleet::Fleet;

    const KIND: Kind = Kind::PeakEwma;

    #[test]
    fn peak_times_pending() {
        let fleet = Fleet::idle(2);
        fleet.answer(0, 0.1);
        fleet.answer(1, 0.35);
        assert_eq!(fleet.picks(KIND, 100, 1), [100, 0]);
        for _ in 0..2 {
            fleet.load(0, 1);
        }
        assert_eq!(fleet.picks(KIND, 100, 1), [100, 0]);
        for _ in 0..2 {
            fleet.load(0, 1);
        }
        assert_eq!(fleet.picks(KIND, 100, 1), [0, 100]);
    }

    #[test]
    fn without_history_one_request_and_no_more_before_it_answers() {
        let fleet = Fleet::idle(2);
        fleet.answer(0, 0.1);
        for _ in 0..50 {
            fleet.load(0, 1);
        }
        assert_eq!(fleet.picks(KIND, 100, 2), [0, 100]);
        fleet.load(1, 1);
        assert_eq!(fleet.picks(KIND, 100, 2), [100, 0]);
        fleet.answer(1, 0.1);
        assert_eq!(fleet.picks(KIND, 100, 2), [0, 100]);
    }

    #[test]
    fn a_peak_is_forgotten() {
        let mut fleet = Fleet::idle(2);
        fleet.answer(0, 0.1);
        fleet.answer(1, 20.0);
        fleet.pass(60.0);
        fleet.answer(0, 0.1);
        assert_eq!(fleet.picks(KIND, 100, 3), [0, 100]);
    }

    #[test]
    fn weight_divides_the_cost() {
        let fleet = Fleet { weights: vec![1.0, 4.0], ..Fleet::idle(2) };
        fleet.answer(0, 0.1);
        fleet.answer(1, 0.3);
        assert_eq!(fleet.picks(KIND, 100, 4), [0, 100]);
    }
}
