//! Which endpoint of a backend serves an attempt.
//!
//! A [`Policy`] looks at the endpoints through [`Candidates`], one request's view of them, and
//! returns an index or nothing. What is known of an endpoint lies beside the endpoint, in its
//! [`Facts`]: counted from the choice until the last byte or the abort, learned from first bytes
//! and failures, reported by the engine. What is known of the request is in its [`Ask`]. A decision
//! takes no lock and allocates nothing, and its time does not grow with the number of endpoints
//! beyond 32 of them.
//!
//! Loads are *work*, in thousandths of a running request ([`Cost`]), since answers of a model server
//! differ a thousandfold in length and prompts in size: whoever counts requests, or deals them out
//! in turn, piles them up on the endpoint that is slow. [`Kind`] lists the policies; each has a file
//! of its own.
//!
//! Left out: readiness, ejection, connection limits and endpoints already tried by this request, all
//! of which are [`Candidates::usable`]; and where reports of engines come from.

use std::sync::Arc;
use std::time::Instant;

use rand::Rng;

mod affinity;
mod average;
mod choose;
mod consistent_hash;
mod cost;
pub mod facts;
#[cfg(test)]
mod fleet;
mod least_connection;
mod least_load;
mod least_time;
pub mod memory;
mod peak_ewma;
mod power_of_two;
pub mod prefix;
mod prefix_affinity;
mod prequal;
pub mod reported;
mod round_robin;
mod score;
mod session_affinity;
#[cfg(test)]
mod simulation;

use affinity::Affinity;
use consistent_hash::ConsistentHash;
pub use cost::Cost;
pub use facts::{Facts, Peers, Standing};
pub use memory::Memory;
pub use prefix::Prefix;
pub use reported::Reported;
use round_robin::RoundRobin;

/// One request's view of the endpoints of a backend, numbered from zero.
///
/// Answers may change between two calls, as other requests come and go; a decision is then as good
/// as the moment at which it looked.
pub trait Candidates {
    /// How many endpoints there are.
    fn len(&self) -> usize;

    /// What is known of endpoint `i`.
    fn facts(&self, i: usize) -> &Facts;

    /// Whether endpoint `i` may be sent this request: ready, not ejected, below its limit, not
    /// tried before.
    fn usable(&self, i: usize) -> bool;

    /// The capacity of endpoint `i` relative to the others: its configured weight, less while it
    /// starts slowly. An endpoint of weight 0.0 is never picked. What its agent says of its weight
    /// ([`Reported::agent_weight`]) is left out here; the policies see to it.
    fn weight(&self, i: usize) -> f64;

    /// By how much work endpoint `i` must be less loaded than a near one, in thousandths of a
    /// running request.
    fn distance(&self, _i: usize) -> u64 {
        0
    }

    /// This request.
    fn ask(&self) -> &Ask;

    /// The moment of the decision.
    fn now(&self) -> Instant;

    /// Whether there is no endpoint at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is known of a request before an endpoint is chosen for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// What it will add to the load of its endpoint.
    pub cost: Cost,
    /// The hash of what ties it to an endpoint: a user, a session. Evenly spread over all 64 bits.
    pub key: Option<u64>,
    /// How its prompt begins.
    pub prefix: Prefix,
}

/// The weight of endpoint `i`, after what its agent says.
fn weight(candidates: &impl Candidates, i: usize) -> f64 {
    candidates.weight(i) * candidates.facts(i).reported().agent_weight()
}

/// Whether endpoint `i` can be picked.
fn pickable(candidates: &impl Candidates, i: usize) -> bool {
    weight(candidates, i) > 0.0 && candidates.usable(i)
}

/// The work at endpoint `i`, and what its failures count as, in thousandths of a running request.
fn carried(candidates: &impl Candidates, i: usize) -> f64 {
    let facts = candidates.facts(i);
    facts.load() as f64 + facts.penalty(candidates.now())
}

/// The requests in flight at endpoint `i`, and what its failures and its distance count as.
fn pending(candidates: &impl Candidates, i: usize) -> f64 {
    let facts = candidates.facts(i);
    let work = facts.penalty(candidates.now()) + candidates.distance(i) as f64;
    f64::from(facts.in_flight()) + work / Cost::REQUEST as f64
}

/// How a backend balances.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Kind {
    /// The least score of all that is known of load, caches, speed and distance.
    #[default]
    LeastLoad,
    /// The least work in flight for the weight.
    LeastConnection,
    /// The lesser of two random endpoints, by requests in flight for the weight.
    PowerOfTwo,
    /// The least peak of first bytes times requests in flight, as in Finagle.
    PeakEwma,
    /// The least mean first byte times requests in flight, as in nginx.
    LeastTime,
    /// The fastest of those that are not among the fullest, as in Prequal.
    Prequal,
    /// The same endpoint for the same key, as long as it is there.
    ConsistentHash {
        /// How keys find endpoints.
        table: Table,
        /// How far above the mean an endpoint may be loaded before its keys fall on to the next,
        /// above 1.0; `None` is without bound.
        bounded_load: Option<f64>,
    },
    /// Where the longest part of the prompt was computed, unless too much is there already.
    PrefixAffinity,
    /// Where the session was served before.
    SessionAffinity,
    /// The endpoints in turn, by weight.
    RoundRobin,
}

