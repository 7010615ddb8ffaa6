//! How fast anybody may ask, in requests and in tokens.
//!
//! The generic cell rate algorithm (GCRA), which is a bucket of `burst` places that are given back one after the other
//! at the rate: for each key one number is kept, the time at which its bucket will be full again. A cost of `n` moves it
//! by `n · period / count`, and is allowed if it then lies no further ahead than `burst · period / count`. So that no
//! rate is rounded, times are counted in nanoseconds divided by `count`, in 128 bits: over any span of time `t`, no more
//! than `burst + t · count / period` are let through, exactly.
//!
//! **Tokens** are only known at the end. A request is charged an estimate when it comes, and the rest when it has ended.
//! What it was charged too much it gets back, but only as far as that is still owed: what has been given back by time
//! already can not be given back twice. So nobody ever gets more than if the number had been known from the start.
//!
//! **Keys** are forgotten when their bucket is full: then a key is like one that was never seen, and forgetting it
//! changes nothing. When `MOST_KEYS` owe something at once, further ones share one allowance.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use outrigger_config::validated::Allowance;

/// Keys that are told apart.
const MOST_KEYS: usize = 65_536;
/// With fewer, nobody looks for those that can be forgotten.
const FEW_KEYS: usize = 1_024;

/// One allowance. Its times are in nanoseconds divided by `count`.
#[derive(Clone, Copy, Debug)]
pub struct Gcra {
    count: u128,
    period: u128,
    burst: u64,
}

/// When the bucket of a key will be full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Full {
    at: u128,
    /// All that was given back because it had been charged too much: what was charged before is owed for so much less.
    given_back: u128,
}

/// What was charged.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    cost: u64,
    /// Up to when the key owes because of this, if nothing is given back.
    owes_until: u128,
    given_back: u128,
}

/// How a bucket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How much it holds.
    pub limit: u64,
    /// How much is left.
    pub remaining: u64,
    /// When it will be full.
    pub full_in: Duration,
}

/// Why something is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It will be after so long.
    For(Duration),
    /// It never will: it is more than the bucket holds.
    Forever,
}

impl Gcra {
    /// By this allowance.
    pub fn new(allowance: &Allowance) -> Self {
        let rate = allowance.rate;
        let (count, period) = (u128::from(rate.count), rate.period.as_nanos());
        Gcra { count, period, burst: allowance.burst }
    }

    /// Whether `cost` can ever be allowed.
    pub fn holds(&self, cost: u64) -> bool {
        cost <= self.burst
    }

    /// Charges `cost`, or says how long it will not be allowed.
    ///
    /// # Errors
    /// When it is not allowed; nothing is charged then.
    pub fn charge(&self, full: &mut Full, cost: u64, now: Duration) -> Result<Charge, Refused> {
        if !self.holds(cost) {
            return Err(Refused::Forever);
        }
        let now = self.scaled(now);
        let owes_until = full.at.max(now) + u128::from(cost) * self.period;
        let most = now + u128::from(self.burst) * self.period;
        if owes_until > most {
            return Err(Refused::For(self.plain(owes_until - most)));
        }
        full.at = owes_until;
        Ok(Charge { cost, owes_until, given_back: full.given_back })
    }

    /// It has turned out to be `actual`.
    pub fn settle(&self, full: &mut Full, charge: Charge, actual: u64, now: Duration) {
        if actual >= charge.cost {
            full.at += u128::from(actual - charge.cost) * self.period;
        } else {
            let too_much = u128::from(charge.cost - actual) * self.period;
            let since = full.given_back - charge.given_back;
            let owed = charge.owes_until.saturating_sub(self.scaled(now) + since);
            let back = too_much.min(owed);
            full.at = full.at.saturating_sub(back);
            full.given_back += back;
        }
    }

    /// How the bucket stands.
    pub fn standing(&self, full: Full, now: Duration) -> Standing {
        let owed = full.at.saturating_sub(self.scaled(now));
        let taken = u64::try_from(owed.div_ceil(self.period)).unwrap_or(u64::MAX);
        Standing {
            limit: self.burst,
            remaining: self.burst.saturating_sub(taken),
            full_in: self.plain(owed),
        }
    }

    fn is_full(&self, full: Full, now: Duration) -> bool {
        full.at <= self.scaled(now)
    }

    fn scaled(&self, time: Duration) -> u128 {
        time.as_nanos() * self.count
    }

