//! One group of like samples, and the bound that follows from them.
//!
//! - **quantile**: the time within which nearly all were served ([`Histogram`]), times a margin. The default: it
//!   promises a share of false alarms whatever the shape of the distribution.
//! - **mean and deviations** of the last so many samples. Simple, and known from elsewhere; where the tail is long it
//!   cuts more than one would think. What was cut off counts as twice as long.
//! - **rto**: how TCP waits for an acknowledgement (RFC 6298): a smoothed time and four times its smoothed deviation,
//!   doubled with every time-out until something is served again. Adapts within ten samples and forgets as fast.
//!
//! The histogram is kept whatever the strategy: others ask for quantiles too. Samples are taken under a lock that
//! nobody else wants but for a moment; the bound is read without one.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use outrigger_config::validated::Strategy;
use parking_lot::Mutex;

use super::histogram::{Histogram, Quantile};

/// Fewer samples say nothing about what is rare.
pub(super) const ENOUGH: f64 = 30.0;

/// The bound is worked out anew after so many samples, or so long; a surprise does not wait.
const EVERY: u32 = 16;
const AT_LEAST_EVERY: Duration = Duration::from_millis(100);

/// What is waited for in vain with a strategy that has no margin is taken to be so many times longer.
const IN_VAIN: f32 = 2.0;

/// RFC 6298: the weights of a new sample and of its deviation, and how many deviations are waited for.
const ALPHA: f32 = 1.0 / 8.0;
const BETA: f32 = 1.0 / 4.0;
const K: f32 = 4.0;
/// The most that time-outs widen the bound of [`Rto`], as everywhere here (`Patience`).
const MOST_BACKED_OFF: f32 = 8.0;

/// Like samples, of which one can be told from here to another.
#[derive(Debug)]
pub(super) struct Cell {
    strategy: Strategy,
    state: Mutex<State>,
    /// The bound; not a number while there is none.
    bound: AtomicU32,
}

#[derive(Debug)]
struct State {
    histogram: Histogram,
    other: Other,
    /// Samples since the bound was worked out, and when that was.
    since: u32,
    worked_out: Option<Instant>,
}

#[derive(Debug)]
enum Other {
    /// The histogram is all that is needed.
    None,
    Recent(Recent),
    Rto(Rto),
}

/// What a cell knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Known {
    /// How many samples it stands for.
    pub samples: f64,
    /// The share of what was cut off.
    pub cut_share: f64,
    /// Half, 95 and 99 of a hundred took no longer.
    pub p50: f32,
    /// See `p50`.
    pub p95: f32,
    /// See `p50`.
    pub p99: f32,
    /// What follows from it.
    pub bound: Option<f32>,
}

impl Cell {
    /// No sample yet.
    pub(super) fn new(strategy: Strategy) -> Self {
        let other = match strategy {
            Strategy::Quantile { .. } => Other::None,
            Strategy::MeanStddev { samples, .. } => Other::Recent(Recent::new(samples)),
            Strategy::Rto => Other::Rto(Rto::default()),
        };
        let state = State { histogram: Histogram::new(), other, since: 0, worked_out: None };
        Self { strategy, state: Mutex::new(state), bound: AtomicU32::new(f32::NAN.to_bits()) }
    }

    /// Something was served after so long.
    pub(super) fn served(&self, size: f32, now: Instant) {
        let state = &mut *self.state.lock();
        state.histogram.ended(size, now);
        match &mut state.other {
            Other::None => {}
            Other::Recent(recent) => recent.add(size),
            Other::Rto(rto) => rto.add(size),
        }
        let surprise = self.bound().is_none_or(|bound| size > bound);
        self.look(state, surprise, now);
    }

    /// Something was waited for in vain for so long.
    pub(super) fn cut_off(&self, size: f32, now: Instant) {
        let state = &mut *self.state.lock();
        state.histogram.cut_off(size, now);
        match &mut state.other {
            Other::None => {}
            Other::Recent(recent) => recent.add(size * IN_VAIN),
            Other::Rto(rto) => rto.back_off(),
        }
        self.look(state, true, now);
    }

