//! Calls into a driver or a library as they are counted in the kernel, and single ones that were waited for.

use crate::record::record;

/// How many buckets a histogram has.
const BUCKETS: usize = 32;

/// The first bucket holds what took less than two to this power of nanoseconds: 256 ns.
const FIRST: u32 = 8;

/// How long calls took: one bucket per power of two, each of which holds what took less than its bound and not less than
/// the one before. The last holds everything longer, too. One value of a map, as words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Histogram {
    /// Calls.
    pub count: u64,
    /// Nanoseconds of all of them.
    pub sum: u64,
    /// Calls by how long they took.
    pub buckets: [u64; BUCKETS],
}

impl Histogram {
    /// How many words it has.
    pub const WORDS: usize = 2 + BUCKETS;

    /// Counts a call of so many nanoseconds.
    #[inline(always)]
    pub fn observe(&mut self, nanos: u64) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(nanos);
        // Masked, for a verifier wants to see that it is inside.
        let bucket = &mut self.buckets[Self::bucket(nanos) & (BUCKETS - 1)];
        *bucket = bucket.wrapping_add(1);
    }

    /// Which bucket so many nanoseconds fall into.
    #[inline(always)]
    const fn bucket(nanos: u64) -> usize {
        let bits = u64::BITS - nanos.leading_zeros();
        let above = bits.saturating_sub(FIRST) as usize;
        if above < BUCKETS { above } else { BUCKETS - 1 }
    }

    /// Adds what another processor has counted.
    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.wrapping_add(other.count);
        self.sum = self.sum.wrapping_add(other.sum);
        for (own, other) in self.buckets.iter_mut().zip(other.buckets) {
            *own = own.wrapping_add(other);
        }
    }

    /// Upper bounds in nanoseconds, each with the calls that took less; what the last bucket holds has no bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let below = self.buckets[..BUCKETS - 1].iter().scan(0, |sum: &mut u64, count| {
            *sum = sum.wrapping_add(*count);
            Some(*sum)
        });
        below.enumerate().map(|(at, count)| (1 << (FIRST as usize + at), count))
    }

    /// Its words, in order of declaration.
    #[must_use]
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        core::array::from_fn(|at| match at {
            0 => self.count,
            1 => self.sum,
            at => self.buckets[at - 2],
        })
    }

    /// The histogram of these words.
    #[must_use]
    pub fn from_words(words: &[u64; Self::WORDS]) -> Self {
        let buckets = core::array::from_fn(|at| words[at + 2]);
        Histogram { count: words[0], sum: words[1], buckets }
    }
}

record! {
    /// A call that somebody waited for. Times are nanoseconds of CLOCK_MONOTONIC.
    Call {
        /// When it began.
        start,
        /// When it returned.
        end,
        /// Who called: the process in the upper half, the thread in the lower, as the first PID namespace counts.
        task,
        /// What was called, as the family numbers it.
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_took_less_than_its_bound() {
        for (nanos, bound) in [(0, 256), (255, 256), (256, 512), (1 << 20, 1 << 21), (1 << 38, 0)] {
            let mut histogram = Histogram::default();
            histogram.observe(nanos);
            let first = histogram.cumulative().find(|(_, count)| *count == 1);
            assert_eq!(first.map_or(0, |(bound, _)| bound), bound, "{nanos}");
            assert_eq!((histogram.count, histogram.sum), (1, nanos));
        }
        let bounds: [u64; BUCKETS - 1] = {
            let histogram = Histogram::default();
            let mut bounds = histogram.cumulative().map(|(bound, _)| bound);
            core::array::from_fn(|_| bounds.next().unwrap_or(0))
        };
        assert_eq!((bounds[0], bounds[BUCKETS - 2]), (256, 1 << 38));
    }

    #[test]
    fn nothing_overflows() {
        let mut histogram = Histogram { sum: u64::MAX, count: u64::MAX, ..Histogram::default() };
        histogram.observe(u64::MAX);
        assert_eq!((histogram.count, histogram.buckets[BUCKETS - 1]), (0, 1));
    }

    #[test]
    fn words_and_sums() {
        let words = core::array::from_fn(|at| at as u64 + 5);
        let mut histogram = Histogram::from_words(&words);
        assert_eq!(histogram.to_words(), words);
        assert_eq!(size_of::<Histogram>(), 8 * Histogram::WORDS);
        histogram.merge(&Histogram::from_words(&words));
        assert_eq!(histogram.to_words(), words.map(|word| 2 * word));
        let all: u64 = histogram.buckets.iter().sum();
        let below = histogram.cumulative().last().map(|(_, count)| count);
        assert_eq!(below, Some(all - histogram.buckets[BUCKETS - 1]));
    }
}