    /// In full nanoseconds, upwards: what is told must be true.
    fn plain(&self, scaled: u128) -> Duration {
        let nanos = scaled.div_ceil(self.count);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What each key owes.
#[derive(Debug)]
pub struct Ledger {
    requests: Option<Gcra>,
    tokens: Option<Gcra>,
    start: Instant,
    keys: HashMap<Box<[u8]>, Owed>,
    /// Those for whom there was no room share this.
    others: Owed,
    /// New keys since somebody looked for those that can be forgotten, and how many of them until the next time.
    new: usize,
    sweep_after: usize,
}

/// When the buckets of one key will be full.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    requests: Full,
    tokens: Full,
}

/// What was charged to a key.
#[derive(Clone, Copy, Debug)]
pub struct Charged {
    requests: Option<Charge>,
    /// Of tokens; to be settled.
    pub tokens: Option<Charge>,
    /// How the key stands after it.
    pub standing: Standings,
}

/// How the buckets of a key stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// Of requests.
    pub requests: Option<Standing>,
    /// Of tokens.
    pub tokens: Option<Standing>,
}

/// What a request is too much in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// There are too many requests.
    Requests(Refused),
    /// They have too many tokens.
    Tokens(Refused),
}

impl Ledger {
    /// Nobody owes anything.
    pub fn new(requests: Option<Allowance>, tokens: Option<Allowance>, now: Instant) -> Self {
        Ledger {
            requests: requests.as_ref().map(Gcra::new),
            tokens: tokens.as_ref().map(Gcra::new),
            start: now,
            keys: HashMap::new(),
            others: Owed::default(),
            new: 0,
            sweep_after: FEW_KEYS,
        }
    }

    /// How many keys owe something, or did lately.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Charges a request to a key: one request, and so many tokens of which `prompt` are certain.
    ///
    /// # Errors
    /// What is too much, and how the key stands. Nothing is charged then.
    pub fn charge(
        &mut self,
        key: &[u8],
        tokens: u64,
        prompt: u64,
        now: Instant,
    ) -> Result<Charged, (Excess, Standings)> {
        let now = now.saturating_duration_since(self.start);
        let (requests, bucket) = (self.requests, self.tokens);
        // What is not certain must not make it more than the bucket ever holds.
        let tokens = bucket.map_or(0, |bucket| tokens.min(bucket.burst).max(prompt));
        let owed = self.owed(key, now);
        let before = *owed;
        let excess = 'refused: {
            let charged = requests.map(|gcra| gcra.charge(&mut owed.requests, 1, now)).transpose();
            let requests = match charged {
                Ok(charge) => charge,
                Err(refused) => break 'refused Excess::Requests(refused),
            };
            match bucket.map(|gcra| gcra.charge(&mut owed.tokens, tokens, now)).transpose() {
                Ok(tokens) => {
                    let standing = self.standings(key, now);
                    return Ok(Charged { requests, tokens, standing });
                }
                Err(refused) => Excess::Tokens(refused),
            }
        };
        *owed = before;
        Err((excess, self.standings(key, now)))
    }

    /// The request had so many tokens.
    pub fn settle(&mut self, key: &[u8], charge: Charge, actual: u64, now: Instant) {
        let now = now.saturating_duration_since(self.start);
        if let Some(gcra) = self.tokens {
            gcra.settle(&mut self.owed(key, now).tokens, charge, actual, now);
        }
    }

    /// The request was not let in after all: gives everything back.
    pub fn undo(&mut self, key: &[u8], charged: &Charged, now: Instant) {
        let now = now.saturating_duration_since(self.start);
        let (requests, tokens) = (self.requests, self.tokens);
        let owed = self.owed(key, now);
        if let (Some(gcra), Some(charge)) = (requests, charged.requests) {
            gcra.settle(&mut owed.requests, charge, 0, now);
        }
        if let (Some(gcra), Some(charge)) = (tokens, charged.tokens) {
            gcra.settle(&mut owed.tokens, charge, 0, now);
        }
    }

    fn standings(&self, key: &[u8], now: Duration) -> Standings {
        let owed = self.keys.get(key).unwrap_or(&self.others);
        Standings {
            requests: self.requests.map(|gcra| gcra.standing(owed.requests, now)),
            tokens: self.tokens.map(|gcra| gcra.standing(owed.tokens, now)),
        }
    }

    fn owed(&mut self, key: &[u8], now: Duration) -> &mut Owed {
        if !self.keys.contains_key(key) {
            self.new += 1;
            if self.new >= self.sweep_after {
                self.sweep(now);
            }
            if self.keys.len() >= MOST_KEYS {
                return &mut self.others;
            }
            self.keys.insert(key.into(), Owed::default());
        }
        // It has just been put there, if it was not.
        self.keys.get_mut(key).unwrap_or(&mut self.others)
    }

    /// Forgets the keys that owe nothing. Not again before as many new ones have come as remain, or a sixteenth of the most.
    fn sweep(&mut self, now: Duration) {
        let (requests, tokens) = (self.requests, self.tokens);
        let owes = |gcra: Option<Gcra>, full| gcra.is_some_and(|gcra| !gcra.is_full(full, now));
        self.keys.retain(|_, owed| owes(requests, owed.requests) || owes(tokens, owed.tokens));
        (self.new, self.sweep_after) = (0, self.keys.len().clamp(FEW_KEYS, MOST_KEYS / 16));
    }
}

#[cfg(test)]
mod tests;
