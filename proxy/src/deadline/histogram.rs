//! A distribution that forgets, and that knows what it has not seen the end of.
//!
//! **Buckets** are log-linear: every power of two in 32 equal parts, so that a value is off by at most 3.1 %, and by
//! 1.6 % in the middle, from 61 µs to 17 minutes. Finding one takes a shift.
//!
//! **Forgetting.** Each sample ages all that came before it by the time since, in half-lives of [`HALF_LIFE`], but by no
//! more than one part in [`HALF_SAMPLES`] of one. A busy route forgets by time and a quiet one by samples: what lies ten
//! half-lives back weighs a thousandth and is beyond even the 99.9th percentile. Instead of making the old lighter the
//! new is made heavier, so that a sample touches one bucket.
//!
//! **What was cut off** at a deadline, or left, took *at least* so long. It is kept apart and the quantile is that of
//! Kaplan and Meier: going up bucket by bucket, the share that survives is multiplied by the share of those still there
//! that did not end in this one. Who was cut off earlier is simply not there any more. So its weight is shared out
//! among those that were seen to take longer, and where nobody was, the quantile is beyond anything known
//! ([`Quantile::Beyond`]): an estimate from the successes alone would shrink until everything is cut off.

use std::time::{Duration, Instant};

/// After so long a sample of a busy route counts half.
pub(super) const HALF_LIFE: Duration = Duration::from_secs(10);

/// So many samples later it counts no less than half.
pub(super) const HALF_SAMPLES: f64 = 32.0;

/// Parts of a power of two, as a power of two.
const PRECISION: u32 = 5;
/// How far a number is shifted until its exponent and the first digits after it are left.
const SHIFT: u32 = f32::MANTISSA_DIGITS - 1 - PRECISION;
/// 2^-14 and 2^10, shifted so.
const LOWEST: u32 = (127 - 14) << PRECISION;
const HIGHEST: u32 = (127 + 10) << PRECISION;
const BUCKETS: usize = (HIGHEST - LOWEST) as usize;

/// When the weight of a new sample has grown so far, all weights begin anew.
const HEAVIEST: f64 = 1e15;

/// Where a share of the samples ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Quantile {
    /// Here: the upper end of a bucket.
    At(f32),
    /// Above this, which is the longest that anything was waited for in vain.
    Beyond(f32),
}

/// Samples by size, late ones more than early ones.
#[derive(Debug)]
pub(super) struct Histogram {
    ended: Box<[f32]>,
    /// What was cut off; there is none until something is.
    cut: Option<Box<[f32]>>,
    /// What a sample weighs now.
    unit: f64,
    /// The weight of all that ended, and of all that was cut off.
    sum_ended: f64,
    sum_cut: f64,
    last: Option<Instant>,
}

impl Histogram {
    /// No sample yet.
    pub(super) fn new() -> Self {
        Self {
            ended: vec![0.0; BUCKETS].into(),
            cut: None,
            unit: 1.0,
            sum_ended: 0.0,
            sum_cut: 0.0,
            last: None,
        }
    }

    /// A sample of this size.
    pub(super) fn ended(&mut self, size: f32, now: Instant) {
        self.age(now);
        self.ended[bucket(size)] += self.unit as f32;
        self.sum_ended += self.unit;
    }

    /// A sample that is at least so large.
    pub(super) fn cut_off(&mut self, size: f32, now: Instant) {
        self.age(now);
        let cut = self.cut.get_or_insert_with(|| vec![0.0; BUCKETS].into());
        cut[bucket(size)] += self.unit as f32;
        self.sum_cut += self.unit;
    }

    /// How many samples that ended it stands for, the present one counted whole.
    pub(super) fn samples(&self) -> f64 {
        self.sum_ended / self.unit
    }

    /// What share of the samples was cut off.
    pub(super) fn cut_share(&self) -> f64 {
        self.sum_cut / (self.sum_ended + self.sum_cut).max(f64::MIN_POSITIVE)
    }

    /// The size below which a share `q` of the samples is; `None` without samples.
    pub(super) fn quantile(&self, q: f64) -> Option<Quantile> {
        match &self.cut {
            _ if self.sum_ended + self.sum_cut <= 0.0 => None,
            Some(cut) if self.cut_share() > 1e-6 => Some(self.kaplan_meier(cut, q)),
            _ => self.counted_down(q),
        }
    }