/// How a consistent hash finds the endpoint of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// Evenest shares and one look-up; when an endpoint leaves, some other keys move as well.
    #[default]
    Maglev,
    /// Less even; when an endpoint leaves, only its own keys move.
    Ring,
}

/// A policy at work, for the endpoints that a backend has at one time.
#[derive(Debug)]
pub struct Policy(Inner);

#[derive(Debug)]
enum Inner {
    LeastLoad(Affinity),
    LeastConnection,
    PowerOfTwo,
    PeakEwma,
    LeastTime,
    Prequal,
    ConsistentHash(ConsistentHash),
    PrefixAffinity(Affinity),
    SessionAffinity(Affinity),
    RoundRobin(RoundRobin),
}

impl Policy {
    /// The policy for these endpoints, given as identity ([`Facts::id`]) and configured weight, in
    /// the order in which [`Candidates`] will number them. What it looks up is prepared here.
    pub fn new(kind: Kind, members: &[(u64, u32)], memory: &Arc<Memory>) -> Self {
        let affinity = || Affinity::new(members, memory);
        Self(match kind {
            Kind::LeastLoad => Inner::LeastLoad(affinity()),
            Kind::LeastConnection => Inner::LeastConnection,
            Kind::PowerOfTwo => Inner::PowerOfTwo,
            Kind::PeakEwma => Inner::PeakEwma,
            Kind::LeastTime => Inner::LeastTime,
            Kind::Prequal => Inner::Prequal,
            Kind::ConsistentHash { table, bounded_load } => {
                Inner::ConsistentHash(ConsistentHash::new(table, bounded_load, members))
            }
            Kind::PrefixAffinity => Inner::PrefixAffinity(affinity()),
            Kind::SessionAffinity => Inner::SessionAffinity(affinity()),
            Kind::RoundRobin => Inner::RoundRobin(RoundRobin::new(members)),
        })
    }

    /// An endpoint for this request; `None` only when none can be picked.
    pub fn pick(&self, candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
        match &self.0 {
            Inner::LeastLoad(affinity) => least_load::pick(candidates, affinity, rng),
            Inner::LeastConnection => least_connection::pick(candidates, rng),
            Inner::PowerOfTwo => power_of_two::pick(candidates, rng),
            Inner::PeakEwma => peak_ewma::pick(candidates, rng),
            Inner::LeastTime => least_time::pick(candidates, rng),
            Inner::Prequal => prequal::pick(candidates, rng),
            Inner::ConsistentHash(hash) => hash.pick(candidates, rng),
            Inner::PrefixAffinity(affinity) => prefix_affinity::pick(candidates, affinity, rng),
            Inner::SessionAffinity(affinity) => session_affinity::pick(candidates, affinity, rng),
            Inner::RoundRobin(turns) => turns.pick(candidates, rng),
        }
    }

    /// What this request costs endpoint `i`: what of its prompt is cached there is not computed. To
    /// be counted in there ([`Facts::enter`]), and asked for before it is [`sent`](Self::sent).
    pub fn cost(&self, candidates: &impl Candidates, i: usize) -> Cost {
        let ask = candidates.ask();
        match &self.0 {
            Inner::LeastLoad(affinity) | Inner::PrefixAffinity(affinity) => {
                let named = affinity.of_prompt(&ask.prefix, candidates);
                ask.cost.with_cached(named.bytes(i) as u64)
            }
            Inner::LeastConnection
            | Inner::PowerOfTwo
            | Inner::PeakEwma
            | Inner::LeastTime
            | Inner::Prequal
            | Inner::ConsistentHash(_)
            | Inner::SessionAffinity(_)
            | Inner::RoundRobin(_) => ask.cost,
        }
    }

