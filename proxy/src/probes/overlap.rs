//! How much of a request was spent waiting for the GPU: the part of its time in which somebody in the pod waited for the
//! driver.
//!
//! The kernel sees who waits, but not for which request: an engine puts requests into batches and works on them in threads
//! and processes of its own. So nothing is guessed from threads. When a request was the only one in flight, every wait
//! within its time was for it, and its time is *exact*; otherwise it is *shared* among as many as were in flight, and says
//! so. Dividing it by them would be a convention, and is left to whoever reads it.
//!
//! A pure core: times are nanoseconds of CLOCK_MONOTONIC, told by the caller. What is forgotten is not made up: a request
//! that began before gets no answer.

use std::{cmp, collections::VecDeque, time::Duration};

use outrigger_probes::Call;

/// How waits for the GPU are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Blocking calls of the driver's interface in user space (CUDA, HIP) that were waited for.
    Api,
    /// System calls of the driver, and waits for fences where those are seen, too.
    Driver,
    /// Waits in the kernel for fences alone.
    Fence,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Api, Self::Driver, Self::Fence];

    /// Its name in metrics and the access log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Api => "api",
            Method::Driver => "driver",
            Method::Fence => "fence",
        }
    }
}

/// What a request had of the waits for the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuWait {
    /// How much of its time somebody waited.
    pub took: Duration,
    /// How that is known.
    pub method: Method,
    /// Among how many requests it is shared, itself included; 1 is exact.
    pub among: u32,
}

/// Calls that returned at this time or later, in the order in which they did, from the family of programs that sees them.
pub(super) type Fetch = Box<dyn Fn(u64) -> Vec<Call> + Send>;

/// A family of programs that tells of waits.
struct Source {
    fetch: Fetch,
    /// When the last wait ended that it has told of.
    known: u64,
}

/// Who waited for the GPU and when, as families of programs tell it. Two may see the same wait (that for a fence inside a call
/// into the driver, say): it is one, for what counts is whether anybody waited.
pub(super) struct Waits {
    method: Method,
    sources: Vec<Source>,
    busy: Busy,
}

impl Waits {
    /// None known yet.
    pub(super) fn new(method: Method, sources: Vec<Fetch>) -> Self {
        let sources = sources.into_iter().map(|fetch| Source { fetch, known: 0 });
        Waits { method, sources: sources.collect(), busy: Busy::default() }
    }

    /// Fetches what was told since.
    pub(super) fn look(&mut self) {
        for source in &mut self.sources {
            // What is told twice counts once.
            for call in (source.fetch)(source.known) {
                source.known = source.known.max(call.end);
                self.busy.add(call.start, call.end);
            }
        }
    }

    /// What a request had of them that took from one to the other.
    pub(super) fn of(&self, crowd: &Crowd, from: u64, to: u64) -> Option<GpuWait> {
        let took = Duration::from_nanos(self.busy.within(from, to)?);
        Some(GpuWait { took, method: self.method, among: crowd.most(from, to)?.max(1) })
    }
}

/// Intervals that are remembered: 160 s of a hundred waits per second.
const MOST_INTERVALS: usize = 16_384;

/// How fine the number of requests in flight is remembered: 20 ms. Requests that are in flight in the same slot count as
/// together, which errs towards *shared*.
const SLOT: u64 = 20_000_000;

/// Slots that are remembered: ten minutes.
const MOST_SLOTS: usize = 30_000;

/// When anybody waited: intervals that do not touch, in order.
#[derive(Debug, Default)]
pub(super) struct Busy {
    intervals: VecDeque<(u64, u64)>,
    /// Up to here some were forgotten.
    forgotten: u64,
}

impl Busy {
    /// Somebody has waited from `start` to `end`. They come roughly in order of their ends.
    pub(super) fn add(&mut self, mut start: u64, mut end: u64) {
        if end <= start {
            return;
        }
        let after = self.intervals.partition_point(|(from, _)| *from <= end);
        let mut before = after;
        while before > 0
            && let Some((from, to)) = self.intervals.get(before - 1).copied()
            && to >= start
        {
            (start, end) = (start.min(from), end.max(to));
            before -= 1;
        }
        self.intervals.drain(before..after);
        self.intervals.insert(before, (start, end));
        if self.intervals.len() > MOST_INTERVALS
            && let Some((_, end)) = self.intervals.pop_front()
        {
            self.forgotten = end;
        }
    }

