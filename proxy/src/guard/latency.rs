//! Latencies as hits: slower than a quantile of the other arm, or not.
//!
//! "At most `t` slower" is taken to mean: for every `x`, a guarded request is slower than `x × (1 +
//! t)` no more often than one of the other arm is slower than `x`. (In words of statistics, the
//! guarded latency is not stochastically larger than the other one times `1 + t`.) So any `x` makes
//! a fair bet, if only it was chosen before: those taken here are the quantiles at [`LEVELS`] of
//! the other arm's latest [`KEPT`] latencies. They follow the load of the day, and how exact they
//! are has no influence on false alarms.

use std::time::{Duration, Instant};

use super::{
    Side,
    contest::{Contest, Hits, MOST},
    recent::{KEPT, Recent, micros},
};

/// The quantiles at which the arms are compared.
pub(super) const LEVELS: [f64; MOST] = [0.5, 0.75, 0.9, 0.975, 0.99];

/// No difference below this counts, whatever it is in percent: 1 ms is the scheduler's doing.
const SLACK: u32 = 1_000;

/// How many latencies of the other arm are needed for the first thresholds.
const ENOUGH: u64 = 16;

/// After how many more latencies the thresholds are set again.
const REFRESH: u64 = 128;

/// The comparison of one kind of latency.
#[derive(Debug)]
pub(super) struct Latency {
    pub(super) contest: Contest,
    /// Tolerated slowdown, as a share.
    tolerated: f64,
    pub(super) guarded: Recent,
    pub(super) against: Recent,
    thresholds: Option<Thresholds>,
    /// When the thresholds are due to be set, in latencies of the other arm.
    due: u64,
}

/// What counts as slow, in microseconds, for each arm. Ascending.
#[derive(Clone, Copy, Debug)]
struct Thresholds {
    guarded: [u32; MOST],
    against: [u32; MOST],
}

impl Latency {
    pub(super) fn new(tolerated: f64, now: Instant) -> Self {
        Self {
            contest: Contest::new(MOST, 0.0, now),
            tolerated,
            guarded: Recent::new(),
            against: Recent::new(),
            thresholds: None,
            due: ENOUGH,
        }
    }

    pub(super) fn add(&mut self, side: Side, latency: Duration, now: Instant) {
        let latency = micros(latency);
        // Within a round the thresholds stay as they are.
        if self.against.seen() >= self.due && self.contest.between_rounds() {
            self.set_thresholds();
        }
        if let Some(thresholds) = &self.thresholds {
            self.contest.add(side, &thresholds.hits(side, latency), now);
        }
        match side {
            Side::Guarded => self.guarded.push(latency),
            Side::Against => self.against.push(latency),
        }
    }

    /// The latencies of the guarded and the other arm at a quantile, in seconds, of the requests
    /// that the evidence rests on.
    pub(super) fn compare(&self, level: f64) -> [f64; 2] {
        let stretch = self.contest.stretch();
        let arms = [(&self.guarded, &stretch.guarded), (&self.against, &stretch.against)];
        arms.map(|(recent, tally)| {
            let count = usize::try_from(tally.count).unwrap_or(KEPT);
            let micros = recent.quantiles_of_last(count, [level]);
            micros.map_or(0.0, |[micros]| f64::from(micros) * 1e-6)
        })
    }

    fn set_thresholds(&mut self) {
        let Some(against) = self.against.quantiles_of_last(KEPT, LEVELS) else { return };
        let guarded = against.map(|threshold| self.tolerable(threshold));
        self.thresholds = Some(Thresholds { guarded, against });
        // Often at first, while little is known.
        self.due = self.against.seen() + self.against.seen().min(REFRESH);
    }

    /// The slowest that a guarded request may be where the other arm's takes `micros`.
    fn tolerable(&self, micros: u32) -> u32 {
        let more = (f64::from(micros) * self.tolerated) as u32;
        micros.saturating_add(more.max(SLACK))
    }
}

impl Thresholds {
    fn hits(&self, side: Side, latency: u32) -> Hits {
        let thresholds = match side {
            Side::Guarded => &self.guarded,
            Side::Against => &self.against,
        };
        thresholds.map(|threshold| f64::from(u8::from(latency > threshold)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// The median of the other arm by which the guarded one is judged, and what that may take.
    fn median(latency: &Latency) -> Option<(u32, u32)> {
        latency.thresholds.map(|thresholds| (thresholds.against[0], thresholds.guarded[0]))
    }

    #[test]
    fn thresholds_follow_the_other_arm_and_nothing_else() {
        let now = Instant::now();
        let mut latency = Latency::new(0.1, now);
        for _ in 0..ENOUGH {
            assert_eq!(None, median(&latency));
            latency.add(Side::Guarded, 10 * MILLI, now);
            latency.add(Side::Against, 100 * MILLI, now);
        }
        latency.add(Side::Against, 100 * MILLI, now);
        assert_eq!(Some((100_000, 110_000)), median(&latency));
        // Twice the load.
        for _ in 0..KEPT {
            latency.add(Side::Guarded, 200 * MILLI, now);
            latency.add(Side::Against, 200 * MILLI, now);
        }
        assert_eq!(Some((200_000, 220_000)), median(&latency));
    }

    #[test]
    fn one_arm_alone_changes_nothing_but_the_quantiles() {
        let now = Instant::now();
        let mut latency = Latency::new(0.1, now);
        for _ in 0..2_000 {
            latency.add(Side::Against, 100 * MILLI, now);
        }
        assert_eq!((1.0, Some((100_000, 110_000))), (latency.contest.evidence(), median(&latency)));
        for _ in 0..2_000 {
            latency.add(Side::Guarded, 900 * MILLI, now);
        }
        // One round at most: nothing to compare the others with.
        assert!(latency.contest.evidence() < 2.0);
    }

    #[test]
    fn less_than_a_millisecond_is_no_difference() {
        let latency = Latency::new(0.1, Instant::now());
        let tolerable = [0, 2_000, 10_000, 1_000_000, u32::MAX].map(|of| latency.tolerable(of));
        assert_eq!([1_000, 3_000, 11_000, 1_100_000, u32::MAX], tolerable);
    }
}
