//! The bets: evidence that one payoff is above zero on average, valid whenever one looks.
//!
//! A gambler starts with a capital of 1 and bets on payoffs `g`. When the payoff is not above zero
//! in expectation, whatever was seen before, then `1 + stake × g` is not above 1 in expectation,
//! and no way of choosing stakes beforehand makes the capital grow: it is a non-negative
//! supermartingale, and the chance that it *ever* reaches `1 / a` is at most `a` (Ville's
//! inequality, *Étude critique de la notion de collectif*, 1939). The capital is the evidence. The
//! form of the bet is that of Waudby-Smith and Ramdas, *Estimating means of bounded random
//! variables by betting*, J. R. Stat. Soc. B 86 (2024), arXiv 2010.09686; with the difference of
//! two samples as the payoff it is a two-sample test (Shekhar and Ramdas, *Nonparametric
//! two-sample testing by betting*, arXiv 2112.09162).
//!
//! Nobody knows the best stake, nor since when an arm is bad, so the capital is spread:
//!
//! - over the [`STAKES`], each an account of its own; for several payoffs (the quantiles of a
//!   latency), over those as well;
//! - over the time. Half is at work from the beginning; the rest is a reserve, of which a little is
//!   put to work with each round, after `n` rounds in proportion to `1 / (n ln² n)`, and a quarter
//!   with each step of the weights, when trouble is likeliest. Capital that was bet on a long good
//!   time is lost; what is put to work later finds a change that comes later. This is a mixture of
//!   tests begun at different times, as in Shin, Ramdas and Rinaldo, *E-detectors* (NEJSDS 2024,
//!   arXiv 2203.03532), but with weights that sum to one, so that the false alarms of a whole life
//!   are bounded and not only their frequency.
//!
//! **One incident is one piece of evidence.** When an engine dies, all its requests fail in one
//! instant, and that is bad luck once and not fifty times. So the capital may grow at most
//! [`GROWTH`]-fold in a [`SLICE`]; what is above is thrown away, which a gambler may do.

use std::time::{Duration, Instant};

/// The stakes of the accounts, for a round of [size](Capital::settle) 1. The best stake is the mean
/// of the payoff over its variance, and one that is off by half costs a tenth of the speed. Excess
/// below half of the smallest stake (times the variance) is never found.
const STAKES: [f64; 6] = [2.0, 0.8, 0.32, 0.13, 0.05, 0.02];

/// How much of the largest possible loss a stake may risk: an account is never lost to one round.
const CAUTION: f64 = 0.95;

/// The part of the capital that is at work from the beginning.
const AT_ONCE: f64 = 0.6;

/// The part of the reserve that is put to work when the circumstances change.
const AT_CHANGE: f64 = 0.25;

/// Delays the trickle from the reserve: in the first rounds the capital at work is fresh anyway.
const DELAY: f64 = 1000.0;

/// A time in which the capital may grow [`GROWTH`]-fold at most.
const SLICE: Duration = Duration::from_millis(250);

/// See [`SLICE`]. More than one round ever yields, so that it binds only where rounds are many.
const GROWTH: f64 = 2.5;

/// The capital of one measure.
#[derive(Debug)]
pub(super) struct Capital {
    /// One for each payoff and stake, those of a payoff together.
    accounts: Box<[f64]>,
    /// Not yet at work.
    reserve: f64,
    /// All of the above.
    total: f64,
    /// How many rounds have been settled.
    rounds: f64,
    /// The highest stake for which no round can cost more than the account.
    highest: f64,
    /// Since when the present slice lasts, and what the capital was then.
    slice: (Instant, f64),
}

impl Capital {
    /// A capital of 1, to be bet on so many `payoffs`, none of which is ever below `-worst`.
    pub(super) fn new(payoffs: usize, worst: f64, now: Instant) -> Self {
        let accounts = payoffs * STAKES.len();
        Self {
            accounts: vec![AT_ONCE / accounts as f64; accounts].into(),
            reserve: 1.0 - AT_ONCE,
            total: 1.0,
            rounds: 0.0,
            highest: CAUTION / worst,
            slice: (now, 1.0),
        }
    }

    /// The evidence: 1 when there is none, `1 / a` with a chance of at most `a` when all is well.
    pub(super) fn total(&self) -> f64 {
        self.total
    }

    /// Settles a round: pays out, and bets anew.
    ///
    /// `size` is how exact the payoffs are: the inverse of their variance, in units of the variance
    /// of one sample. The best stake is proportional to it. It must be known before the payoffs.
    pub(super) fn settle(&mut self, payoffs: &[f64], size: f64, now: Instant) {
        self.open_slice(now);
        self.trickle();
        for (accounts, payoff) in self.accounts.chunks_exact_mut(STAKES.len()).zip(payoffs) {
            for (account, stake) in accounts.iter_mut().zip(STAKES) {
                *account *= 1.0 + (stake * size).min(self.highest) * payoff;
            }
        }
        self.close_slice();
    }

