//! Progress is liveness: an engine that answers `/health` and has sent no byte for anything it
//! works on is sick.
//!
//! The part of a model server that answers a health check is not the part that makes tokens. When
//! the latter hangs, in a collective that one rank never joins or behind a device error, checks go
//! on to pass and requests wait for their own deadlines, which have to be long. But all requests of
//! an engine are worked on together, step by step, and while one of them is answered a byte comes
//! with every step. So the silence of all of them together says in seconds what that of one says
//! after minutes.
//!
//! One [`Progress`] per endpoint, a [`Turn`] for each request there. The silence is the time since
//! the last byte of any answer, or since the endpoint was sent a request while it owed nothing. It
//! is a stall when it is longer than [`Settings::floor`] and longer than what is known of this
//! endpoint allows:
//!
//! - while answers are streaming, [`Settings::gaps`] times the longest pause between two bytes of
//!   any of them;
//! - while prompts are being read and nothing streams, [`READS`] times the longest time that this
//!   has taken per token, for the longest of these prompts. So the first prompt of 32,000 tokens
//!   after a day of short ones is no stall.
//!
//! **What is learned** is a peak that halves in [`HALF_LIFE`] of work. Nothing is learned from the
//! first [`ENOUGH`] answers, for which an engine compiles kernels, and nothing is a stall before
//! something is. A silence at most doubles the time that would be a stall: an engine that hung once
//! and came back is not given minutes for the next time, and one that takes its time more often
//! than it seemed is given it. An engine that reads prompts whole lets all streams wait for them;
//! until that has been learned a very long one looks like a stall. With steps of up to 8,192 prompt
//! tokens, more than common engines have, that does not happen; without any limit the floor should
//! be the time that the longest prompt takes.
//!
//! **What counts.** Only requests that asked for a stream: the first byte of any other answer is its
//! end, and minutes without one are in order. Only requests that the endpoint has in full. And no
//! stream that is held up by its client. The bytes of all the others are progress all the same.
//!
//! Lock-free; a byte of an answer that streams costs two relaxed loads and a store. Counts are
//! exact, races may lose a sample of what is learned.
//!
//! Left out: what follows ([`super::Failure::Stalled`]), and endpoints behind which there are
//! several engines; there one that works hides one that does not.

mod peak;
mod turn;

use std::array;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed},
};
use std::time::{Duration, Instant};

pub use peak::HALF_LIFE;
pub use turn::Turn;

use super::EVERY_REQUEST;
use peak::Peak;

/// So many streamed answers teach nothing.
pub const ENOUGH: u32 = 8;

/// How many times longer than before prompts may be read while nothing streams. Less than the usual
/// [`Settings::gaps`], since a time per token is known better than a longest pause.
pub const READS: u64 = 10;

/// Sizes of prompts that are told apart: powers of two.
const SIZES: usize = 24;

/// When silence is a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many times longer than the longest pause between bytes. Zero: nothing is a stall.
    pub gaps: u32,
    /// Nothing shorter is a stall.
    pub floor: Duration,
}

/// The work of one endpoint as seen by its bytes.
#[derive(Debug)]
pub struct Progress {
    origin: Instant,
    gaps: AtomicU32,
    /// In nanoseconds, like all times here.
    floor: AtomicU64,
    /// When the silence began.
    last: AtomicU64,
    /// Requests whose next byte is awaited: those whose answer is streaming and those before it.
    owed: AtomicU32,
    streaming: AtomicU32,
    /// Requests whose answer is not streaming yet, by size: the prompt and [`EVERY_REQUEST`] are
    /// less than 2^(i + 1) tokens.
    reading: [AtomicU32; SIZES],
    /// Tokens of all prompts that have no first byte yet.
    prompts: AtomicU64,
    /// The longest pause between bytes while something was streaming.
    gap: Peak,
    /// The longest pause before a byte while nothing was streaming, per token.
    pace: Peak,
    /// Answers that came to stream, up to [`ENOUGH`].
    answers: AtomicU32,
}

impl Progress {
    /// Nothing in flight and nothing known.
    pub fn new(settings: Settings, now: Instant) -> Arc<Self> {
        let progress = Self {
            origin: now,
            gaps: AtomicU32::new(0),
            floor: AtomicU64::new(0),
            last: AtomicU64::new(0),
            owed: AtomicU32::new(0),
            streaming: AtomicU32::new(0),
            reading: array::from_fn(|_| AtomicU32::new(0)),
            prompts: AtomicU64::new(0),
            gap: Peak::default(),
            pace: Peak::default(),
            answers: AtomicU32::new(0),
        };
        progress.configure(settings);
        Arc::new(progress)
    }

