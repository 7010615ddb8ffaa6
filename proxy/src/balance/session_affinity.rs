//! Where the session was served before.
//!
//! Strictly: as long as that endpoint can be picked it is, whatever it carries, since what a session
//! keeps there is lost elsewhere. Use the limit on connections to bound it. A session that is new,
//! not seen for an hour, forgotten for lack of room, or whose endpoint cannot be picked begins where
//! there is the least work in flight, and stays there. Another proxy does not know of it: where
//! several share the endpoints, a consistent hash keeps sessions together.

use rand::Rng;

use super::affinity::Affinity;
use super::{Candidates, least_connection, pickable};

/// The endpoint of the session, else the least loaded.
pub(super) fn pick(
    candidates: &impl Candidates,
    affinity: &Affinity,
    rng: &mut impl Rng,
) -> Option<usize> {
    let named = candidates.ask().key.map(|key| affinity.of_session(key, candidates));
    let known = named.and_then(|named| named.indices().find(|&i| pickable(candidates, i)));
    known.or_else(|| least_connection::pick(candidates, rng))
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::Kind;
    use super::super::fleet::Fleet;
    use super::super::{Ask, Policy};

    fn session(key: u64) -> Ask {
        Ask { key: Some(key), ..Ask::default() }
    }

    fn fleet(endpoints: usize) -> (Fleet, Policy, SmallRng) {
        let fleet = Fleet { ask: session(7), ..Fleet::idle(endpoints) };
        let policy = fleet.policy(Kind::SessionAffinity);
        (fleet, policy, SmallRng::seed_from_u64(endpoints as u64))
    }

    #[test]
    fn a_session_stays_whatever_the_load() {
        for endpoints in [2, 33, 1_000] {
            let (fleet, policy, mut rng) = fleet(endpoints);
            let first = fleet.send(&policy, &mut rng);
            assert!((0..100).all(|_| fleet.send(&policy, &mut rng) == first), "{endpoints}");
        }
    }

    #[test]
    fn a_session_whose_endpoint_fails_begins_anew_and_stays_there() {
        let (mut fleet, policy, mut rng) = fleet(4);
        let first = fleet.send(&policy, &mut rng).unwrap();
        fleet.usable[first] = false;
        let second = fleet.send(&policy, &mut rng).unwrap();
        assert_ne!(first, second);
        fleet.usable[first] = true;
        assert!((0..20).all(|_| fleet.send(&policy, &mut rng) == Some(second)));
    }

    #[test]
    fn sessions_spread_by_load() {
        let (mut fleet, policy, mut rng) = fleet(10);
        for _ in 0..1_000 {
            fleet.ask = session(rng.random());
            fleet.send(&policy, &mut rng);
        }
        assert!(fleet.facts.iter().all(|facts| facts.in_flight() == 100));
    }

    #[test]
    fn without_a_key_it_is_the_least_loaded() {
        let (mut fleet, policy, mut rng) = fleet(3);
        fleet.ask.key = None;
        for _ in 0..9 {
            fleet.send(&policy, &mut rng);
        }
        assert!(fleet.facts.iter().all(|facts| facts.in_flight() == 3));
    }
}
