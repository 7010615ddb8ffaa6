//! What is let in: how many at once, who waits, and how fast anybody may ask.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Abbreviated, LimitWord, Rate, Time, Timeout, Whole};
use crate::validated::{LimitAlgorithm, RateKey};

/// How many requests may be in flight at once: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// So many, 1 to 1000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<Whole<1, 1_000_000>>,
    /// As many as the model servers bear, learned from how soon their answers begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveLimit>,
}

/// A limit that is learned from how soon answers begin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveLimit {
    /// How it is learned. Default: gradient.
    pub algorithm: LimitAlgorithm,
    /// Never fewer, 1 to 1000000. Default: 4.
    pub min: Whole<1, 1_000_000>,
    /// Never more, 1 to 1000000; at least `min`. Default: 1000.
    pub max: Whole<1, 1_000_000>,
    /// To begin with, 1 to 1000000; from `min` to `max`. Default: 16.
    pub initial: Whole<1, 1_000_000>,
}

/// Lets requests wait for a place instead of turning them away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// How many may wait, 1 to 1000000; further ones are refused with 503. Default: 256.
    pub size: Whole<1, 1_000_000>,
    /// How long each may wait, 1ms to 7d; then it is refused with 503. Default: 10s.
    pub wait: Timeout,
    /// How long each may wait when the queue has not been empty for as long as `wait`, 1ms to 7d; at
    /// most `wait`. Default: 500ms.
    pub target: Timeout,
}

/// Who goes first when requests wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["classes"]))]
pub struct Priority {
    /// The request header that names the class. Default: x-priority.
    pub header: String,
    /// The names, the most important first: 1 to 8, of letters, digits, `-`, `_` and `.`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub classes: Vec<String>,
    /// The class of requests that name none. Default: the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
}

/// How fast requests may come; what is faster is refused with 429. At least one of `requests` and
/// `tokens`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// Who has an allowance of its own. Default: route.
    pub per: RateKey,
    /// How many requests, such as 100/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Rate>,
    /// How many of them at once, 1 to 1000000000. Default: as many as `requests` has before the slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<Whole<1, 1_000_000_000>>,
    /// How many tokens of prompts and answers, such as 1000000/min.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Rate>,
    /// How many of them at once, 1 to 1000000000. Default: as many as `tokens` has before the slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_burst: Option<Whole<1, 1_000_000_000>>,
}

impl Default for AdaptiveLimit {
    fn default() -> Self {
        Self {
            algorithm: LimitAlgorithm::Gradient,
            min: Whole(4),
            max: Whole(1_000),
            initial: Whole(16),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { size: Whole(256), wait: Time::seconds(10), target: Time::millis(500) }
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self { header: "x-priority".to_owned(), classes: Vec::new(), default: None }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        let (requests, burst, tokens, token_burst) = (None, None, None, None);
        Self { per: RateKey::Route, requests, burst, tokens, token_burst }
    }
}

impl Abbreviated for Limit {
    type Short = LimitWord;
    const FORMS: &'static str = "a number, adaptive, a mapping";
    const NUMBERS: bool = true;

    fn from_short(word: LimitWord) -> Self {
        match word {
            LimitWord::InFlight(most) => Self { in_flight: Some(most), adaptive: None },
            LimitWord::Adaptive => {
                Self { in_flight: None, adaptive: Some(AdaptiveLimit::default()) }
            }
        }
    }

    fn short(&self) -> LimitWord {
        self.in_flight.map_or(LimitWord::Adaptive, LimitWord::InFlight)
    }
}
