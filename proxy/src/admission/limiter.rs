//! How many requests a model server should have at once, learned from how soon its answers begin.
//!
//! Why not from how long answers take: that is decided by their length, which says nothing about the server. Why per
//! token of the prompt, and only compared with prompts of like length: the first byte of a long prompt is late on an
//! idle server too. An answer that comes as a whole has no first byte to go by; it is compared per token of the answer,
//! with answers of like length.
//!
//! A sample becomes a *ratio*: how many times longer it took than the same work takes on a server with little to do.
//! What that is, the baseline, is learned from requests that were let in while at most half as many were in flight as
//! the server has been seen to bear. So there is no time in which requests are turned away to measure it. When the
//! server itself becomes slower, the limit sinks first; then the requests in flight are few, the baseline follows, and
//! the limit rises again: it can not stick to its minimum. Nor to where it is, if that is slow without end: after
//! `WEARY` slow rounds without one that was not, the baseline rises by a twentieth with each further one. (At a limit
//! that is right, queues come and go.)
//!
//! After a *round* of `ROUND` samples or half the limit, whichever is more, the limit moves. With `r`, the mean ratio
//! of the round:
//!
//! - *gradient*: `g = clamp((1.5 / r)², 0.5, 1)`, `new = limit · g + √limit`, `limit += 0.3 · (new − limit)`. Before
//!   anything was ever slow, the limit grows by a quarter instead.
//! - *vegas*: `q = limit · (1 − 1.2 / r)` requests are thought to wait inside the server. Fewer than `3 · log₁₀ limit`
//!   (+1): one step up; more than `6 · log₁₀ limit` (+1) or an overload: one step down, of `log₁₀ limit` (at least 1).
//!
//! It only grows while it is in use: nine tenths of it must have been in flight. A deadline that passed before the first
//! byte, and a server that said that it is overloaded, count as a ratio of `WORST`.

use std::time::Duration;

use outrigger_config::validated::{AdaptiveLimit, LimitAlgorithm};

/// Fewest samples that move the limit: below that, one slow answer would.
const ROUND: u32 = 10;
/// The most one sample counts for: how slow exactly says nothing more.
const WORST: f64 = 10.0;
/// What is not thought slow yet: first bytes vary by so much on a server that has nothing to do.
const TOLERATED: f64 = 1.5;
/// What of it is noise in the eyes of Vegas, which would take a tenth of a large limit for a queue.
const NOISE: f64 = 1.2;
/// How much a quiet sample moves the baseline, once there have been a few.
const LEARNED: f64 = 0.1;
/// What the largest limit that went well keeps with each round in which it is not reached.
const FORGETS: f64 = 0.99;
/// A round below this was faster than its baseline, by more than chance.
const BETTER: f64 = 0.85;
/// So many slow rounds in a row are no queue.
const WEARY: u32 = 20;
/// What every prompt costs beside its tokens, in tokens: the step of the batch that it joins.
const OVERHEAD: u64 = 64;
/// Lengths that are compared with each other: by powers of two, from nothing to 128,000 tokens.
const LENGTHS: usize = 12;

/// Adapts one limit.
#[derive(Debug)]
pub struct Limiter {
    settings: AdaptiveLimit,
    limit: f64,
    /// The largest limit that went well, slowly forgotten.
    borne: f64,
    /// Nothing has ever been slow.
    rising: bool,
    baselines: [[Baseline; LENGTHS]; 2],
    last_ratio: f64,
    /// How many rounds in a row were slow.
    slow_rounds: u32,
    round: Round,
}

/// What was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Up to the first byte of a stream.
    FirstByte,
    /// A whole answer.
    Whole,
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// What was timed.
    pub span: Span,
    /// What it is measured by: tokens of the prompt, or of the answer where that came as a whole.
    pub tokens: u64,
    /// How long it took.
    pub took: Duration,
    /// How many were in flight when it was let in, itself included.
    pub in_flight: usize,
}

