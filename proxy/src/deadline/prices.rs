//! What a first byte should take, from what is known before the request is sent.
//!
//! The expectation is a sum: so many seconds for each token of the own prompt, for each token of the prompts before it,
//! for each request beside it, and so on ([`Work`]), at prices that are learned. The error of a sample is the logarithm
//! of what it took over what was expected, and every price is moved by it in proportion to its share of the sum
//! (exponentiated gradient descent on the squared error):
//!
//! ```text
//! expected = Σ price × amount
//! ln price += rate × ln(taken / expected) × (price × amount / expected)
//! ```
//!
//! So prices stay above zero, units do not matter, a prompt of 100,000 tokens counts no more than one of ten, and more
//! work never makes a shorter expectation. The rate falls to a hundredth: prices are to find the *proportions*, slowly.
//! How fast the engine is today is the business of the distribution of `taken / expected`, which makes a deadline right
//! whatever the prices are; good prices make it tight.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What has to be done before a first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Tokens of the own prompt that are to be read.
    pub prompt: u64,
    /// Tokens of other prompts that are at the endpoint and not read yet.
    pub ahead: u64,
    /// Other requests at the endpoint.
    pub others: u32,
    /// Requests that wait inside the engine, as it says; 0 when it does not say.
    pub waiting: f64,
    /// What is to come.
    pub answer: Answer,
}

impl Work {
    /// The same at an endpoint that has nothing else to do.
    #[must_use]
    pub fn alone(self) -> Self {
        Self { ahead: 0, others: 0, waiting: 0.0, ..self }
    }
}

/// What a first byte is the first byte of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// A stream: the first byte comes with the first token.
    #[default]
    Streamed,
    /// An answer as a whole, which comes when its last token is there.
    Whole {
        /// The most tokens that it may have, where the request says.
        most: Option<u64>,
    },
}

/// How many things have a price.
const THINGS: usize = 7;

/// Seconds for each thing before anything is known: a middling engine's. The first samples set them right.
const FIRST: [f32; THINGS] = [0.02, 1e-4, 1e-4, 5e-4, 0.02, 0.5, 5e-3];

/// The weight of a sample once there were many.
const RATE: f32 = 0.01;

/// A longer answer than this is rare however much is allowed.
const MOST_TOKENS: u64 = 2_048;

/// The most that one sample says, as a logarithm: four times longer or shorter.
const LOUDEST: f32 = 1.4;

/// The amounts of a request, in the order of the prices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amounts([f32; THINGS]);

impl From<&Work> for Amounts {
    fn from(work: &Work) -> Self {
        let (whole, tokens) = match work.answer {
            Answer::Streamed => (0.0, 0.0),
            Answer::Whole { most: Some(most) } => (0.0, most.min(MOST_TOKENS) as f32),
            Answer::Whole { most: None } => (1.0, 0.0),
        };
        Self([
            1.0,
            work.prompt as f32,
            work.ahead as f32,
            work.others as f32,
            work.waiting.clamp(0.0, 1e6) as f32,
            whole,
            tokens,
        ])
    }
}

/// What each thing costs. Any thread may look and learn; two that learn at once may lose a sample.
#[derive(Debug)]
pub(super) struct Prices {
    seconds: [AtomicU32; THINGS],
    samples: AtomicU32,
}

impl Prices {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            seconds: FIRST.map(|price| AtomicU32::new(price.to_bits())),
            samples: AtomicU32::new(0),
        }
    }

    /// How long a first byte should take, in seconds; above zero.
    pub(super) fn expect(&self, amounts: &Amounts) -> f32 {
        self.shares(amounts).iter().sum()
    }

    /// Learns that a request with these amounts took so many seconds.
    pub(super) fn learn(&self, amounts: &Amounts, seconds: f32) {
        let shares = self.shares(amounts);
        let expected: f32 = shares.iter().sum();
        let error = (seconds.max(1e-6) / expected).ln().clamp(-LOUDEST, LOUDEST);
        let samples = self.samples.load(Relaxed).saturating_add(1);
        self.samples.store(samples, Relaxed);
        let rate = (1.0 / (samples as f32 + 1.0)).max(RATE);
        for ((price, share), amount) in self.seconds.iter().zip(shares).zip(amounts.0) {
            if amount > 0.0 {
                let moved = share / amount * (rate * error * share / expected).exp();
                price.store(moved.clamp(1e-9, 1e4).to_bits(), Relaxed);
            }
        }
    }

    fn shares(&self, amounts: &Amounts) -> [f32; THINGS] {
        std::array::from_fn(|i| f32::from_bits(self.seconds[i].load(Relaxed)) * amounts.0[i])
    }
}

impl Default for Prices {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    fn some_work(rng: &mut impl Rng) -> Work {
        let answer = match rng.random_range(0..3) {
            0 => Answer::Streamed,
            1 => Answer::Whole { most: None },
            _ => Answer::Whole { most: Some(rng.random_range(1..500)) },
        };
        Work {
            prompt: 2.0_f64.powf(rng.random_range(3.0..16.0)) as u64,
            ahead: if rng.random_bool(0.5) { 0 } else { rng.random_range(0..30_000) },
            others: rng.random_range(0..100),
            waiting: if rng.random_bool(0.7) { 0.0 } else { rng.random_range(0.0..50.0) },
            answer,
        }
    }

    /// An engine unlike the first guess in every respect.
    fn taken(work: &Work) -> f64 {
        let answer = match work.answer {
            Answer::Streamed => 0.0,
            Answer::Whole { most } => most.map_or(3.0, |most| most as f64 * 0.02),
        };
        0.008
            + work.prompt as f64 / 2_500.0
            + work.ahead as f64 / 3_500.0
            + f64::from(work.others) * 2e-3
            + work.waiting * 0.15
            + answer
    }

    #[test]
    fn prices_find_an_engine_unlike_the_first_guess() {
        for seed in 0..20 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let prices = Prices::new();
            let noise = |rng: &mut SmallRng| rng.random_range(-0.4_f64..0.4).exp();
            for _ in 0..4_000 {
                let work = some_work(&mut rng);
                let seconds = taken(&work) * noise(&mut rng);
                prices.learn(&Amounts::from(&work), seconds as f32);
            }
            let mut off = 0.0;
            for _ in 0..500 {
                let work = some_work(&mut rng);
                let expected = f64::from(prices.expect(&Amounts::from(&work)));
                off += (expected / taken(&work)).ln().abs() / 500.0;
            }
            assert!(off < 0.25, "seed {seed}: off by a factor of {:.2}", off.exp());
        }
    }

    #[test]
    fn more_work_is_never_expected_to_take_less() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let prices = Prices::new();
            for _ in 0..200 {
                let work = some_work(&mut rng);
                let seconds = 2.0_f32.powf(rng.random_range(-20.0..20.0));
                prices.learn(&Amounts::from(&work), seconds);
                let expected = prices.expect(&Amounts::from(&work));
                assert!(expected.is_finite() && expected > 0.0, "seed {seed}");
                let more = Work { ahead: work.ahead + 500, prompt: work.prompt * 2, ..work };
                assert!(prices.expect(&Amounts::from(&more)) > expected, "seed {seed}");
            }
        }
    }
}
