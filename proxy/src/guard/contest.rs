//! One measure: what the two arms are compared by, and the bets on it.
//!
//! A request becomes a few *hits*, yes or no: whether it failed, or whether it was slower than each
//! of some thresholds. Requests are gathered in **rounds**. The payoff of a round is the mean of
//! the guarded arm's hits, less that of the other's, less the tolerated difference. A round ends
//! when it has a request of either arm, of the commoner arm a few (`pace`): at weights of 99 to 1
//! it is one guarded request and the ninety-nine others before it, at equal weights one and one. So
//! like is compared with like: a round holds only what was seen at about the same time, and no
//! request is used twice. Which round a request belongs to depends on the arms of the requests and
//! on time, never on how they ended: else the bets would not be fair.

use std::time::{Duration, Instant};

use super::{
    Side,
    capital::Capital,
    pace::{Pace, Waiting},
};

/// The most kinds of hits of one measure.
pub(super) const MOST: usize = 5;

/// When a round has waited so long for the other arm, what it holds counts for half.
const HALF_LIFE: Duration = Duration::from_secs(30);

/// One hit or miss for each payoff, as 1 and 0. What a measure has no use for stays 0.
pub(super) type Hits = [f64; MOST];

/// Hits of one arm.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Of how many requests.
    pub(super) count: u64,
    /// The same, but old ones count for less.
    weight: f64,
    /// Likewise.
    hits: Hits,
}

impl Tally {
    fn add(&mut self, hits: &Hits) {
        self.merge(&Self { count: 1, weight: 1.0, hits: *hits });
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.weight += other.weight;
        for (sum, hits) in self.hits.iter_mut().zip(&other.hits) {
            *sum += hits;
        }
    }

    fn fade(&mut self, factor: f64) {
        self.weight *= factor;
        self.hits.iter_mut().for_each(|hits| *hits *= factor);
    }

    /// The share of hits; 0 without a request.
    pub(super) fn share(&self, payoff: usize) -> f64 {
        if self.weight > 0.0 { self.hits[payoff] / self.weight } else { 0.0 }
    }
}

/// The tallies of the two arms.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Both {
    pub(super) guarded: Tally,
    pub(super) against: Tally,
}

impl Both {
    fn get(&self, side: Side) -> &Tally {
        match side {
            Side::Guarded => &self.guarded,
            Side::Against => &self.against,
        }
    }

    fn add(&mut self, side: Side, hits: &Hits) {
        match side {
            Side::Guarded => self.guarded.add(hits),
            Side::Against => self.against.add(hits),
        }
    }

    fn is_empty(&self) -> bool {
        self.guarded.count == 0 && self.against.count == 0
    }

    fn merge(&mut self, other: &Self) {
        self.guarded.merge(&other.guarded);
        self.against.merge(&other.against);
    }

    fn fade(&mut self, factor: f64) {
        self.guarded.fade(factor);
        self.against.fade(factor);
    }

    /// The inverse of the variance of a difference of means, 1 for one guarded request against very
    /// many.
    fn size(&self) -> f64 {
        let (guarded, against) = (self.guarded.weight, self.against.weight);
        let both = guarded + against;
        // What has faded away altogether is no ground for a bet.
        if both > 0.0 { guarded * against / both } else { 0.0 }
    }
}

/// The comparison of the two arms by one measure.
#[derive(Debug)]
pub(super) struct Contest {
    capital: Capital,
    /// How many of the [`Hits`] are used.
    payoffs: usize,
    /// The difference of the shares of hits that is tolerated.
    tolerated: f64,
    round: Both,
    waiting: Waiting,
    pace: Pace,
    /// Since when the round lasts, or when it last faded.
    aged: Instant,
    /// All rounds since there was no evidence.
    stretch: Both,
}

impl Contest {
    pub(super) fn new(payoffs: usize, tolerated: f64, now: Instant) -> Self {
        Self {
            capital: Capital::new(payoffs, 1.0 + tolerated, now),
            payoffs,
            tolerated,
            round: Both::default(),
            waiting: Waiting::new(),
            pace: Pace::default(),
            aged: now,
            stretch: Both::default(),
        }
    }

    /// Whether the next request begins a round. Asking sends away what waits for one, so that a
    /// moment between two rounds comes soon.
    pub(super) fn between_rounds(&mut self) -> bool {
        self.waiting.clear();
        self.round.is_empty()
    }

    pub(super) fn evidence(&self) -> f64 {
        self.capital.total()
    }

    /// The payoff that speaks loudest.
    pub(super) fn leader(&self) -> usize {
        self.capital.leader()
    }

    /// What the evidence rests on: all requests since there was none.
    pub(super) fn stretch(&self) -> &Both {
        &self.stretch
    }

    /// The circumstances have changed: more of the capital goes to work.
    pub(super) fn refresh(&mut self) {
        self.capital.refresh();
    }

    /// Adds a request.
    pub(super) fn add(&mut self, side: Side, hits: &Hits, now: Instant) {
        self.age(now);
        self.pace.count(side);
        let more_than_enough = self.has_enough(side) && !self.pace.is_commoner(side);
        if more_than_enough && self.waiting.push(side, hits) {
            return;
        }
        self.round.add(side, hits);
        if self.has_enough(Side::Guarded) && self.has_enough(Side::Against) {
            self.settle(now);
            self.begin(now);
        }
    }

    fn has_enough(&self, side: Side) -> bool {
        self.round.get(side).count >= self.pace.enough(side)
    }

