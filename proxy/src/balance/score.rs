//! What the default policy knows of an endpoint, in one number: the work that a request would find
//! there, in thousandths of a running request, for its capacity and speed.
//!
//! ```text
//! ((carried + own + foreign + queue + pressure) / home × caution + distance) / weight
//! ```
//!
//! Each term of the sum is a [`Signal`], one small type that says what it weighs and why. To add
//! one: write the type, and name it in [`Scorer`]. [`home`] keeps a prompt where its head is cached,
//! [`caution`] keeps away from who is slow.
//!
//! The weights are measured, on simulated fleets (`proxy/BALANCING.md`).
//!
//! What endpoints report may be missing. An endpoint that reports nothing is not idle: it is taken
//! to be as its peers, those of this decision, report on average. What fades with age fades towards
//! that.

use super::affinity::Named;
use super::choose::Looked;
use super::cost::Cost;
use super::reported::Belief;
use super::{Candidates, Facts, carried, weight};

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
    queue: Queue,
    pressure: Pressure,
}

impl<'a, C: Candidates> Scorer<'a, C> {
    pub(super) fn new(candidates: &'a C, named: &'a Named, looked: &Looked) -> Self {
        Self {
            candidates,
            own: Own { named },
            foreign: Foreign::among(looked, candidates),
            queue: Queue::among(looked, candidates),
            pressure: Pressure::among(looked, candidates),
        }
    }

    /// The score of endpoint `i`; the least is the best.
    pub(super) fn score(&self, i: usize) -> f64 {
        let candidates = self.candidates;
        let work = Carried.work(candidates, i)
            + self.own.work(candidates, i)
            + self.foreign.work(candidates, i)
            + self.queue.work(candidates, i)
            + self.pressure.work(candidates, i);
        let slow = work / home(candidates, self.own.named, i) * caution(candidates.facts(i));
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
///
/// What computing it elsewhere costs *others*, whose prompts it pushes out of that cache, is not in
/// here but in [`home`].
struct Own<'a> {
    named: &'a Named,
}

impl Signal for Own<'_> {
    fn work(&self, candidates: &impl Candidates, i: usize) -> f64 {
        candidates.ask().cost.with_cached(self.named.bytes(i) as u64).total() as f64
    }
}

/// What others have put there, where it is more or less than chance would have it. A foreign request
/// weighs like one of ours that is running: the size of its prompt is not known.
///
/// Others come and go while a report is under way, and other proxies read the same report: if all
/// of them ran to where it is a little emptier, it would be full when they arrive. So a number near
/// the mean of the peers counts as that mean.
pub(super) struct Foreign {
    usual: f64,
    /// How far from the usual is still chance.
    chance: f64,
}

impl Foreign {
    /// What is chance: up to two standard deviations. With less, proxies that share a fleet run to and
    /// fro together.
    const DEVIATIONS: f64 = 2.0;

    /// The mean of those that report, and what of a distance from it is chance: a number that comes
    /// about at random varies by the square root of its mean, and is nearer to the mean of few, of
    /// whom it is one itself.
    pub(super) fn among(looked: &Looked, candidates: &impl Candidates) -> Self {
        let known = |i| Self::known(candidates, i);
        let usual = usual(looked, known);
        let count = looked.indices().filter_map(known).count().max(1) as f64;
        Self { usual, chance: Self::DEVIATIONS * (usual * (1.0 - 1.0 / count)).sqrt() }
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
        let beside = self.requests(candidates, i) - self.usual;
        let beyond = shrunk(beside, self.chance);
        (self.usual + beyond) * Cost::REQUEST as f64
    }
}

/// What waits inside the endpoint for a place in its batch, whoever has sent it, once more: a queue is no chance, and who
/// comes next stands behind it.
struct Queue {
    usual: f64,
}

impl Queue {
    fn among(looked: &Looked, candidates: &impl Candidates) -> Self {
        Self { usual: usual(looked, |i| Self::known(candidates, i)) }
    }

    fn known(candidates: &impl Candidates, i: usize) -> Option<Belief> {
        candidates.facts(i).reported().queue(candidates.now())
    }
}

