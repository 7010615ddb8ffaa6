//! A route's rules about rates, and what a request was charged by them.
//!
//! A request has to keep all of them. What it will cost in tokens is guessed when it comes: its prompt by its length, its
//! answer by the mean of the answers lately. When it has ended, it is settled by what the model server said.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use outrigger_config::validated::{RateKey, RateLimit};
use parking_lot::Mutex;

use super::rate::{Charged, Excess, Ledger, Refused, Standing, Standings};
use crate::{
    clock,
    telemetry::metrics::{RateDecision, RateMetrics},
    tenant::Tenant,
};

/// What the latest answer counts for in the mean.
const LATEST: f64 = 0.1;

/// One rule.
pub struct Rule {
    /// What the user wrote.
    pub settings: RateLimit,
    ledger: Mutex<Ledger>,
    /// Tokens of an answer, on average; the bits of an `f64`.
    answer: AtomicU64,
    metrics: Arc<RateMetrics>,
}

/// Whose request it is.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The tenant.
    pub tenant: &'a Tenant,
    /// The model; empty where none is named.
    pub model: &'a str,
}

/// A request that the rules do not allow.
#[derive(Clone, Copy, Debug)]
pub struct Exceeded {
    /// Whose allowance it is.
    pub per: RateKey,
    /// What there is too much of, and for how long.
    pub excess: Excess,
    /// How the allowances stand.
    pub standing: Standings,
}

/// What a request was charged by each rule.
pub struct Bill {
    items: Vec<Item>,
    prompt: u64,
    standing: Standings,
}

struct Item {
    rule: Arc<Rule>,
    key: Box<[u8]>,
    charged: Charged,
}

impl Rule {
    /// Nobody owes anything.
    pub fn new(settings: RateLimit, metrics: Arc<RateMetrics>) -> Self {
        let ledger = Ledger::new(settings.requests, settings.tokens, clock::now());
        let answer = AtomicU64::new(0_f64.to_bits());
        Rule { settings, ledger: Mutex::new(ledger), answer, metrics }
    }

    /// How many keys owe something, or did lately.
    pub fn keys(&self) -> usize {
        self.ledger.lock().keys()
    }

    /// Tokens of an answer, on average.
    pub fn answer(&self) -> f64 {
        f64::from_bits(self.answer.load(Relaxed))
    }

    fn key<'a>(&self, whose: Whose<'a>) -> &'a [u8] {
        match self.settings.per {
            RateKey::Route => b"",
            RateKey::Tenant => whose.tenant.as_bytes(),
            RateKey::Model => whose.model.as_bytes(),
        }
    }

    fn charge(
        &self,
        key: &[u8],
        prompt: u64,
        now: Instant,
    ) -> Result<Charged, (Excess, Standings)> {
        let guess = prompt.saturating_add(self.answer() as u64);
        let charged = self.ledger.lock().charge(key, guess, prompt, now);
        self.metrics.decided(match &charged {
            Ok(_) => RateDecision::Allowed,
            Err((Excess::Requests(_), _)) => RateDecision::Requests,
            Err((Excess::Tokens(_), _)) => RateDecision::Tokens,
        });
        charged
    }

    fn learn_answer(&self, tokens: u64) {
        let mean = self.answer();
        // Two that learn at once: one of them is lost, and nothing else.
        self.answer.store((mean + LATEST * (tokens as f64 - mean)).to_bits(), Relaxed);
    }
}

/// Charges a request whose prompt has about so many tokens by all rules, or by none.
///
/// # Errors
/// The first rule that does not allow it.
pub fn charge(
    rules: &[Arc<Rule>],
    whose: Whose<'_>,
    prompt: u64,
    now: Instant,
) -> Result<Bill, Exceeded> {
    let mut bill =
        Bill { items: Vec::with_capacity(rules.len()), prompt, standing: Standings::default() };
    for rule in rules {
        let key = rule.key(whose);
        match rule.charge(key, prompt, now) {
            Ok(charged) => {
                bill.standing = tightest(bill.standing, charged.standing);
                bill.items.push(Item { rule: Arc::clone(rule), key: key.into(), charged });
            }
            Err((excess, standing)) => {
                let standing = tightest(bill.standing, standing);
                bill.undo(now);
                return Err(Exceeded { per: rule.settings.per, excess, standing });
            }
        }
    }
    Ok(bill)
}

impl Bill {
    /// How the allowances stand.
    pub fn standing(&self) -> Standings {
        self.standing
    }

