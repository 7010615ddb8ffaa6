//! When an endpoint, or a whole backend, is left alone for a while, though nobody has called it
//! unready.

use std::time::Duration;

use serde::Serialize;

use super::value_or_off;
use crate::units;

/// Passive health: an endpoint that keeps failing, or does worse than its peers, is left out for a
/// while.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ejection {
    /// Consecutive failures that eject, 1 to 1000.
    pub failures: u32,
    /// How long the first time; the n-th ejection in a row lasts n times as long.
    #[serde(serialize_with = "units::duration")]
    pub base: Duration,
    /// Never longer than this; at least `base`.
    #[serde(serialize_with = "units::duration")]
    pub max: Duration,
    /// An ejection lasts up to so much longer, drawn evenly; a share, 0.0 to 1.0.
    #[serde(serialize_with = "units::percent")]
    pub jitter: f64,
    /// How many of the endpoints may be out at once; a share, above 0.0 to 1.0. Whatever it says, one
    /// may be, and one stays.
    #[serde(serialize_with = "units::percent")]
    pub max_share: f64,
    /// Ejects one that fails more often than its peers; `None` = off.
    #[serde(serialize_with = "value_or_off")]
    pub success_rate: Option<SuccessRate>,
    /// Ejects one that is slower than its peers; `None` = off.
    #[serde(serialize_with = "value_or_off")]
    pub latency: Option<Latency>,
    /// Ejects one that has stopped working on everything it has; `None` = off.
    #[serde(serialize_with = "value_or_off")]
    pub stall: Option<Stall>,
}

/// When requests fail at once because the backend as a whole fails.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breaker {
    /// The share of the attempts in the window that must have failed, above 0.0 to 1.0.
    #[serde(serialize_with = "units::percent")]
    pub failures: f64,
    /// Attempts in the window that are needed to judge, 1 to 1000000.
    pub attempts: u32,
    /// What is looked back on.
    #[serde(serialize_with = "units::duration")]
    pub window: Duration,
    /// How long it stays open the first time; the n-th time in a row n times as long.
    #[serde(serialize_with = "units::duration")]
    pub base: Duration,
    /// Never longer than this; at least `base`.
    #[serde(serialize_with = "units::duration")]
    pub max: Duration,
    /// It stays open up to so much longer, drawn evenly; a share, 0.0 to 1.0.
    #[serde(serialize_with = "units::percent")]
    pub jitter: f64,
}

/// When an endpoint fails more often than its peers together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SuccessRate {
    /// What is looked back on.
    #[serde(serialize_with = "units::duration")]
    pub window: Duration,
    /// Requests in the window that are needed to judge, 1 to 1000000.
    pub requests: u32,
    /// By how much its share of successes must be below that of its peers; share points, above 0.0 to
    /// 1.0.
    #[serde(serialize_with = "units::percent")]
    pub margin: f64,
}

/// When an endpoint is slower than its peers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// How many times the median of its peers its own first byte per unit of work must take, 1.1 to
    /// 100.
    pub factor: f64,
    /// What is looked back on.
    #[serde(serialize_with = "units::duration")]
    pub window: Duration,
    /// Requests in the window that are needed to judge, 1 to 1000000.
    pub requests: u32,
}

/// When an endpoint has stopped working: no byte for any of its running requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stall {
    /// For so many gaps as are usual for it, 2 to 1000.
    pub gaps: u32,
    /// And for at least so long.
    #[serde(serialize_with = "units::duration")]
    pub floor: Duration,
}