    /// What follows; `None` while there are too few samples.
    pub(super) fn bound(&self) -> Option<f32> {
        Some(f32::from_bits(self.bound.load(Relaxed))).filter(|bound| !bound.is_nan())
    }

    /// The size below which a share `q` of the samples is; `None` while there are too few. Where so many were cut off
    /// that it can not be known, the longest time that was waited for in vain.
    pub(super) fn quantile(&self, q: f64) -> Option<f32> {
        let state = self.state.lock();
        if state.histogram.samples() < ENOUGH {
            return None;
        }
        state.histogram.quantile(q).map(at_least)
    }

    /// All that it knows; `None` without samples.
    pub(super) fn known(&self) -> Option<Known> {
        let bound = self.bound();
        let histogram = &self.state.lock().histogram;
        let at = |q| histogram.quantile(q).map(at_least);
        Some(Known {
            samples: histogram.samples(),
            cut_share: histogram.cut_share(),
            p50: at(0.5)?,
            p95: at(0.95)?,
            p99: at(0.99)?,
            bound,
        })
    }

    fn look(&self, state: &mut State, surprise: bool, now: Instant) {
        state.since += 1;
        let due = |at: Instant| now.saturating_duration_since(at) >= AT_LEAST_EVERY;
        if surprise || state.since >= EVERY || state.worked_out.is_none_or(due) {
            (state.since, state.worked_out) = (0, Some(now));
            let bound = self.work_out(state).unwrap_or(f32::NAN);
            self.bound.store(bound.to_bits(), Relaxed);
        }
    }

    fn work_out(&self, state: &State) -> Option<f32> {
        if state.histogram.samples() < ENOUGH {
            return None;
        }
        match (self.strategy, &state.other) {
            (Strategy::Quantile { quantile, margin }, _) => {
                let margin = margin as f32;
                Some(match state.histogram.quantile(quantile)? {
                    Quantile::At(size) => size * margin,
                    Quantile::Beyond(size) => size * margin.max(IN_VAIN),
                })
            }
            (Strategy::MeanStddev { deviations, .. }, Other::Recent(recent)) => {
                Some(recent.bound(deviations as f32))
            }
            (_, Other::Rto(rto)) => Some(rto.bound()),
            (_, Other::None | Other::Recent(_)) => None,
        }
    }
}

fn at_least(quantile: Quantile) -> f32 {
    match quantile {
        Quantile::At(size) | Quantile::Beyond(size) => size,
    }
}

/// The last so many samples.
#[derive(Debug)]
struct Recent {
    sizes: Vec<f32>,
    most: usize,
    next: usize,
}

impl Recent {
    fn new(most: usize) -> Self {
        Self { sizes: Vec::with_capacity(most), most, next: 0 }
    }

    fn add(&mut self, size: f32) {
        match self.sizes.get_mut(self.next) {
            Some(oldest) => *oldest = size,
            None => self.sizes.push(size),
        }
        self.next = (self.next + 1) % self.most;
    }

    fn bound(&self, deviations: f32) -> f32 {
        let count = self.sizes.len().max(1) as f32;
        let mean = self.sizes.iter().sum::<f32>() / count;
        let squares: f32 = self.sizes.iter().map(|size| (size - mean).powi(2)).sum();
        mean + deviations * (squares / count).sqrt()
    }
}

/// RFC 6298, 2 and 5.
#[derive(Debug)]
struct Rto {
    smoothed: Option<f32>,
    deviation: f32,
    backed_off: f32,
}

impl Default for Rto {
    fn default() -> Self {
        Self { smoothed: None, deviation: 0.0, backed_off: 1.0 }
    }
}