    /// The request was answered with so many tokens, as far as that was told; or `None`: no model has worked on it.
    pub fn settle(self, answered: Option<(Option<u64>, Option<u64>)>, now: Instant) {
        for item in &self.items {
            let Some(charge) = item.charged.tokens else { continue };
            let actual = match answered {
                Some((prompt, answer)) => {
                    let answer = answer.unwrap_or(0);
                    item.rule.learn_answer(answer);
                    prompt.unwrap_or(self.prompt).saturating_add(answer)
                }
                None => 0,
            };
            item.rule.ledger.lock().settle(&item.key, charge, actual, now);
        }
    }

    fn undo(self, now: Instant) {
        for item in &self.items {
            item.rule.ledger.lock().undo(&item.key, &item.charged, now);
        }
    }
}

impl Exceeded {
    /// How long it is not allowed.
    pub fn refused(&self) -> Refused {
        match self.excess {
            Excess::Requests(refused) | Excess::Tokens(refused) => refused,
        }
    }
}

/// Of each kind the one of which the least is left.
fn tightest(one: Standings, other: Standings) -> Standings {
    let less = |one: Option<Standing>, other: Option<Standing>| match (one, other) {
        (Some(a), Some(b)) => {
            let left = |s: &Standing| u128::from(s.remaining);
            let b_is_less = left(&b) * u128::from(a.limit) < left(&a) * u128::from(b.limit);
            Some(if b_is_less { b } else { a })
        }
        (one, other) => one.or(other),
    };
    Standings {
        requests: less(one.requests, other.requests),
        tokens: less(one.tokens, other.tokens),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_config::validated::{Allowance, PerTime};

    use super::*;
    use crate::{telemetry::metrics::Metrics, wire::Fields};

    fn tenant(name: &str) -> Tenant {
        let mut fields = Fields::default();
        fields.append("authorization", name);
        Tenant::of(&fields, &["authorization".to_owned()])
    }

    fn of(tenant: &Tenant) -> Whose<'_> {
        Whose { tenant, model: "llama" }
    }

    fn rule(per: RateKey, requests: Option<u64>, tokens: Option<u64>) -> Arc<Rule> {
        let allowance = |count| Allowance {
            rate: PerTime { count, period: Duration::from_secs(60) },
            burst: count,
        };
        let (requests, tokens) = (requests.map(allowance), tokens.map(allowance));
        let metrics = Metrics::new("x").rates("chat", per);
        Arc::new(Rule::new(RateLimit { per, requests, tokens }, metrics))
    }

    #[test]
    fn what_one_rule_refuses_costs_nothing_by_another() {
        let rules = [rule(RateKey::Route, Some(100), None), rule(RateKey::Tenant, Some(1), None)];
        let (now, bob, eve) = (Instant::now(), tenant("bob"), tenant("eve"));
        charge(&rules, of(&bob), 0, now).map(drop).expect("the first");
        let exceeded = charge(&rules, of(&bob), 0, now).map(drop).expect_err("the second of bob");
        assert_eq!(exceeded.per, RateKey::Tenant);
        let bill = charge(&rules, of(&eve), 0, now).expect("eve has her own");
        let standing = bill.standing().requests.expect("requests are limited");
        assert_eq!((standing.limit, standing.remaining), (1, 0), "the tightest is told");
        let route = rules[0].ledger.lock().charge(b"", 0, 0, now).expect("within").standing;
        assert_eq!(route.requests.map(|s| s.remaining), Some(97), "two, and this one");
    }

    #[test]
    fn tokens_are_settled_by_what_was_told() {
        let rules = [rule(RateKey::Model, None, Some(1_000))];
        let (now, bob) = (Instant::now(), tenant("bob"));
        let left = |rules: &[Arc<Rule>]| {
            let bill = charge(rules, of(&bob), 0, now).expect("within");
            let left = bill.standing().tokens.expect("tokens are limited").remaining;
            bill.settle(None, now);
            left
        };
        charge(&rules, of(&bob), 300, now)
            .expect("within")
            .settle(Some((Some(200), Some(100))), now);
        assert_eq!(left(&rules) + rules[0].answer() as u64, 700);
        charge(&rules, of(&bob), 300, now).expect("within").settle(None, now);
        assert_eq!(left(&rules) + rules[0].answer() as u64, 700, "nobody worked on it");
        charge(&rules, of(&bob), 300, now).expect("within").settle(Some((None, None)), now);
        assert_eq!(left(&rules) + rules[0].answer() as u64, 400, "its prompt was guessed");
    }
}
