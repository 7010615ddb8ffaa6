//! The waits of the last seconds, so that others can ask which of them overlapped with theirs.

use std::collections::VecDeque;

use aya::maps::{MapData, RingBuf};
use outrigger_probes::Call;

/// How long a wait is kept after it has ended, in nanoseconds: 10 s.
const KEPT: u64 = 10_000_000_000;

/// Waits that are kept at most: 2 MiB, and 10 s of 6,500 per second.
const MOST: usize = 65_536;

/// The ring that the kernel tells waits in, and what was read from it.
pub(super) struct Waits {
    ring: RingBuf<MapData>,
    recent: Recent,
}

impl Waits {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Waits { ring, recent: Recent::default() }
    }

    /// Reads what the kernel has told by now.
    pub(super) fn read(&mut self) {
        while let Some(bytes) = self.ring.next() {
            if let Some(call) = Call::from_bytes(&bytes) {
                self.recent.add(call);
            }
        }
    }

    /// Those that ended after `from` and began before `to`, by their ends.
    pub(super) fn overlapping(&mut self, from: u64, to: u64) -> Vec<Call> {
        self.read();
        self.recent.overlapping(from, to)
    }
}

/// Waits by their ends.
#[derive(Default)]
struct Recent(VecDeque<Call>);

impl Recent {
    /// Adds one, which may have ended a little before others that are there: processors tell independently.
    fn add(&mut self, call: Call) {
        let behind = self.0.iter().rev().take_while(|other| other.end > call.end).count();
        self.0.insert(self.0.len() - behind, call);
        let newest = self.0.back().map_or(0, |last| last.end);
        while let Some(first) = self.0.front()
            && (self.0.len() > MOST || first.end < newest.saturating_sub(KEPT))
        {
            self.0.pop_front();
        }
    }

    fn overlapping(&self, from: u64, to: u64) -> Vec<Call> {
        let first = self.0.partition_point(|call| call.end <= from);
        self.0.range(first..).filter(|call| call.start < to).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    fn call(start: u64, end: u64) -> Call {
        Call { start, end, ..Call::default() }
    }

    #[test]
    fn what_overlaps_is_told_by_its_end() {
        let mut random = StdRng::seed_from_u64(7);
        let (mut recent, mut all) = (Recent::default(), Vec::new());
        for at in 0..2000_u64 {
            let end = at * 1000 + random.random_range(0..5000);
            let one = call(end - random.random_range(0..=end.min(9000)), end);
            recent.add(one);
            all.push(one);
        }
        for _ in 0..500 {
            let from = random.random_range(0..2_000_000);
            let to = from + random.random_range(0..20_000);
            let mut expected: Vec<_> =
                all.iter().filter(|it| it.end > from && it.start < to).copied().collect();
            expected.sort_by_key(|call| call.end);
            let found = recent.overlapping(from, to);
            assert!(found.is_sorted_by_key(|call| call.end));
            assert_eq!(found.len(), expected.len());
            assert!(expected.iter().all(|call| found.contains(call)));
        }
    }

    #[test]
    fn the_oldest_go_first_and_there_are_never_too_many() {
        let mut recent = Recent::default();
        for at in 0..MOST as u64 + 10 {
            recent.add(call(at, at + 1));
        }
        assert_eq!(recent.0.len(), MOST);
        assert_eq!(recent.0.front().map(|call| call.start), Some(10));
        recent.add(call(0, KEPT + 100));
        assert!(recent.0.iter().all(|call| call.end >= 100), "what is too old is gone");
        recent.add(call(0, 5));
        assert_eq!(recent.overlapping(4, 6), [call(0, KEPT + 100)], "so is what comes too late");
    }
}
