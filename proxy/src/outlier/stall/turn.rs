//! A request at an endpoint, as far as its bytes matter.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicU32,
    Ordering::{Relaxed, Release},
};
use std::time::Instant;

use super::{ENOUGH, EVERY_REQUEST, Progress, SIZES};

/// A request that an endpoint has in full, until its last byte or its abort. Dropping it takes it
/// out of the account.
#[derive(Debug)]
pub struct Turn {
    progress: Arc<Progress>,
    prompt: u64,
    /// See [`Turn::prompts`].
    prompts: u64,
    /// It asked for a stream.
    streams: bool,
    stage: Stage,
    /// Its next byte is awaited.
    counted: bool,
}

/// How far the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing yet.
    Silent,
    /// One piece, which some engines send before they read the prompt.
    Begun,
    /// More than one piece: tokens come.
    Streaming,
}

impl Turn {
    pub(super) fn new(progress: Arc<Progress>, prompt: u64, streams: bool, now: Instant) -> Self {
        let prompts = progress.prompts.fetch_add(prompt, Relaxed).saturating_add(prompt);
        let stage = Stage::Silent;
        let mut turn = Self { progress, prompt, prompts, streams, stage, counted: false };
        turn.count(now);
        turn
    }

    /// Tokens of all prompts that had no first byte yet when this request was sent, its own among
    /// them: what the endpoint had to read before its first byte.
    pub const fn prompts(&self) -> u64 {
        self.prompts
    }

    /// A piece of the answer has come.
    pub fn bytes(&mut self, now: Instant) {
        match self.stage {
            Stage::Streaming => return self.progress.bytes(now),
            Stage::Silent if self.counted => self.progress.first_bytes(self.prompts, now),
            // Others may be read between the first piece and the next.
            Stage::Begun if self.counted => {
                let prompts = self.prompts.max(self.progress.prompts.load(Relaxed));
                self.progress.first_bytes(prompts, now);
            }
            Stage::Silent | Stage::Begun => self.progress.bytes(now),
        }
        self.advance();
    }

    /// The client does not take what is there, so that nothing is read from the endpoint: its
    /// silence is not the endpoint's.
    pub fn hold(&mut self) {
        if self.counted {
            self.counted = false;
            self.counter().fetch_sub(1, Relaxed);
            self.progress.owed.fetch_sub(1, Relaxed);
        }
    }

    /// The endpoint is read from again.
    pub fn resume(&mut self, now: Instant) {
        self.count(now);
    }

    fn count(&mut self, now: Instant) {
        if self.counted || !self.streams {
            return;
        }
        self.counted = true;
        self.counter().fetch_add(1, Relaxed);
        let progress = &self.progress;
        // What owes nothing is not silent. Nobody may see the request before that is told.
        if progress.owed.load(Relaxed) == 0 {
            progress.speak(now);
        }
        progress.owed.fetch_add(1, Release);
    }

    fn advance(&mut self) {
        if self.counted {
            self.counter().fetch_sub(1, Relaxed);
        }
        self.stage = match self.stage {
            Stage::Silent => {
                self.progress.prompts.fetch_sub(self.prompt, Relaxed);
                Stage::Begun
            }
            Stage::Begun | Stage::Streaming => {
                if self.streams && self.progress.answers.load(Relaxed) < ENOUGH {
                    self.progress.answers.fetch_add(1, Relaxed);
                }
                Stage::Streaming
            }
        };
        if self.counted {
            self.counter().fetch_add(1, Relaxed);
        }
    }

    /// Where it is counted.
    fn counter(&self) -> &AtomicU32 {
        match self.stage {
            Stage::Silent | Stage::Begun => &self.progress.reading[size(self.prompt)],
            Stage::Streaming => &self.progress.streaming,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.hold();
        if self.stage == Stage::Silent {
            self.progress.prompts.fetch_sub(self.prompt, Relaxed);
        }
    }
}

fn size(prompt: u64) -> usize {
    (prompt.saturating_add(EVERY_REQUEST).ilog2() as usize).min(SIZES - 1)
}
