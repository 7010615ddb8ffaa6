//! The requests of a world, drawn one after the other.

use std::time::Duration;

use outrigger_tests::sim::engine::Job;
use outrigger_tests::sim::random::Random;

use crate::worlds::{Prompts, World};

/// Bytes of text in a token.
const BYTES_PER_TOKEN: u64 = 4;
/// Users, where requests are not told apart by their prompt.
const USERS: u64 = 10_000;

/// One request.
#[derive(Debug)]
pub(crate) struct Request {
    /// When it comes.
    pub(crate) at: Duration,
    /// Tokens of its prompt.
    pub(crate) prompt: u64,
    /// Tokens of its answer.
    pub(crate) answer: u64,
    /// The prompt, as bytes.
    pub(crate) text: Vec<u8>,
    /// What a consistent hash or a session goes by: the shared head where there is one, else the user.
    pub(crate) key: u64,
    /// Names of the prompt's blocks that others may share.
    blocks: Vec<u64>,
}

impl Request {
    /// What the engine is asked to do.
    pub(crate) fn job(self) -> Job {
        Job { prompt: self.prompt, answer: self.answer, blocks: self.blocks }
    }
}

/// An endless stream of requests.
pub(crate) struct Traffic {
    random: Random,
    rate: f64,
    prompts: Prompts,
    answer: f64,
    kv_block: u64,
    now: Duration,
    number: u64,
    /// Chance of each head or a more popular one.
    heads: Vec<f64>,
}

impl Traffic {
    /// The requests of a world; the same for the same seed.
    pub(crate) fn new(world: &World, seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            rate: world.rate,
            prompts: world.prompts,
            answer: world.answer,
            kv_block: world.engine.kv_block,
            now: Duration::ZERO,
            number: 0,
            heads: match world.prompts {
                Prompts::Shared { heads, zipf, .. } => cumulative(heads, zipf),
                Prompts::Short { .. } | Prompts::Bimodal { .. } => Vec::new(),
            },
        }
    }

    /// The next one.
    pub(crate) fn draw(&mut self) -> Request {
        self.number += 1;
        let pause = self.exponential(1.0 / self.rate);
        self.now += Duration::from_secs_f64(pause);
        let answer = self.geometric(self.answer);
        match self.prompts {
            Prompts::Short { median } => {
                let prompt = self.long_tailed(median);
                self.unique(prompt, answer)
            }
            Prompts::Bimodal { median, share, long } => {
                let short = self.long_tailed(median);
                let length = long.0 + self.random.below(long.1 - long.0);
                let is_long = self.random.unit() < share;
                self.unique(if is_long { length } else { short }, answer)
            }
            Prompts::Shared { tokens, median, .. } => {
                let tail = self.long_tailed(median);
                self.headed(tokens, tail, answer)
            }
        }
    }

    fn unique(&mut self, prompt: u64, answer: u64) -> Request {
        let mut text = Vec::new();
        fill(&mut text, self.number, prompt);
        let key = hash(self.random.below(USERS));
        Request { at: self.now, prompt, answer, text, key, blocks: Vec::new() }
    }

    fn headed(&mut self, tokens: u64, tail: u64, answer: u64) -> Request {
        let chance = self.random.unit();
        let head = self.heads.partition_point(|below| *below <= chance) as u64;
        let mut text = Vec::new();
        fill(&mut text, head | 1 << 63, tokens);
        fill(&mut text, self.number, tail);
        let name = |block| head << 32 | block;
        let blocks = (0..tokens / self.kv_block).map(name).collect();
        Request { at: self.now, prompt: tokens + tail, answer, text, key: hash(head), blocks }
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.random.unit()).ln()
    }

    /// As if each token could be the last.
    fn geometric(&mut self, mean: f64) -> u64 {
        let unit = 1.0 - self.random.unit();
        (unit.ln() / (1.0 - 1.0 / mean).ln()).ceil().max(1.0) as u64
    }

    /// `median` times exp(0.8 N(0, 1)), the normal number by Box and Muller: one in a hundred is six times as long.
    fn long_tailed(&mut self, median: f64) -> u64 {
        let radius = (-2.0 * (1.0 - self.random.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.random.unit()).cos();
        (median * (0.8 * normal).exp()).ceil() as u64
    }
}

/// The chances of `heads` heads, where the k-th is k^-zipf times as popular as the first, added up.
fn cumulative(heads: u64, zipf: f64) -> Vec<f64> {
    let popularity = |k: u64| (k as f64).powf(-zipf);
    let all: f64 = (1..=heads).map(popularity).sum();
    let mut sum = 0.0;
    let mut next = |k| {
        sum += popularity(k) / all;
        sum
    };
    (1..heads).map(&mut next).collect()
}

/// Spreads small numbers over all 64 bits.
const fn hash(number: u64) -> u64 {
    Random::new(number).bits()
}

/// Text of so many tokens that begins as no other does, and is told apart by that.
fn fill(text: &mut Vec<u8>, name: u64, tokens: u64) {
    let end = text.len() + (tokens * BYTES_PER_TOKEN) as usize;
    text.extend_from_slice(&hash(name).to_le_bytes());
    text.resize(end, b' ');
}
