//! What the default policy knows of an endpoint, in one number: the work that a request would find
//! there, in thousandths of a running request, for its capacity and speed.
//!
//! ```text
//! ((carried + own + foreign + pressure) × slowness + distance) / weight
//! ```
//!
//! Each term is a [`Signal`], one small type that says what it weighs and why. To add one: write
//! the type, and name it in [`Scorer`].
//!
//! What endpoints report may be missing. An endpoint that reports nothing is not idle: it is taken
//! to be as its peers, those of this decision, report on average. What fades with age fades towards
//! that.

use super::affinity::Named;
use super::choose::Looked;
use super::cost::Cost;
use super::reported::Belief;
use super::{Candidates, carried, weight};

/// One thing that makes an endpoint look busier.
trait Signal {
    /// How much busier endpoint `i` looks, in thousandths of a running request.
    fn work(&self, candidates: &impl Candidates, i: usize) -> f64;
}

/// Adds up the signals for the endpoints of one decision.
pub(super) struct Scorer<'a, C> {
    candidates: &'a C,
    own: Own<'a>,
    foreign: Foreign,
    pressure: Pressure,
}

impl<'a, C: Candidates> Scorer<'a, C> {
    pub(super) fn new(candidates: &'a C, named: &'a Named, looked: &Looked) -> Self {
        Self {
            candidates,
            own: Own { named },
            foreign: Foreign::among(looked, candidates),
            pressure: Pressure::among(looked, candidates),
        }
    }

    /// The score of endpoint `i`; the least is the best.
    pub(super) fn score(&self, i: usize) -> f64 {
        let candidates = self.candidates;
        let work = Carried.work(candidates, i)
            + self.own.work(candidates, i)
            + self.foreign.work(candidates, i)
            + self.pressure.work(candidates, i);
        let slow = work * candidates.facts(i).slowness();
        (slow + candidates.distance(i) as f64) / weight(candidates, i)
    }
}

/// What we have put there, and what its failures count as. Exact, and weighs what it is.
struct Carried;

impl Signal for Carried {
    fn work(&self, candidates: &impl Candidates, i: usize) -> f64 {
        carried(candidates, i)
    }
}

/// This request: less where the head of its prompt is cached, by as much work as is saved there. So
/// a cache draws a request as long as the queue before it costs less than computing anew.
struct Own<'a> {
    named: &'a Named,
}

impl Signal for Own<'_> {
    fn work(&self, candidates: &impl Candidates, i: usize) -> f64 {
        let cost = candidates.ask().cost;
        let cached = Cost::prefill_of(self.named.bytes(i) as u64);
        (cost.total() - cached.min(cost.prefill)) as f64
    }
}

/// What others have put there. A foreign request weighs like one of ours that is running: the size
/// of its prompt is not known.
pub(super) struct Foreign {
    usual: f64,
}

impl Foreign {
    pub(super) fn among(looked: &Looked, candidates: &impl Candidates) -> Self {
        Self { usual: usual(looked, |i| Self::known(candidates, i)) }
    }

    /// How many requests of others are taken to be at endpoint `i`.
    pub(super) fn requests(&self, candidates: &impl Candidates, i: usize) -> f64 {
        or_usual(Self::known(candidates, i), self.usual)
    }

    fn known(candidates: &impl Candidates, i: usize) -> Option<Belief> {
        candidates.facts(i).reported().foreign_requests(candidates.now())
    }
}

impl Signal for Foreign {
    fn work(&self, candidates: &impl Candidates, i: usize) -> f64 {
        self.requests(candidates, i) * Cost::REQUEST as f64
    }
}

/// How near the endpoint is to running out of memory for running requests, when it must put some
/// back and start them over. Nothing below [`KNEE`](Self::KNEE), then with the square of what is
/// above it up to [`FULL`](Self::FULL).
///
/// The share of the key-value cache in use, or the utilization where it is higher or alone.
struct Pressure {
    usual: f64,
}

impl Pressure {
    /// From which share on it counts.
    const KNEE: f64 = 0.8;

    /// What it counts at a share of 1.0: sixteen requests.
    const FULL: f64 = 16.0 * Cost::REQUEST as f64;

    fn among(looked: &Looked, candidates: &impl Candidates) -> Self {
        Self { usual: usual(looked, |i| Self::known(candidates, i)) }
    }

    fn known(candidates: &impl Candidates, i: usize) -> Option<Belief> {
        candidates.facts(i).reported().fullness(candidates.now())
    }
}

impl Signal for Pressure {
    fn work(&self, candidates: &impl Candidates, i: usize) -> f64 {
        let share = or_usual(Self::known(candidates, i), self.usual);
        let above = ((share - Self::KNEE) / (1.0 - Self::KNEE)).clamp(0.0, 1.0);
        Self::FULL * above * above
    }
}

/// The mean of what is known, by how far it is to be believed; 0.0 when nothing is.
fn usual(looked: &Looked, known: impl Fn(usize) -> Option<Belief>) -> f64 {
    let add = |(sum, count): (f64, f64), it: Belief| {
        (sum + it.value * it.confidence, count + it.confidence)
    };
    let (sum, count) = looked.indices().filter_map(known).fold((0.0, 0.0), add);
    if count > 0.0 { sum / count } else { 0.0 }
}

