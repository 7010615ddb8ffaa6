//! Calls into the driver that somebody waited for, of the last seconds: to say how much of a request they were.

use std::collections::VecDeque;

use outrigger_probes::Call;

/// For how long a call is kept after it has returned, in nanoseconds: 10 s.
const KEPT: u64 = 10_000_000_000;

/// How many are kept: 2 MiB of them.
const MOST: usize = 65_536;

/// Calls in the order in which they returned.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<Call>);

impl Recent {
    /// Adds one. Processors tell theirs a little out of order.
    pub(super) fn add(&mut self, call: Call) {
        let later = self.0.iter().rev().take_while(|other| other.end > call.end).count();
        self.0.insert(self.0.len() - later, call);
        if self.0.len() > MOST {
            self.0.pop_front();
        }
    }

    /// Forgets those that returned long before `now`, in nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn forget(&mut self, now: u64) {
        let old = self.0.partition_point(|call| call.end.saturating_add(KEPT) < now);
        self.0.drain(..old);
    }

    /// Those that returned at `since` or later, in the order in which they did.
    pub(super) fn since(&self, since: u64) -> Vec<Call> {
        self.0.range(self.0.partition_point(|call| call.end < since)..).copied().collect()
    }

    /// The one that this thread began then.
    pub(super) fn find(&self, task: u64, start: u64) -> Option<Call> {
        self.0.iter().rev().find(|call| call.task == task && call.start == start).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(end: u64) -> Call {
        Call { start: end - 1, end, task: end % 3, what: 1 }
    }

    fn ends(calls: &[Call]) -> Vec<u64> {
        calls.iter().map(|call| call.end).collect()
    }

    #[test]
    fn calls_are_in_the_order_in_which_they_returned() {
        let mut recent = Recent::default();
        for end in [5, 9, 7, 7, 20, 6] {
            recent.add(call(end));
        }
        assert_eq!(ends(&recent.since(0)), [5, 6, 7, 7, 9, 20]);
        assert_eq!(ends(&recent.since(7)), [7, 7, 9, 20]);
        assert_eq!(recent.since(21), []);
        assert_eq!(recent.find(0, 8), Some(call(9)));
        assert_eq!(recent.find(1, 8), None, "another thread's");
    }

    #[test]
    fn what_is_long_over_is_forgotten_and_so_is_what_is_too_much() {
        let mut recent = Recent::default();
        recent.add(call(10));
        recent.add(call(20));
        recent.forget(KEPT + 15);
        assert_eq!(ends(&recent.since(0)), [20]);
        for end in 0..MOST as u64 {
            recent.add(call(100 + end));
        }
        assert_eq!(recent.0.len(), MOST);
        assert_eq!(recent.0.front().map(|call| call.end), Some(100));
    }
}