    /// For how long anybody waited between the two; `None` when that is forgotten.
    pub(super) fn within(&self, from: u64, to: u64) -> Option<u64> {
        if from < self.forgotten {
            return None;
        }
        let first = self.intervals.partition_point(|(_, end)| *end <= from);
        let within = self.intervals.range(first..).take_while(|(start, _)| *start < to);
        Some(within.map(|(start, end)| cmp::min(*end, to) - cmp::max(*start, from)).sum())
    }
}

/// How many requests were in flight at once.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// The most of each slot.
    most: VecDeque<u32>,
    /// Which slot the first is.
    first: u64,
    now: u32,
}

impl Crowd {
    /// A request was sent.
    pub(super) fn began(&mut self, at: u64) {
        let slot = self.reach(at);
        self.now += 1;
        // Whoever is told of late was there in the slots since, too.
        for most in self.most.range_mut(slot..self.most.len() - 1) {
            *most += 1;
        }
        if let Some(last) = self.most.back_mut() {
            *last = cmp::max(*last, self.now);
        }
    }

    /// A request has ended.
    pub(super) fn ceased(&mut self, at: u64) {
        self.reach(at);
        self.now = self.now.saturating_sub(1);
    }

    /// Nobody is in flight: an end that was not told of no longer counts.
    pub(super) fn nobody(&mut self) {
        self.now = 0;
    }

    /// Goes on to the slot of this time; where it is among those remembered.
    fn reach(&mut self, at: u64) -> usize {
        let slot = at / SLOT;
        if self.most.is_empty() {
            // One more, for a note that is overtaken by another.
            self.first = slot.saturating_sub(1);
        }
        let next = self.first + self.most.len() as u64;
        let missing = (slot + 1).saturating_sub(next);
        if missing > MOST_SLOTS as u64 {
            self.most.clear();
            self.first = slot;
            self.most.push_back(self.now);
        } else {
            self.most.extend((0..missing).map(|_| self.now));
        }
        while self.most.len() > MOST_SLOTS {
            self.most.pop_front();
            self.first += 1;
        }
        usize::try_from(slot.saturating_sub(self.first))
            .unwrap_or(usize::MAX)
            .min(self.most.len() - 1)
    }