    /// Nothing was cut off: the share above is counted from the largest down.
    fn counted_down(&self, q: f64) -> Option<Quantile> {
        let above = self.sum_ended * (1.0 - q);
        let mut seen = 0.0;
        let mut highest = None;
        for (index, weight) in self.ended.iter().enumerate().rev().filter(|(_, w)| **w > 0.0) {
            seen += f64::from(*weight);
            highest = highest.or(Some(index));
            if seen > above {
                return Some(Quantile::At(upper(index)));
            }
        }
        highest.map(|index| Quantile::At(upper(index)))
    }

    fn kaplan_meier(&self, cut: &[f32], q: f64) -> Quantile {
        let mut there = self.sum_ended + self.sum_cut;
        let mut surviving = 1.0;
        let mut longest = 0;
        for (index, (ended, cut)) in self.ended.iter().zip(cut).enumerate() {
            if *ended > 0.0 {
                surviving *= (1.0 - f64::from(*ended) / there.max(f64::from(*ended))).max(0.0);
                if surviving <= 1.0 - q {
                    return Quantile::At(upper(index));
                }
            }
            if *cut > 0.0 {
                longest = index;
            }
            there -= f64::from(*ended) + f64::from(*cut);
        }
        Quantile::Beyond(upper(longest))
    }

    fn age(&mut self, now: Instant) {
        let passed = self.last.map_or(0.0, |last| {
            now.saturating_duration_since(last).as_secs_f64() / HALF_LIFE.as_secs_f64()
        });
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        self.unit *= passed.min(1.0 / HALF_SAMPLES).exp2();
        if self.unit > HEAVIEST {
            self.begin_weights_anew();
        }
    }