impl Signal for Queue {
    fn work(&self, candidates: &impl Candidates, i: usize) -> f64 {
        or_usual(Self::known(candidates, i), self.usual) * Cost::REQUEST as f64
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

/// By what the work of endpoint `i` is divided since it has the head of the prompt: it may carry so
/// much more before the prompt goes elsewhere. 1.0 when it has none of it, `1.0 + HOME` when it has
/// all of it alone.
///
/// A prompt that is computed at a second endpoint takes room in its cache as well, and what is pushed
/// out must be computed again. Without this each prompt would soon be in every cache for a little
/// while, and in none when it is asked for. The more endpoints have a prompt, the less it matters:
/// it is asked for so often that it is worth its room.
fn home(candidates: &impl Candidates, named: &Named, i: usize) -> f64 {
    /// A quarter more. With nothing a fleet whose caches are full breaks down; twice as much costs
    /// balance and gains nothing.
    const HOME: f64 = 0.25;
    let prompt = candidates.ask().cost.prefill.max(1);
    let cached = Cost::prefill_of(named.bytes(i) as u64).min(prompt);
    1.0 + HOME * (cached as f64 / prompt as f64) / named.holders(i) as f64
}

/// By what the work of an endpoint is multiplied since it is slow, `0.25..=4.0`: its slowness, less
/// what may be error, squared.
///
/// Who is three times slower and carries a third answers as late as the others: in a batch a first
/// byte takes nearly as long with few requests as with many. It has to carry less than that.
fn caution(facts: &Facts) -> f64 {
    /// A fifth, as a logarithm: who is that little slower or faster is taken to be neither.
    const ERROR: f64 = 0.2;
    /// The most, as a logarithm.
    const MOST: f64 = 1.386;
    (2.0 * shrunk(facts.slowness().ln(), ERROR)).clamp(-MOST, MOST).exp()
}

/// Nearer to zero by `margin`, and no further than that.
fn shrunk(value: f64, margin: f64) -> f64 {
    value - value.clamp(-margin, margin)
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
        let saved = [2_048, 128, 0].map(|tokens| tokens * Cost::TOKEN);
        let cost = |i: usize| policy.cost(&fleet, i).total();
        assert_eq!([0, 1, 2].map(|i| fleet.ask.cost.total() - cost(i)), saved);
        assert!(scores(&fleet).is_sorted());
        fleet.ask.cost.prefill = 50;
        let cost = |i: usize| policy.cost(&fleet, i);
        assert_eq!([0, 1, 2].map(|i| cost(i).prefill), [0, 0, 50]);
    }

    #[test]
    fn a_prompt_stays_where_it_is_cached_alone_and_less_so_where_it_is_one_of_several() {
        let text = [1; 8_192];
        let mut fleet = Fleet::idle(3);
        fleet.ask = Ask { prefix: Prefix::of(&text), cost: Cost::of_prompt(8_192), key: None };
        let own = fleet.ask.cost.total();
        for i in 0..3 {
            fleet.load(i, 1_000 * own);
        }
        let policy = fleet.policy(Kind::LeastLoad);
        let homes =
            || scores(&fleet).into_iter().map(|score| 1_001.0 * own as f64 / (score + own as f64));
        policy.sent(&fleet.ask, &fleet.facts[0], fleet.now);
        for (home, wanted) in homes().zip([1.25, 1.0, 1.0]) {
            assert!((home - wanted).abs() < 0.01, "{home} {wanted}");
        }
        policy.sent(&fleet.ask, &fleet.facts[1], fleet.now);
        for (home, wanted) in homes().zip([1.125, 1.125, 1.0]) {
            assert!((home - wanted).abs() < 0.01, "{home} {wanted}");
        }
    }

    #[test]
    fn foreign_work_counts_like_ours_as_far_as_it_is_beyond_chance() {
        let fleet = Fleet::loaded(&[1_000, 5_000]);
        let foreign = |others: [f64; 2]| {
            fleet.report(0, running(1.0 + others[0]));
            fleet.report(1, running(1.0 + others[1]));
            scores(&fleet)
        };
        // A mean of 18 requests at two endpoints: give or take twice three.
        assert_eq!(foreign([14.0, 22.0]), [19_000.0, 23_000.0]);
        assert_eq!(foreign([24.0, 12.0]), [19_000.0, 23_000.0]);
        assert_eq!(foreign([36.0, 0.0]), [31_000.0, 11_000.0]);
    }

    #[test]
    fn who_reports_nothing_is_not_idle_but_as_the_others() {
        let mut fleet = Fleet::loaded(&[0, 0, 0]);
        fleet.report(0, running(36.0));
        fleet.report(1, running(0.0));
        assert_eq!(scores(&fleet), [30_000.0, 6_000.0, 18_000.0]);
        // The first falls silent: it fades to what the second says.
        fleet.pass(10.0);
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
        (0..200).for_each(|_| (0..2).for_each(|i| fleet.answer(i, [0.1, 0.2][i])));
        let [fast, slow] = scores(&fleet)[..] else { unreachable!() };
        let times = (slow + 1_000.0) / (fast + 1_000.0);
        let wanted = (2.0 * (2.0_f64.ln() - 2.0 * 0.2)).exp();
        assert!((times - wanted).abs() < 0.2, "{times} {wanted}");
    }

    #[test]
    fn a_little_slower_is_not_slow_and_the_slowest_gets_a_share_still() {
        let caution_at = |seconds: f64| {
            let fleet = Fleet::idle(2);
            (0..500).for_each(|_| (0..2).for_each(|i| fleet.answer(i, [0.1, seconds][i])));
            [0, 1].map(|i| caution(&fleet.facts[i]))
        };
        assert_eq!(caution_at(0.1), [1.0; 2]);
        assert_eq!(caution_at(0.14), [1.0; 2], "20 % from the mean of both");
        for (caution, wanted) in caution_at(10.0).into_iter().zip([0.25, 4.0]) {
            assert!((caution - wanted).abs() < 0.01, "{caution} {wanted}");
        }
    }
}