    /// The most that were in flight at once between the two; `None` when that is forgotten.
    pub(super) fn most(&self, from: u64, to: u64) -> Option<u32> {
        let (from, to) = (from / SLOT, to / SLOT);
        let first = usize::try_from(from.checked_sub(self.first)?).ok()?;
        let length = usize::try_from(to.saturating_sub(from)).ok()?.saturating_add(1);
        let most = self.most.iter().skip(first).take(length).copied().max();
        Some(most.unwrap_or(self.now))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn time_is_counted_once_however_many_wait() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut busy, mut ticks) = (Busy::default(), [false; 400]);
            for _ in 0..rng.random_range(0..40) {
                let start: usize = rng.random_range(0..390);
                let end = rng.random_range(start..=(start + 20).min(399));
                busy.add(start as u64, end as u64);
                ticks[start..end].fill(true);
            }
            for _ in 0..20 {
                let from: usize = rng.random_range(0..400);
                let to = rng.random_range(from..400);
                let expected = ticks[from..to].iter().filter(|tick| **tick).count();
                assert_eq!(
                    busy.within(from as u64, to as u64),
                    Some(expected as u64),
                    "seed {seed}"
                );
            }
            let touch = |pair: (&(u64, u64), &(u64, u64))| pair.0.1 >= pair.1.0;
            let intervals = &busy.intervals;
            assert!(!intervals.iter().zip(intervals.iter().skip(1)).any(touch), "seed {seed}");
        }
    }

    #[test]
    fn a_wait_that_two_families_tell_of_is_one() {
        // The call into the driver, and in it the wait for a fence; then a wait outside of any call.
        let call = |start, end| Call { start, end, ..Call::default() };
        let told = |calls: Vec<Call>| -> Fetch {
            Box::new(move |since| calls.iter().filter(|it| it.end >= since).copied().collect())
        };
        let (calls, fences) = (vec![call(100, 200)], vec![call(120, 190), call(250, 300)]);
        let mut crowd = Crowd::default();
        crowd.began(0);
        for sources in [[&calls, &fences], [&fences, &calls]] {
            let sources = sources.map(|calls| told(calls.clone()));
            let mut waits = Waits::new(Method::Driver, sources.into());
            for _ in 0..2 {
                waits.look();
                let wait = waits.of(&crowd, 0, 1000).expect("nothing is forgotten");
                assert_eq!(wait.took, Duration::from_nanos(150));
            }
        }
        let mut waits = Waits::new(Method::Fence, vec![told(fences)]);
        waits.look();
        let wait = waits.of(&crowd, 150, 260).expect("nothing is forgotten");
        assert_eq!((wait.took, wait.method.as_str()), (Duration::from_nanos(50), "fence"));
    }

    #[test]
    fn what_is_forgotten_is_not_made_up() {
        let mut busy = Busy::default();
        for at in 0..=MOST_INTERVALS as u64 {
            busy.add(10 * at, 10 * at + 5);
        }
        assert_eq!(busy.within(0, 100), None);
        assert_eq!(busy.within(10, 30), Some(10));
        let mut crowd = Crowd::default();
        crowd.began(0);
        crowd.ceased(SLOT * (MOST_SLOTS as u64 + 5));
        assert_eq!(crowd.most(0, SLOT), None);
        crowd.began(SLOT * 10 * MOST_SLOTS as u64);
        assert_eq!(crowd.most(SLOT * (MOST_SLOTS as u64 + 5), u64::MAX), None);
    }

    #[test]
    fn one_after_the_other_is_alone() {
        let mut crowd = Crowd::default();
        for at in 0..100 {
            crowd.began(at * 1_000_000);
            crowd.ceased(at * 1_000_000 + 900_000);
        }
        assert_eq!(crowd.most(0, 99_000_000), Some(1));
    }

    #[test]
    fn a_note_that_was_lost_does_not_count_for_ever() {
        let mut crowd = Crowd::default();
        // Whose end was not told.
        crowd.began(0);
        crowd.began(SLOT);
        crowd.ceased(2 * SLOT);
        crowd.nobody();
        crowd.began(5 * SLOT);
        crowd.ceased(6 * SLOT);
        assert_eq!(crowd.most(5 * SLOT, 6 * SLOT), Some(1));
    }

    #[test]
    fn nobody_who_was_there_is_overlooked() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut times: Vec<(u64, u64)> = (0..rng.random_range(1..30))
                .map(|_| {
                    let start = rng.random_range(0..40 * SLOT);
                    (start, start + rng.random_range(1..5 * SLOT))
                })
                .collect();
            let mut events: Vec<(u64, bool)> =
                times.iter().flat_map(|(start, end)| [(*start, true), (*end, false)]).collect();
            events.sort_unstable();
            let mut crowd = Crowd::default();
            // A neighbour's note may come first.
            for pair in events.chunks_exact_mut(2) {
                if rng.random_bool(0.2) && pair[0].1 == pair[1].1 && pair[1].0 - pair[0].0 < SLOT {
                    pair.swap(0, 1);
                }
            }
            for (at, begins) in events {
                if begins { crowd.began(at) } else { crowd.ceased(at) }
            }
            times.sort_unstable();
            for (from, to) in &times {
                let at_once = |at: u64| times.iter().filter(|(a, b)| *a <= at && at < *b).count();
                let starts = times.iter().map(|(start, _)| *start);
                let most = starts.filter(|at| at >= from && at < to).map(at_once).max();
                let told = crowd.most(*from, *to).expect("not forgotten") as usize;
                assert!(told >= most.unwrap_or(1), "seed {seed}: {told} of {most:?}");
            }
        }
    }
}