/// What is known as far as it is to be believed, and what is usual for the rest.
fn or_usual(known: Option<Belief>, usual: f64) -> f64 {
    known.map_or(usual, |it| usual + (it.value - usual) * it.confidence)
}

#[cfg(test)]
mod tests {
    use super::super::fleet::Fleet;
    use super::super::reported::Report;
    use super::super::{Ask, Kind, Prefix};
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    /// The scores of all endpoints, less that of the request itself.
    fn scores(fleet: &Fleet) -> Vec<f64> {
        let mut rng = SmallRng::seed_from_u64(1);
        let named = super::super::affinity::Affinity::new(&fleet.members(), &fleet.memory)
            .of_prompt(&fleet.ask.prefix, fleet);
        let looked = Looked::at(fleet, &mut rng, &named);
        let scorer = Scorer::new(fleet, &named, &looked);
        (0..fleet.len()).map(|i| scorer.score(i) - fleet.ask.cost.total() as f64).collect()
    }

    fn running(requests: f64) -> Report {
        Report { running: Some(requests), ..Report::default() }
    }

    fn kv_usage(share: f64) -> Report {
        Report { kv_usage: Some(share), ..Report::default() }
    }

    #[test]
    fn without_signals_it_is_the_load() {
        assert_eq!(scores(&Fleet::loaded(&[0, 1_500, 40])), [0.0, 1_500.0, 40.0]);
    }

    #[test]
    fn a_cached_head_is_no_work_and_never_more_than_the_prompt() {
        let mut fleet = Fleet::idle(3);
        let text = [1; 9_000];
        fleet.ask = Ask { prefix: Prefix::of(&text), cost: Cost::of_prompt(9_000), key: None };
        let policy = fleet.policy(Kind::LeastLoad);
        policy.sent(&fleet.ask, &fleet.facts[0], fleet.now);
        policy.sent(
            &Ask { prefix: Prefix::of(&text[..600]), ..fleet.ask },
            &fleet.facts[1],
            fleet.now,
        );
        assert_eq!(scores(&fleet), [-2_048.0, -128.0, 0.0]);
        fleet.ask.cost.prefill = 50;
        assert_eq!(scores(&fleet), [-50.0, -50.0, 0.0]);
    }

    #[test]
    fn foreign_work_counts_like_ours() {
        let fleet = Fleet::loaded(&[1_000, 5_000]);
        fleet.report(0, running(8.0));
        fleet.report(1, running(1.0));
        assert_eq!(scores(&fleet), [8_000.0, 5_000.0]);
    }

    #[test]
    fn who_reports_nothing_is_not_idle_but_as_the_others() {
        let mut fleet = Fleet::loaded(&[0, 0, 0]);
        fleet.report(0, running(10.0));
        fleet.report(1, running(4.0));
        assert_eq!(scores(&fleet), [10_000.0, 4_000.0, 7_000.0]);
        // The first falls silent: it fades to what the second says.
        fleet.pass(6.0);
        fleet.report(1, running(4.0));
        assert_eq!(scores(&fleet), [8_000.0, 4_000.0, 6_000.0]);
        fleet.pass(4.0);
        fleet.report(1, running(4.0));
        assert_eq!(scores(&fleet), [4_000.0; 3]);
        fleet.pass(10.0);
        assert_eq!(scores(&fleet), [0.0; 3]);
    }

    #[test]
    fn memory_presses_when_it_runs_out() {
        let fleet = Fleet::idle(4);
        let pressures = |shares: [f64; 4]| {
            shares.into_iter().enumerate().for_each(|(i, share)| fleet.report(i, kv_usage(share)));
            scores(&fleet).into_iter().map(f64::round).collect::<Vec<_>>()
        };
        assert_eq!(pressures([0.1, 0.8, 0.9, 1.0]), [0.0, 0.0, 4_000.0, 16_000.0]);
        fleet.report(0, Report { utilization: Some(1.3), ..Report::default() });
        assert_eq!(scores(&fleet)[0], 16_000.0);
    }

    #[test]
    fn failures_and_slowness_and_distance_and_weight() {
        let mut fleet = Fleet::idle(2);
        fleet.facts[0].failed(fleet.now);
        assert_eq!(scores(&fleet), [8_000.0, 0.0]);
        let mut fleet_of_far = Fleet::loaded(&[3_000, 3_000]);
        fleet_of_far.distances[1] = 2_000;
        assert_eq!(scores(&fleet_of_far), [3_000.0, 5_000.0]);
        fleet_of_far.weights[1] = 2.0;
        assert_eq!(scores(&fleet_of_far), [3_000.0, 2_000.0]);
        fleet = Fleet::idle(2);
        (0..200).for_each(|_| (0..2).for_each(|i| fleet.answer(i, [0.1, 0.4][i])));
        let [fast, slow] = scores(&fleet)[..] else { unreachable!() };
        assert!(((slow + 1_000.0) / (fast + 1_000.0) - 4.0).abs() < 0.5, "{fast} {slow}");
    }
}