/// What requests of like length take on a server with little to do, in seconds for each token.
#[derive(Clone, Copy, Debug, Default)]
struct Baseline {
    level: f64,
    samples: u32,
}

impl Baseline {
    /// At first the mean, then a moving one.
    fn learn(&mut self, value: f64) {
        self.samples = self.samples.saturating_add(1);
        let weight = LEARNED.max(1.0 / f64::from(self.samples));
        self.level += weight * (value - self.level);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Round {
    samples: u32,
    ratios: f64,
    peak: usize,
    overloaded: bool,
}

impl Limiter {
    /// Starts with the initial limit.
    pub fn new(settings: AdaptiveLimit) -> Self {
        Limiter {
            limit: settings.initial as f64,
            // The initial limit is meant to be no burden.
            borne: 2.0 * settings.initial as f64,
            rising: true,
            baselines: [[Baseline::default(); LENGTHS]; 2],
            last_ratio: 1.0,
            slow_rounds: 0,
            round: Round::default(),
            settings,
        }
    }

    /// What it adapts by.
    pub fn settings(&self) -> &AdaptiveLimit {
        &self.settings
    }

    /// The limit now.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// How many times longer than on an idle server the answers of the last round took.
    pub fn ratio(&self) -> f64 {
        self.last_ratio
    }

    /// Other bounds from now on; what was learned stays.
    pub fn configure(&mut self, settings: AdaptiveLimit) {
        self.limit = self.limit.clamp(settings.min as f64, settings.max as f64);
        self.settings = settings;
    }

    /// Learns from an answer; the new limit at the end of a round.
    pub fn observe(&mut self, sample: &Sample) -> Option<usize> {
        let ratio = self.ratio_of(sample);
        self.count(ratio, sample.in_flight)
    }

    /// Learns that a request had no answer in time, or that the server said it was overloaded.
    pub fn overloaded(&mut self, in_flight: usize) -> Option<usize> {
        self.round.overloaded = true;
        self.count(WORST, in_flight)
    }

    fn ratio_of(&mut self, sample: &Sample) -> f64 {
        let value = sample.took.as_secs_f64() / (sample.tokens + OVERHEAD) as f64;
        let quiet = sample.in_flight as f64 <= self.borne / 2.0;
        let last = self.last_ratio.max(1.0);
        let baseline = &mut self.baselines[sample.span as usize][length(sample.tokens)];
        if baseline.samples == 0 {
            // The first of its length may be as slow as the others are just now.
            baseline.learn(if quiet { value } else { value / last });
        } else if quiet {
            baseline.learn(value);
        }
        if baseline.level > 0.0 { (value / baseline.level).min(WORST) } else { 1.0 }
    }

    fn count(&mut self, ratio: f64, in_flight: usize) -> Option<usize> {
        let round = &mut self.round;
        round.samples += 1;
        round.ratios += ratio;
        round.peak = round.peak.max(in_flight);
        let wanted = ROUND.max((self.limit / 2.0) as u32);
        (round.samples >= wanted).then(|| self.end_round())
    }

    fn end_round(&mut self) -> usize {
        let round = std::mem::take(&mut self.round);
        let ratio = round.ratios / f64::from(round.samples);
        self.last_ratio = ratio;
        self.slow_rounds = if ratio > TOLERATED { self.slow_rounds + 1 } else { 0 };
        self.correct_baselines(ratio);
        let (peak, before) = (round.peak as f64, self.limit);
        // With few in flight it was not the limit that made it slow, and a lower one would change nothing.
        if peak >= self.limit / 2.0 {
            let new = match self.settings.algorithm {
                LimitAlgorithm::Gradient => self.gradient(ratio),
                LimitAlgorithm::Vegas => self.vegas(ratio, round.overloaded),
            };
            let used = peak >= 0.9 * self.limit.floor();
            self.limit = if used { new } else { new.min(self.limit) };
        }
        self.limit = self.limit.clamp(self.settings.min as f64, self.settings.max as f64);
        let bore = if self.limit >= before { self.limit } else { 0.0 };
        self.borne = (self.borne * FORGETS).max(bore);
        self.limit()
    }

    /// A round that was faster than the baseline shows that the baseline is too slow; rounds that are slow without end,
    /// that it is too fast.
    fn correct_baselines(&mut self, ratio: f64) {
        let by = if ratio < BETTER {
            1.0 - 0.5 * (1.0 - ratio)
        } else if self.slow_rounds > WEARY {
            1.05
        } else {
            return;
        };
        self.baselines.iter_mut().flatten().for_each(|baseline| baseline.level *= by);
    }

    fn gradient(&mut self, ratio: f64) -> f64 {
        self.rising &= ratio <= TOLERATED;
        if self.rising {
            return self.limit * 1.25 + 1.0;
        }
        let gradient = (TOLERATED / ratio).powi(2).clamp(0.5, 1.0);
        let new = self.limit * gradient + self.limit.sqrt();
        self.limit + 0.3 * (new - self.limit)
    }

    fn vegas(&self, ratio: f64, overloaded: bool) -> f64 {
        let step = self.limit.log10().max(1.0);
        let waiting = self.limit * (1.0 - NOISE / ratio.max(NOISE));
        if overloaded || waiting > 6.0 * step + 1.0 {
            self.limit - step
        } else if waiting < 3.0 * step + 1.0 {
            self.limit + step
        } else {
            self.limit
        }
    }
}

/// Which lengths it is compared with.
fn length(tokens: u64) -> usize {
    let doublings = ((tokens + OVERHEAD) / OVERHEAD).ilog2() as usize;
    doublings.min(LENGTHS - 1)
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn settings(algorithm: LimitAlgorithm) -> AdaptiveLimit {
        AdaptiveLimit { algorithm, min: 2, max: 1_000, initial: 16 }
    }

    fn sample(tokens: u64, millis: u64, in_flight: usize) -> Sample {
        let took = Duration::from_millis(millis);
        Sample { span: Span::FirstByte, tokens, took, in_flight }
    }

    fn both() -> [Limiter; 2] {
        [LimitAlgorithm::Gradient, LimitAlgorithm::Vegas].map(|a| Limiter::new(settings(a)))
    }

    #[test]
    fn it_does_not_grow_while_it_is_not_used() {
        for mut limiter in both() {
            for _ in 0..10_000 {
                limiter.observe(&sample(100, 20, 3));
            }
            assert_eq!(limiter.limit(), 16);
        }
    }

    #[test]
    fn long_prompts_are_not_slow_answers() {
        for mut limiter in both() {
            for n in 0..1_000_u64 {
                let tokens = [10, 100, 1_000, 30_000][n as usize % 4];
                let in_flight = if n < 40 { 5 } else { limiter.limit() };
                limiter.observe(&sample(tokens, 8 + tokens / 8, in_flight));
            }
            assert!(limiter.limit() > 50, "{limiter:?}");
        }
    }

    #[test]
    fn a_passed_deadline_is_a_reason_to_have_fewer() {
        for mut limiter in both() {
            let changed = (0..10).find_map(|_| limiter.overloaded(16));
            assert!(changed.is_some_and(|limit| limit < 16), "{limiter:?}");
        }
    }

    #[test]
    fn other_bounds_hold_at_once() {
        for mut limiter in both() {
            limiter.configure(AdaptiveLimit { max: 8, ..limiter.settings.clone() });
            assert_eq!(limiter.limit(), 8);
        }
    }

    #[test]
    fn lengths_are_powers_of_two_of_the_overhead() {
        let lengths = [0, 63, 64, 191, 192, 128_000, u64::MAX - OVERHEAD].map(length);
        assert_eq!(lengths, [0, 0, 1, 1, 2, 10, 11]);
    }
}