impl Rto {
    fn add(&mut self, size: f32) {
        match &mut self.smoothed {
            None => (self.smoothed, self.deviation) = (Some(size), size / 2.0),
            Some(smoothed) => {
                self.deviation += BETA * ((size - *smoothed).abs() - self.deviation);
                *smoothed += ALPHA * (size - *smoothed);
            }
        }
        self.backed_off = 1.0;
    }

    fn back_off(&mut self) {
        self.backed_off = (self.backed_off * 2.0).min(MOST_BACKED_OFF);
    }

    fn bound(&self) -> f32 {
        (self.smoothed.unwrap_or(0.0) + K * self.deviation) * self.backed_off
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const QUANTILE: Strategy = Strategy::Quantile { quantile: 0.99, margin: 1.5 };
    const MEAN: Strategy = Strategy::MeanStddev { samples: 50, deviations: 3.0 };

    fn fed(strategy: Strategy, sizes: impl IntoIterator<Item = f32>) -> (Cell, Instant) {
        let (cell, mut now) = (Cell::new(strategy), Instant::now());
        for size in sizes {
            now += Duration::from_millis(50);
            cell.served(size, now);
        }
        (cell, now)
    }

    #[test]
    fn few_samples_say_nothing() {
        for strategy in [QUANTILE, MEAN, Strategy::Rto] {
            let few = fed(strategy, std::iter::repeat_n(1.0, 29)).0;
            assert_eq!((few.bound(), few.quantile(0.5)), (None, None), "{strategy:?}");
            let enough = fed(strategy, std::iter::repeat_n(1.0, 40)).0;
            let bound = enough.bound().unwrap();
            assert!((0.99..1.6).contains(&bound), "{strategy:?}: {bound}");
        }
    }

    #[test]
    fn the_mean_and_its_deviations_are_those_of_the_last_samples() {
        let (cell, _) = fed(MEAN, (0..200).map(|i| if i < 150 { 9.0 } else { (i % 2) as f32 }));
        // Of 0 and 1 in turn: 0.5, and 0.5 from it.
        assert!((cell.bound().unwrap() - 2.0).abs() < 1e-3, "{:?}", cell.bound());
    }

    #[test]
    fn rto_is_that_of_the_rfc() {
        let mut rto = Rto::default();
        rto.add(1.0);
        assert_eq!(rto.bound(), 1.0 + 4.0 * 0.5);
        rto.add(2.0);
        // The deviation is taken from the time before it is smoothed.
        assert_eq!(rto.bound(), 1.125 + 4.0 * (0.5 + 0.25 * (1.0 - 0.5)));
        let before = rto.bound();
        rto.back_off();
        assert_eq!(rto.bound(), 2.0 * before);
        (0..9).for_each(|_| rto.back_off());
        assert_eq!(rto.bound(), 8.0 * before);
        rto.add(1.125);
        assert!(rto.bound() < before);
    }

    #[test]
    fn a_sample_beyond_the_bound_moves_it_at_once() {
        let (cell, now) = fed(QUANTILE, std::iter::repeat_n(1.0, 200));
        let before = cell.bound().unwrap();
        (0..3).for_each(|_| cell.served(4.0, now));
        assert!(cell.bound().unwrap() > 2.0 * before);
    }

    #[test]
    fn what_was_cut_off_widens_and_never_narrows() {
        for strategy in [QUANTILE, MEAN, Strategy::Rto] {
            for seed in 0..300 {
                let mut rng = SmallRng::seed_from_u64(seed);
                let sizes: Vec<f32> = (0..100).map(|_| rng.random_range(0.5..2.0)).collect();
                let (cell, now) = fed(strategy, sizes);
                for _ in 0..60 {
                    let before = cell.bound().unwrap();
                    cell.cut_off(before, now);
                    let after = cell.bound().unwrap();
                    assert!(after >= before * 0.999, "{strategy:?}, seed {seed}: {before} {after}");
                }
                assert!(cell.bound().unwrap() > 4.0, "{strategy:?}, seed {seed}");
            }
        }
    }
}