    /// Other settings from now on, after a reload.
    pub fn configure(&self, settings: Settings) {
        self.gaps.store(settings.gaps, Relaxed);
        self.floor.store(nanos(settings.floor), Relaxed);
    }

    /// A request has been sent in full. `prompt`: its length in tokens, as far as it can be
    /// guessed. `streams`: it asked for a stream.
    pub fn begin(self: &Arc<Self>, prompt: u64, streams: bool, now: Instant) -> Turn {
        let at = self.nanos(now);
        self.gap.decay(at);
        self.pace.decay(at);
        Turn::new(Arc::clone(self), prompt, streams, now)
    }

    /// A piece of an answer has come that has no [`Turn`].
    pub fn bytes(&self, now: Instant) {
        let silence = self.speak(now);
        if self.gap.is_below(silence) && self.streaming.load(Relaxed) > 0 {
            self.learn(&self.gap, self.gaps.load(Relaxed).into(), silence, 1);
        }
    }

    /// Whether the endpoint has stopped working on everything it has.
    pub fn stalled(&self, now: Instant) -> bool {
        self.stalls_at().is_some_and(|at| now >= at)
    }

    /// When it will have, if nothing happens until then; in the past when it has. `None` when it
    /// owes nothing or too little is known. Changes with every byte and every request, mostly to a
    /// later time.
    pub fn stalls_at(&self) -> Option<Instant> {
        let limit = self.limit()?;
        let at = self.last.load(Relaxed).checked_add(limit)?;
        self.origin.checked_add(Duration::from_nanos(at))
    }

    /// How long its present silence may last; `None` as for [`stalls_at`](Self::stalls_at).
    pub fn patience(&self) -> Option<Duration> {
        self.limit().map(Duration::from_nanos)
    }

    /// Nothing is known any more: what serves at this address may be another process.
    pub fn forget(&self) {
        self.answers.store(0, Relaxed);
        self.gap.forget();
        self.pace.forget();
    }

    fn limit(&self) -> Option<u64> {
        // Whoever sees the request also sees when the silence began.
        if self.owed.load(Acquire) == 0 {
            return None;
        }
        let gaps = self.gaps.load(Relaxed);
        let known = if self.streaming.load(Relaxed) > 0 {
            self.gap.get()?.saturating_mul(gaps.into())
        } else {
            self.pace.get()?.saturating_mul(self.longest_prompt()).saturating_mul(READS)
        };
        (gaps > 0).then_some(known.max(self.floor.load(Relaxed)))
    }

    /// Of the prompts that are being read, at most twice the true length.
    fn longest_prompt(&self) -> u64 {
        let longest = self.reading.iter().rposition(|count| count.load(Relaxed) > 0);
        longest.map_or(1, |size| 2 << size)
    }

    /// The silence is over; how long it was.
    fn speak(&self, now: Instant) -> u64 {
        let now = self.nanos(now);
        let last = self.last.load(Relaxed);
        self.last.store(now, Relaxed);
        now.saturating_sub(last)
    }

    /// The first pieces of an answer. While nothing streamed the endpoint was reading at least
    /// some of the `prompts` that had no first byte when the request came.
    fn first_bytes(&self, prompts: u64, now: Instant) {
        if self.streaming.load(Relaxed) > 0 {
            return self.bytes(now);
        }
        let silence = self.speak(now);
        let tokens = prompts.saturating_add(EVERY_REQUEST);
        if self.pace.is_below(silence / tokens) {
            self.learn(&self.pace, READS, silence, tokens);
        }
    }

    /// Raises a peak to what this silence says about each token, but to no more than makes twice
    /// as much a stall as before. It is one when it is `times` longer than known.
    fn learn(&self, peak: &Peak, times: u64, silence: u64, tokens: u64) {
        if self.answers.load(Relaxed) < ENOUGH {
            return;
        }
        let stall = |known: u64| known.saturating_mul(tokens).saturating_mul(times);
        let before = peak.get().map(|known| stall(known).max(self.floor.load(Relaxed)));
        let most = before.map_or(u64::MAX, |before| before.saturating_mul(2) / times.max(1));
        peak.raise(silence.min(most) / tokens);
    }

    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.origin))
    }
}

/// Saturates after 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