    /// Puts more of the reserve to work, because something has changed.
    pub(super) fn refresh(&mut self) {
        self.spend(AT_CHANGE);
    }

    /// Which payoff earned most.
    pub(super) fn leader(&self) -> usize {
        let sums = self.accounts.chunks_exact(STAKES.len()).map(|of| of.iter().sum::<f64>());
        let most = sums.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        most.map_or(0, |(payoff, _)| payoff)
    }

    fn trickle(&mut self) {
        let n = self.rounds + DELAY;
        self.rounds += 1.0;
        self.spend(1.0 / (n * n.ln()));
    }

    /// Moves a share of the reserve into the accounts.
    fn spend(&mut self, share: f64) {
        let amount = self.reserve * share;
        self.reserve -= amount;
        let each = amount / self.accounts.len() as f64;
        self.accounts.iter_mut().for_each(|account| *account += each);
    }

    fn open_slice(&mut self, now: Instant) {
        if now.saturating_duration_since(self.slice.0) >= SLICE {
            self.slice = (now, self.total);
        }
    }

    fn close_slice(&mut self) {
        let limit = self.slice.1 * GROWTH;
        let at_work: f64 = self.accounts.iter().sum();
        self.total = self.reserve + at_work;
        if self.total > limit {
            // The limit is above the reserve, which was part of a total below it.
            let keep = (limit - self.reserve) / at_work;
            self.accounts.iter_mut().for_each(|account| *account *= keep);
            self.total = limit;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// A capital after some rounds of luck of all kinds.
    fn played(rng: &mut SmallRng, now: Instant) -> Capital {
        let mut capital = Capital::new(2, 1.1, now);
        for second in 0..rng.random_range(0..300) {
            let payoffs = [0.0; 2].map(|_| rng.random_range(-1.1..1.0));
            capital.settle(&payoffs, rng.random_range(0.0..3.0), now + 4 * SLICE * second);
            if rng.random_bool(0.01) {
                capital.refresh();
            }
        }
        capital
    }

    fn copy(capital: &Capital) -> Capital {
        Capital { accounts: capital.accounts.clone(), ..*capital }
    }

    /// What makes the false alarms bounded: nothing can be won in expectation on fair payoffs.
    #[test]
    fn a_fair_payoff_keeps_the_capital_as_it_is_on_average() {
        let start = Instant::now();
        for seed in 0..500 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let capital = played(&mut rng, start);
            let (up, down) = (rng.random_range(0.01..0.9), rng.random_range(0.01..1.1));
            let size = rng.random_range(0.0..5.0);
            let after = |payoff| {
                let mut capital = copy(&capital);
                capital.settle(&[payoff; 2], size, start + 5_000 * SLICE);
                capital.total()
            };
            // Up so often that the mean is zero.
            let chance = down / (up + down);
            let mean = chance * after(up) + (1.0 - chance) * after(-down);
            let error = mean / capital.total() - 1.0;
            assert!(error.abs() < 1e-12, "seed {seed}: {error}");
        }
    }

    #[test]
    fn no_luck_grows_the_capital_above_the_limit_of_a_slice_or_below_nothing() {
        let start = Instant::now();
        for seed in 0..100 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut capital = played(&mut rng, start);
            let now = start + 5_000 * SLICE;
            let before = capital.total();
            for _ in 0..50 {
                capital.settle(&[0.9, rng.random_range(-1.1..0.9)], 2.0, now);
            }
            let growth = capital.total() / before;
            assert!((growth - GROWTH).abs() < 1e-9, "seed {seed}: {growth}");
            for _ in 0..500 {
                capital.settle(&[-1.1; 2], 5.0, now + SLICE);
            }
            assert!(capital.total() > 0.0 && capital.total() < before, "seed {seed}");
        }
    }

    #[test]
    fn the_payoff_that_earns_leads() {
        let start = Instant::now();
        let mut capital = Capital::new(3, 1.0, start);
        for second in 0..20 {
            capital.settle(&[0.0, -0.1, 0.3], 1.0, start + 4 * SLICE * second);
        }
        assert_eq!(2, capital.leader());
    }

    #[test]
    fn the_reserve_lasts() {
        let start = Instant::now();
        let mut capital = Capital::new(1, 1.0, start);
        for _ in 0..1_000_000 {
            capital.settle(&[-0.01], 1.0, start);
        }
        // ln 1000 / ln 1,000,000 of it, about.
        assert!((0.15..0.25).contains(&capital.reserve), "{}", capital.reserve);
        assert!(capital.accounts.iter().all(|account| *account > 1e-12), "{capital:?}");
    }
}