    /// The request is on its way to `endpoint`: what of it is to be remembered.
    pub fn sent(&self, ask: &Ask, endpoint: &Facts, now: Instant) {
        match &self.0 {
            Inner::LeastLoad(affinity) | Inner::PrefixAffinity(affinity) => {
                affinity.prompt_sent(&ask.prefix, endpoint, now);
            }
            Inner::SessionAffinity(affinity) => affinity.session_sent(ask.key, endpoint, now),
            Inner::LeastConnection
            | Inner::PowerOfTwo
            | Inner::PeakEwma
            | Inner::LeastTime
            | Inner::Prequal
            | Inner::ConsistentHash(_)
            | Inner::RoundRobin(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    //! What holds for every policy. The rules themselves are tested beside each of them.

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::fleet::Fleet;
    use super::reported::Report;
    use super::*;

    const KINDS: [Kind; 12] = [
        Kind::LeastLoad,
        Kind::LeastConnection,
        Kind::PowerOfTwo,
        Kind::PeakEwma,
        Kind::LeastTime,
        Kind::Prequal,
        Kind::ConsistentHash { table: Table::Maglev, bounded_load: None },
        Kind::ConsistentHash { table: Table::Maglev, bounded_load: Some(1.25) },
        Kind::ConsistentHash { table: Table::Ring, bounded_load: Some(1.25) },
        Kind::PrefixAffinity,
        Kind::SessionAffinity,
        Kind::RoundRobin,
    ];

    fn ask(rng: &mut SmallRng) -> Ask {
        let text = vec![rng.random_range(0..3); rng.random_range(0..3_000)];
        Ask {
            cost: Cost::of_prompt(text.len() as u64),
            key: rng.random_bool(0.8).then(|| rng.random_range(0..5)),
            prefix: Prefix::of(&text),
        }
    }

    fn report(rng: &mut SmallRng) -> Report {
        let mut maybe = |most| rng.random_bool(0.5).then(|| rng.random_range(0.0..most));
        Report {
            waiting: maybe(9.0),
            running: maybe(9.0),
            kv_usage: maybe(1.0),
            utilization: maybe(1.5),
        }
    }

    /// Endpoints about which anything may be known.
    fn random(rng: &mut SmallRng) -> Fleet {
        let mut fleet = Fleet::idle(rng.random_range(0..80));
        let usable = rng.random_range(0.0..=1.0);
        for i in 0..fleet.len() {
            fleet.usable[i] = rng.random_bool(usable);
            fleet.weights[i] = f64::from(rng.random_range(0..=3));
            fleet.distances[i] = rng.random_range(0..3_000);
            for _ in 0..rng.random_range(0..4) {
                fleet.load(i, rng.random_range(0..9_000));
                fleet.answer(i, rng.random_range(0.0..2.0));
            }
            if rng.random_bool(0.3) {
                fleet.facts[i].failed(fleet.now);
            }
            fleet.report(i, report(rng));
        }
        fleet
    }

    #[test]
    fn every_policy_finds_one_whenever_there_is_one_and_only_what_can_be_picked() {
        for seed in 0..300 {
            for kind in KINDS {
                let mut rng = SmallRng::seed_from_u64(seed);
                let mut fleet = random(&mut rng);
                let policy = fleet.policy(kind);
                let can: Vec<usize> = (0..fleet.len()).filter(|&i| pickable(&fleet, i)).collect();
                for _ in 0..30 {
                    fleet.ask = ask(&mut rng);
                    let picked = fleet.send(&policy, &mut rng);
                    assert_eq!(picked.is_some(), !can.is_empty(), "seed {seed}, {kind:?}");
                    assert!(picked.is_none_or(|i| can.contains(&i)), "seed {seed}, {kind:?}");
                }
            }
        }
    }

    #[test]
    fn endpoints_that_the_candidates_lack_are_not_picked() {
        for kind in KINDS {
            let mut rng = SmallRng::seed_from_u64(1);
            let mut fleet = Fleet { ask: ask(&mut rng), ..Fleet::idle(40) };
            let policy = fleet.policy(kind);
            for _ in 0..40 {
                fleet.send(&policy, &mut rng);
            }
            fleet.facts.truncate(3);
            (0..100).for_each(|_| assert!(policy.pick(&fleet, &mut rng).unwrap() < 3, "{kind:?}"));
        }
    }

    #[test]
    fn idle_endpoints_are_picked_evenly() {
        for kind in KINDS {
            for endpoints in [8, 40] {
                let picks = Fleet::idle(endpoints).picks(kind, 1_000 * endpoints, 1);
                let even = picks.iter().all(|picks| (850..=1_150).contains(picks));
                assert!(even, "{kind:?}: {picks:?}, seed 1");
            }
        }
    }

    #[test]
    fn an_endpoint_that_fails_fast_does_not_draw_all_requests() {
        let by_load = [
            Kind::LeastLoad,
            Kind::LeastConnection,
            Kind::PowerOfTwo,
            Kind::PeakEwma,
            Kind::LeastTime,
            Kind::Prequal,
            Kind::PrefixAffinity,
        ];
        for kind in by_load {
            let mut rng = SmallRng::seed_from_u64(2);
            let mut fleet = Fleet::idle(4);
            let policy = fleet.policy(kind);
            // The others have ten requests each, always; the first fails each at once.
            for i in 1..4 {
                fleet.answer(i, 0.2);
                for _ in 0..10 {
                    fleet.load(i, Cost::REQUEST);
                }
            }
            let mut failures = 0;
            for _ in 0..6_000 {
                fleet.pass(0.01);
                (1..4).filter(|_| rng.random_bool(0.01)).for_each(|i| fleet.answer(i, 0.2));
                if policy.pick(&fleet, &mut rng) == Some(0) {
                    fleet.facts[0].failed(fleet.now);
                    failures += 1;
                }
            }
            println!("{kind:?}: {failures} of 6000 failed");
            assert!((1..=30).contains(&failures), "{kind:?}: {failures}, seed 2");
        }
    }
}