    fn begin_weights_anew(&mut self) {
        let lighter = (1.0 / self.unit) as f32;
        let cut = self.cut.iter_mut().flatten();
        self.ended.iter_mut().chain(cut).for_each(|weight| *weight *= lighter);
        self.sum_ended = self.ended.iter().map(|weight| f64::from(*weight)).sum();
        self.sum_cut = self.cut.iter().flatten().map(|weight| f64::from(*weight)).sum();
        self.unit = 1.0;
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

fn bucket(size: f32) -> usize {
    // What is not a number comes out below everything.
    let shifted = size.max(0.0).to_bits() >> SHIFT;
    shifted.clamp(LOWEST, HIGHEST - 1) as usize - LOWEST as usize
}

fn upper(bucket: usize) -> f32 {
    f32::from_bits((bucket as u32 + 1 + LOWEST) << SHIFT)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    fn at(quantile: Option<Quantile>) -> f32 {
        match quantile {
            Some(Quantile::At(size)) => size,
            other => panic!("no size: {other:?}"),
        }
    }

    #[test]
    fn a_value_is_at_most_so_far_below_the_end_of_its_bucket() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..10_000 {
            let size = 2.0_f32.powf(rng.random_range(-14.0..10.0));
            let end = upper(bucket(size));
            assert!(end > size && end / size <= 1.0 + 1.0 / 32.0 + 1e-6, "{size} in {end}");
        }
        for (size, index) in [(0.0, 0), (-1.0, 0), (f32::NAN, 0), (1e-9, 0), (1e9, BUCKETS - 1)] {
            assert_eq!(bucket(size), index, "{size}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_samples() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let now = Instant::now();
            let mut histogram = Histogram::new();
            let count = rng.random_range(1..2_000);
            let mut all: Vec<f32> =
                (0..count).map(|_| 2.0_f32.powf(rng.random_range(-8.0..8.0))).collect();
            // At one moment nothing ages.
            all.iter().for_each(|size| histogram.ended(*size, now));
            all.sort_by(f32::total_cmp);
            for q in [0.5, 0.9, 0.95, 0.999] {
                let rank = (q * f64::from(count)).ceil() as usize;
                let true_one = all[rank.clamp(1, all.len()) - 1];
                let said = at(histogram.quantile(q));
                // The ranks beside it are right too where a share falls between two samples.
                let next = all[rank.min(all.len() - 1)];
                assert!(said > true_one && said <= next * 1.032, "seed {seed}, {q}: {said}");
            }
        }
    }

    #[test]
    fn kaplan_and_meier_agree_with_a_table_worked_by_hand() {
        // Ends at 1, 3 and 4; cut off at 2 and 5: survival 4/5, then 4/5 · 2/3, then that · 1/2.
        let (mut histogram, now) = (Histogram::new(), Instant::now());
        [1.1, 3.1, 4.1].into_iter().for_each(|size| histogram.ended(size, now));
        [2.1, 5.1].into_iter().for_each(|size| histogram.cut_off(size, now));
        assert_eq!(at(histogram.quantile(0.2)), upper(bucket(1.1)));
        assert_eq!(at(histogram.quantile(0.46)), upper(bucket(3.1)));
        assert_eq!(at(histogram.quantile(0.73)), upper(bucket(4.1)));
        assert_eq!(histogram.quantile(0.74), Some(Quantile::Beyond(upper(bucket(5.1)))));
    }

    #[test]
    fn cutting_off_never_makes_a_quantile_smaller_than_the_truth() {
        for seed in 0..300 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let now = Instant::now();
            let (mut truth, mut seen) = (Histogram::new(), Histogram::new());
            for _ in 0..3_000 {
                let size = 2.0_f32.powf(rng.random_range(-3.0..3.0));
                let limit = if rng.random_bool(0.2) { 1e3 } else { rng.random_range(1.0..8.0) };
                truth.ended(size, now);
                match size <= limit {
                    true => seen.ended(size, now),
                    false => seen.cut_off(limit, now),
                }
            }
            for q in [0.5, 0.9, 0.99] {
                let (truth, seen) = (at(truth.quantile(q)), seen.quantile(q));
                let seen = match seen {
                    Some(Quantile::At(size) | Quantile::Beyond(size)) => size,
                    None => 0.0,
                };
                assert!((0.85..1.18).contains(&(seen / truth)), "seed {seed}, {q}: {seen} {truth}");
            }
        }
    }

    #[test]
    fn where_all_were_cut_off_nothing_but_a_least_is_known() {
        let (mut histogram, now) = (Histogram::new(), Instant::now());
        assert_eq!(histogram.quantile(0.5), None);
        (0..50).for_each(|_| histogram.cut_off(2.0, now));
        assert_eq!(histogram.quantile(0.5), Some(Quantile::Beyond(upper(bucket(2.0)))));
        assert_eq!(histogram.samples(), 0.0);
    }

    #[test]
    fn a_slow_spell_is_forgotten_after_ten_half_lives() {
        for rate in [1.0, 20.0, 1_000.0] {
            let mut now = Instant::now();
            let mut histogram = Histogram::new();
            let mut add = |size: f32, count: usize| {
                for _ in 0..count {
                    now += Duration::from_secs_f64(1.0 / rate);
                    histogram.ended(size, now);
                }
                at(histogram.quantile(0.999))
            };
            assert!(add(5.0, (100.0 * rate) as usize + 1_000) > 5.0);
            let half_life = (rate * HALF_LIFE.as_secs_f64()).max(HALF_SAMPLES);
            assert!(add(1.0, (9.0 * half_life) as usize) > 5.0, "{rate}: not yet");
            assert!(add(1.0, (2.0 * half_life) as usize) < 1.1, "{rate}: by now");
        }
    }

    #[test]
    fn weights_that_begin_anew_change_nothing() {
        let mut now = Instant::now();
        let mut histogram = Histogram::new();
        let mut rng = SmallRng::seed_from_u64(7);
        for _ in 0..20_000 {
            now += Duration::from_secs(1);
            histogram.ended(rng.random_range(1.0..2.0), now);
            histogram.cut_off(1.0, now);
            assert!(histogram.unit <= HEAVIEST);
            assert!(histogram.samples() < 1.5 * HALF_SAMPLES);
        }
        let median = at(histogram.quantile(0.5));
        assert!((1.4..1.6).contains(&median), "{median}");
        assert!((histogram.cut_share() - 0.5).abs() < 0.02);
    }
}