    /// Old requests weigh less, by time alone and whatever became of them.
    fn age(&mut self, now: Instant) {
        if self.round.is_empty() {
            self.aged = now;
        }
        let waited = now.saturating_duration_since(self.aged);
        if waited >= HALF_LIFE {
            self.round.fade(0.5_f64.powf(waited.as_secs_f64() / HALF_LIFE.as_secs_f64()));
            self.waiting.clear();
            self.aged = now;
        }
    }

    fn settle(&mut self, now: Instant) {
        let mut payoffs = [0.0; MOST];
        let Both { guarded, against } = &self.round;
        for (i, payoff) in payoffs.iter_mut().enumerate().take(self.payoffs) {
            *payoff = guarded.share(i) - against.share(i) - self.tolerated;
        }
        self.capital.settle(&payoffs[..self.payoffs], self.round.size(), now);
        if self.evidence() <= 1.0 {
            self.stretch = Both::default();
        } else {
            self.stretch.merge(&self.round);
        }
    }

    /// Begins a round, with what waits for one.
    fn begin(&mut self, now: Instant) {
        self.round = Both::default();
        self.aged = now;
        while let Some(side) = self.waiting.side().filter(|side| !self.has_enough(*side)) {
            if let Some(hits) = self.waiting.pop() {
                self.round.add(side, &hits);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn hit(hit: bool) -> Hits {
        let mut hits = [0.0; MOST];
        hits[0] = f64::from(u8::from(hit));
        hits
    }

    /// The evidence after requests of these arms, at these times, with hits by the bits of `fates`.
    fn evidence(requests: &[(Side, Duration)], tolerated: f64, fates: u64) -> f64 {
        let start = Instant::now();
        let mut contest = Contest::new(1, tolerated, start);
        for (i, (side, at)) in requests.iter().enumerate() {
            contest.add(*side, &hit(fates >> i & 1 == 1), start + *at);
        }
        contest.evidence()
    }

    fn chance(requests: &[(Side, Duration)], of: impl Fn(Side) -> f64, fates: u64) -> f64 {
        let each = requests.iter().enumerate().map(|(i, (side, _))| match fates >> i & 1 {
            1 => of(*side),
            _ => 1.0 - of(*side),
        });
        each.product()
    }

    /// Over all fates that twelve requests can have, weighed by their chances: on the edge of what
    /// is tolerated the evidence is 1 on average, whatever the order and the times of the arms.
    #[test]
    fn evidence_on_the_edge_is_one_on_average() {
        for seed in 0..40 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (share, tolerated) = (rng.random_range(0.1..0.9), rng.random_range(0.0..0.3));
            let against = rng.random_range(0.0..0.7);
            let mut at = Duration::ZERO;
            let requests: Vec<_> = (0..12)
                .map(|_| {
                    at += SECOND * if rng.random_bool(0.2) { 70 } else { 1 };
                    let guarded = rng.random_bool(share);
                    (if guarded { Side::Guarded } else { Side::Against }, at)
                })
                .collect();
            let of = |side| match side {
                Side::Guarded => against + tolerated,
                Side::Against => against,
            };
            let mean: f64 = (0..1 << 12)
                .map(|fates| chance(&requests, of, fates) * evidence(&requests, tolerated, fates))
                .sum();
            assert!((mean - 1.0).abs() < 1e-9, "seed {seed}: {mean}");
        }
    }

    #[test]
    fn failures_of_the_guarded_arm_are_evidence_and_of_the_other_are_not() {
        let pairs: Vec<_> = (0..20)
            .flat_map(|i| [(Side::Guarded, SECOND * i), (Side::Against, SECOND * i)])
            .collect();
        assert!(evidence(&pairs, 0.01, 0x55_5555_5555) > 100.0);
        assert!(evidence(&pairs, 0.01, 0xaa_aaaa_aaaa) < 1.0);
        assert!(evidence(&pairs, 0.01, u64::MAX) < 1.0);
    }

    #[test]
    fn what_waited_long_counts_less() {
        let start = Instant::now();
        let rounds = [0, 10].map(|halves| {
            let mut contest = Contest::new(1, 0.0, start);
            contest.add(Side::Against, &hit(true), start);
            let later = start + HALF_LIFE * halves;
            contest.add(Side::Against, &hit(false), later);
            (contest.round.against.share(0), contest.round.against.count)
        });
        let [(fresh, 2), (faded, 2)] = rounds else { panic!("{rounds:?}") };
        assert!((0.4..0.6).contains(&fresh) && faded < 0.01, "{rounds:?}");
    }

    #[test]
    fn the_rarer_arm_waits_for_rounds_of_its_own() {
        let now = Instant::now();
        let mut contest = Contest::new(1, 0.0, now);
        for side in [Side::Guarded, Side::Against].into_iter().cycle().take(20) {
            contest.add(side, &hit(false), now);
        }
        for _ in 0..3 {
            contest.add(Side::Guarded, &hit(true), now);
        }
        assert_eq!(1, contest.round.guarded.count);
        for _ in 0..3 {
            contest.add(Side::Against, &hit(false), now);
        }
        assert!(contest.round.is_empty());
        // Three rounds of one and one.
        assert_eq!((3, 3), (contest.stretch.guarded.count, contest.stretch.against.count));
        // Asking for the time between rounds makes it come.
        for _ in 0..3 {
            contest.add(Side::Guarded, &hit(true), now);
        }
        assert!(!contest.between_rounds());
        contest.add(Side::Against, &hit(false), now);
        assert!(contest.between_rounds());
    }
}
