//! Counts on a logarithmic scale, four steps to the octave: enough for a median that is right
//! within a tenth, in 384 bytes.

/// Steps of the scale.
const STEPS: usize = 96;
/// Steps in an octave, as a power of two.
const FINENESS: u32 = 2;
/// Values below two to this power are all alike.
const LOWEST: u32 = 6;

/// How often which time per token was seen; in nanoseconds, from 64 ns to one second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u32; STEPS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; STEPS] }
    }
}

impl Histogram {
    /// Counts one value, in nanoseconds.
    pub fn observe(&mut self, value: u64) {
        let count = &mut self.counts[step(value)];
        *count = count.saturating_add(1);
    }

    /// Counts all that `other` has counted.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// The median, as near as the scale allows; `None` when nothing was counted.
    pub fn median(&self) -> Option<f64> {
        (self.total() > 0).then(|| value(self.middle()))
    }

    /// The step in which the median is.
    pub(super) fn middle(&self) -> usize {
        let half = self.total().div_ceil(2);
        let mut below = 0;
        let reaches_half = |count: &u32| {
            below += u64::from(*count);
            below >= half
        };
        self.counts.iter().position(reaches_half).unwrap_or(0)
    }

    /// How many are in higher steps than this one.
    pub(super) fn above(&self, step: usize) -> u64 {
        self.counts.iter().skip(step + 1).map(|count| u64::from(*count)).sum()
    }
}

/// The step of a value: its octave, and the quarter of it by the next two bits.
fn step(value: u64) -> usize {
    let Some(octave) = value.max(1).ilog2().checked_sub(LOWEST) else { return 0 };
    let quarter = (value >> (octave + LOWEST - FINENESS)) & ((1 << FINENESS) - 1);
    (((octave as usize) << FINENESS) + quarter as usize).min(STEPS - 1)
}

/// The value in the middle of a step.
fn value(step: usize) -> f64 {
    let octave = (step >> FINENESS) as i32 + LOWEST as i32;
    let quarter = (step & ((1 << FINENESS) - 1)) as f64;
    2_f64.powi(octave) * (1.0 + (quarter + 0.5) / f64::from(1 << FINENESS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_again_within_an_eighth() {
        let mut known = 64_u64;
        while known < 1_000_000_000 {
            let found = value(step(known));
            assert!((found / known as f64 - 1.0).abs() <= 0.125, "{known} became {found}");
            known += known / 7 + 1;
        }
    }

    #[test]
    fn steps_never_fall_and_both_ends_are_open() {
        let steps: Vec<_> = (0..64).map(|bits| step(1 << bits)).collect();
        assert!(steps.is_sorted());
        assert_eq!([step(0), step(63), step(64), step(79), step(80)], [0, 0, 0, 0, 1]);
        assert_eq!(step(u64::MAX), STEPS - 1);
    }

    #[test]
    fn the_median_halves_what_was_counted() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.median(), None);
        (1..=999).for_each(|value| histogram.observe(value * 1_000));
        let median = histogram.median().unwrap();
        assert!((440_000.0..560_000.0).contains(&median), "{median}");
        assert!((0.4..0.6).contains(&(histogram.above(histogram.middle()) as f64 / 999.0)));
    }
}
