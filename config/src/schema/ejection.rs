//! When an endpoint, or a whole backend, is left alone for a while, though nobody has called it
//! unready.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Number, Percent, Span, Switch, Time, Timeout, Whole};

/// Leaves out an endpoint that keeps failing requests or does worse than its peers, for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ejection {
    /// Consecutive failures that eject, 1 to 1000. Default: 5.
    pub failures: Whole<1, 1000>,
    /// How long the first time, 1ms to 7d; the n-th ejection in a row lasts n times as long.
    /// Default: 10s.
    pub base: Timeout,
    /// Never longer than this, 1ms to 7d; at least `base`. Default: 5m.
    pub max: Timeout,
    /// An ejection lasts longer by a share drawn from 0 to this, 0% to 100%, so that not all end at
    /// once. Default: 20%.
    pub jitter: Percent<0, 10_000>,
    /// How many of the endpoints may be out at once, 1% to 100%; one always may be, and one always
    /// stays. Default: 50%.
    pub max_share: Percent<100, 10_000>,
    /// Ejects an endpoint that fails more often than its peers, or off. Default: on.
    pub success_rate: Switch<SuccessRate>,
    /// Ejects an endpoint whose first bytes, for the work they take, come later than those of its
    /// peers, or off. Default: off.
    pub latency: Switch<Latency>,
    /// Ejects an endpoint that has stopped working: no byte for any of its running requests; or off.
    /// Default: on.
    pub stall: Switch<Stall>,
}

/// Ejects an endpoint that fails more often than its peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SuccessRate {
    /// What is looked back on, 10ms to 1h. Default: 30s.
    pub window: Span,
    /// How many requests in the window are needed to judge, 1 to 1000000. Default: 20.
    pub requests: Whole<1, 1_000_000>,
    /// How far its success rate must be below that of its peers together, 0.1% to 100%, in points.
    /// Default: 20%.
    pub margin: Percent<10, 10_000>,
}

/// Ejects an endpoint that is slower than its peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Latency {
    /// How many times the median of its peers is too slow, 1.1 to 100. Default: 4.
    pub factor: Number<110, 10_000>,
    /// What is looked back on, 10ms to 1h. Default: 30s.
    pub window: Span,
    /// How many requests in the window are needed to judge, 1 to 1000000. Default: 20.
    pub requests: Whole<1, 1_000_000>,
}

/// Ejects an endpoint that has stopped working: no byte for any of its running requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Stall {
    /// For how many of its usual gaps between two pieces, 2 to 1000. Default: 20.
    pub gaps: Whole<2, 1000>,
    /// And for at least how long, 10ms to 1h. Default: 5s.
    pub floor: Span,
}

/// Lets requests fail at once while the backend as a whole fails, but for one now and then that tries
/// whether it is back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// What share of the attempts in the window must have failed, 1% to 100%. Default: 50%.
    pub failures: Percent<100, 10_000>,
    /// How many attempts in the window are needed to judge, 1 to 1000000. Default: 20.
    pub attempts: Whole<1, 1_000_000>,
    /// What is looked back on, 10ms to 1h. Default: 10s.
    pub window: Span,
    /// How long it stays open the first time, 1ms to 7d; the n-th time in a row n times as long.
    /// Default: 5s.
    pub base: Timeout,
    /// Never longer than this, 1ms to 7d; at least `base`. Default: 1m.
    pub max: Timeout,
    /// It stays open longer by a share drawn from 0 to this, 0% to 100%, so that not all proxies try
    /// at once. Default: 20%.
    pub jitter: Percent<0, 10_000>,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: Whole(5),
            base: Time::seconds(10),
            max: Time::seconds(300),
            jitter: Percent(0.2),
            max_share: Percent(0.5),
            success_rate: Switch::On(SuccessRate::default()),
            latency: Switch::Off,
            stall: Switch::On(Stall::default()),
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: Percent(0.5),
            attempts: Whole(20),
            window: Time::seconds(10),
            base: Time::seconds(5),
            max: Time::seconds(60),
            jitter: Percent(0.2),
        }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { window: Time::seconds(30), requests: Whole(20), margin: Percent(0.2) }
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self { factor: Number(4.0), window: Time::seconds(30), requests: Whole(20) }
    }
}

impl Default for Stall {
    fn default() -> Self {
        Self { gaps: Whole(20), floor: Time::seconds(5) }
    }
}
