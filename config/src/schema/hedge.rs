//! A second attempt at another endpoint while the first one has not begun to answer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{After, Percent, Whole};

/// Asks a second endpoint when the first one is slow to begin; the first of the two that begins is
/// passed on and the other one is given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hedge {
    /// How long after the request has been sent in full: a duration, 1ms to 1h, or a percentile of
    /// first bytes, p50 to p99.9, which is learned for each arm. Default: p95.
    pub after: After,
    /// How many hedges there may be for the requests, 0.1% to 100%. They also need room in the
    /// budget of `retry`. Default: 5%.
    pub budget: Percent<10, 10_000>,
    /// Hedges of one request, each at another endpoint, 1 to 4; `retry.attempts` counts them too.
    /// Default: 1.
    pub max: Whole<1, 4>,
}

impl Default for Hedge {
    fn default() -> Self {
        Self { after: After::percentile(95.0), budget: Percent(0.05), max: Whole(1) }
    }
}
