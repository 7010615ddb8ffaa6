//! The latest latencies of one arm, for its quantiles. A fixed ring: adding one is one store.

use std::time::Duration;

/// How many latencies are kept.
pub(super) const KEPT: usize = 1024;

/// The latest latencies, in microseconds.
#[derive(Debug)]
pub(super) struct Recent {
    ring: Box<[u32; KEPT]>,
    /// How many have been added.
    seen: u64,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self { ring: Box::new([0; KEPT]), seen: 0 }
    }

    /// How many latencies have been added.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// How many latencies are kept.
    pub(super) fn len(&self) -> usize {
        self.seen.min(KEPT as u64) as usize
    }

    pub(super) fn push(&mut self, micros: u32) {
        self.ring[(self.seen % KEPT as u64) as usize] = micros;
        self.seen += 1;
    }

    /// The quantiles at `levels` (ascending) of the last `count`, or of as many as are kept.
    /// Nothing when that is none.
    pub(super) fn quantiles_of_last<const N: usize>(
        &self,
        count: usize,
        levels: [f64; N],
    ) -> Option<[u32; N]> {
        let mut room = [0; KEPT];
        let values = self.copy_last(count, &mut room);
        let last = values.len().checked_sub(1)?;
        let mut from = 0;
        Some(levels.map(|level| {
            let rank = ((values.len() as f64 * level) as usize).min(last);
            // What is below an earlier rank is in place already.
            let value = *values[from..].select_nth_unstable(rank - from).1;
            from = rank;
            value
        }))
    }

    fn copy_last<'a>(&self, count: usize, room: &'a mut [u32; KEPT]) -> &'a mut [u32] {
        let count = count.min(self.len());
        let end = (self.seen % KEPT as u64) as usize;
        let before = count.min(end);
        room[..before].copy_from_slice(&self.ring[end - before..end]);
        let wrapped = count - before;
        room[before..count].copy_from_slice(&self.ring[KEPT - wrapped..]);
        &mut room[..count]
    }
}

/// A duration in whole microseconds, at most 71 minutes.
pub(super) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn quantiles_are_those_of_a_sorted_list() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut recent = Recent::new();
        let mut all = Vec::new();
        let levels = [0.0, 0.5, 0.5, 0.9, 0.99, 1.0];
        assert_eq!(None, recent.quantiles_of_last(10, levels));
        for added in 1..=3 * KEPT {
            let micros = rng.random_range(0..1_000);
            recent.push(micros);
            all.push(micros);
            if added % 97 != 1 {
                continue;
            }
            for count in [1, 17, KEPT - 1, KEPT, 2 * KEPT] {
                let kept = count.min(KEPT).min(added);
                let mut last = all[added - kept..].to_vec();
                last.sort_unstable();
                let at = |level| last[((kept as f64 * level) as usize).min(kept - 1)];
                assert_eq!(Some(levels.map(at)), recent.quantiles_of_last(count, levels));
            }
        }
        assert_eq!((KEPT, 3 * KEPT as u64), (recent.len(), recent.seen()));
    }

    #[test]
    fn durations_too_long_are_cut() {
        assert_eq!(1_500_000, micros(Duration::from_millis(1_500)));
        assert_eq!(u32::MAX, micros(Duration::from_secs(5_000)));
    }
}
