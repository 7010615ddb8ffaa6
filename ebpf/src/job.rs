//! Jobs in the DRM scheduler: handed in by a process, run by the scheduler when the hardware has room, done when the hardware
//! says so.
//!
//! What happens to a job after it was handed in happens in tasks that have nothing to do with its owner, so it is found again
//! by the number of its fence.

use crate::{record::record, task::TaskFact};

/// What the programs are told besides [`TaskFact`], behind it in the table. Offsets are in bytes from the start of a record of
/// the tracepoint, as its format says; zero, where no field lies, for one that there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum JobFact {
    /// Of a job that is handed in: the first word of the fence's number.
    QueuedFence = TaskFact::COUNT,
    /// The second.
    QueuedSequence,
    /// Where the name of its ring is: an offset in the lower half, a length in the upper.
    QueuedRing,
    /// Of a job that is run: the first word.
    RunFence,
    /// The second.
    RunSequence,
    /// Of a job that is done: the first word.
    DoneFence,
    /// The second.
    DoneSequence,
}

impl JobFact {
    /// How many facts there are, those of the task among them.
    pub const COUNT: usize = Self::DoneSequence as usize + 1;
}

record! {
    /// Which job: by the fence that is signaled when it is done.
    JobKey {
        /// Its context, or in older kernels its address.
        fence,
        /// Its number in the context, or zero.
        sequence,
    }
}

/// How many bytes of a ring's name are told apart, the NUL at its end among them.
pub const RING_BYTES: usize = 32;

/// The name of a ring, as bytes in memory behind which there are zeros. Zeros alone are all rings that there was no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Ring(pub [u64; RING_BYTES / 8]);

impl Ring {
    /// All that there was no room for, or that have no name.
    pub const OTHER: Self = Ring([0; RING_BYTES / 8]);

    /// Its bytes up to the first NUL.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.0.into_iter().flat_map(u64::to_ne_bytes).take_while(|byte| *byte != 0)
    }
}

/// A job that was handed in and is not done. One value of a map, as words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Job {
    /// When it was handed in, in nanoseconds of CLOCK_MONOTONIC.
    pub queued: u64,
    /// When it was first run; zero before.
    pub run: u64,
    /// What runs it.
    pub ring: Ring,
}

impl Job {
    /// How many words it has.
    pub const WORDS: usize = 2 + RING_BYTES / 8;

    /// One that is handed in now.
    #[inline(always)]
    #[must_use]
    pub const fn new(now: u64, ring: Ring) -> Self {
        Job { queued: now, run: 0, ring }
    }

    /// It is run: for how many nanoseconds it was queued. `None` when it was run before, as it is again after the hardware
    /// was reset.
    #[inline(always)]
    pub fn runs(&mut self, now: u64) -> Option<u64> {
        if self.run != 0 {
            return None;
        }
        self.run = now;
        Some(now.saturating_sub(self.queued))
    }

    /// It is done: for how many nanoseconds it ran. `None` when it never did.
    #[inline(always)]
    #[must_use]
    pub const fn done(&self, now: u64) -> Option<u64> {
        if self.run == 0 { None } else { Some(now.saturating_sub(self.run)) }
    }

    /// Its words, in order of declaration.
    #[must_use]
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        let [a, b, c, d] = self.ring.0;
        [self.queued, self.run, a, b, c, d]
    }

    /// The job of these words.
    #[must_use]
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        let [queued, run, ring @ ..] = words;
        Job { queued, run, ring: Ring(ring) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(name: &[u8]) -> Ring {
        let mut bytes = [0; RING_BYTES];
        bytes[..name.len()].copy_from_slice(name);
        let word = |at: usize| core::array::from_fn(|byte| bytes[8 * at + byte]);
        Ring(core::array::from_fn(|at| u64::from_ne_bytes(word(at))))
    }

    #[test]
    fn a_ring_is_called_what_stands_before_the_first_zero() {
        assert!(ring(b"comp_1.0.0").bytes().eq(*b"comp_1.0.0"));
        let longest = [b'x'; RING_BYTES];
        assert!(ring(&longest).bytes().eq(longest), "a name without an end");
        assert!(ring(b"gfx\0old").bytes().eq(*b"gfx"));
        assert_eq!(Ring::OTHER.bytes().count(), 0);
    }

    #[test]
    fn a_job_is_queued_until_it_first_runs_and_runs_until_it_is_done() {
        let mut job = Job::new(1000, ring(b"sdma0"));
        assert_eq!(job.done(1500), None, "one that never ran");
        assert_eq!(job.runs(3000), Some(2000));
        assert_eq!(job.runs(9000), None, "after a reset");
        assert_eq!(job.done(10_000), Some(7000));
        let early = Job { run: 3000, ..job };
        assert_eq!(early.done(2999), Some(0), "processors may differ by a moment");
    }

    #[test]
    fn words_come_back_as_they_were() {
        let words = core::array::from_fn(|at| at as u64 + 3);
        let job = Job::from_words(words);
        assert_eq!(job.to_words(), words);
        assert_eq!((job.queued, job.run), (3, 4));
        assert_eq!(size_of::<Job>(), 8 * Job::WORDS);
        assert_eq!(size_of::<JobKey>(), 8 * JobKey::WORDS);
    }

    #[test]
    fn the_facts_of_a_job_lie_behind_those_of_its_task() {
        assert_eq!(JobFact::QueuedFence as usize, TaskFact::OwnNamespace as usize + 1);
        assert_eq!(JobFact::COUNT, TaskFact::COUNT + 7);
    }
}
