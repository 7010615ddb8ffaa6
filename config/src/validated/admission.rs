//! What is let in: how many at once, who waits, and how fast anybody may ask.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::units;

/// How many requests may be in flight at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// So many, 1 to 1000000.
    InFlight(usize),
    /// As many as the model server bears.
    Adaptive(AdaptiveLimit),
}

/// A limit that is learned from how soon answers begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdaptiveLimit {
    /// How.
    pub algorithm: LimitAlgorithm,
    /// Never fewer; at least 1.
    pub min: usize,
    /// Never more; at least `min`.
    pub max: usize,
    /// The limit to begin with; from `min` to `max`.
    pub initial: usize,
}

/// How a limit is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitAlgorithm {
    /// By how much later first bytes come than on an idle server.
    Gradient,
    /// By how many requests are thought to wait inside the server.
    Vegas,
}

/// Who waits for a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// How many may, at least 1.
    pub size: usize,
    /// How long each may.
    #[serde(serialize_with = "units::duration")]
    pub wait: Duration,
    /// How long each may when the queue has not been empty for as long as `wait`; at most `wait`.
    #[serde(serialize_with = "units::duration")]
    pub target: Duration,
}

/// Who goes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Priority {
    /// The request header (lower case) that names the class.
    pub header: String,
    /// The names, the most important first; 1 to 8, none twice, letter case does not matter.
    pub classes: Vec<String>,
    /// The place in `classes` of those that name none of them.
    #[serde(skip)]
    pub default: usize,
    /// Its name.
    #[serde(rename = "default")]
    pub default_name: String,
}

/// How fast requests may come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RateLimit {
    /// Who has an allowance of its own.
    pub per: RateKey,
    /// Requests; `None` = as many as there are. At least one of `requests` and `tokens` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Allowance>,
    /// Tokens, of prompts and answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Allowance>,
}

/// Who has an allowance of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateKey {
    /// The route, whoever asks.
    Route,
    /// Each tenant.
    Tenant,
    /// Each model.
    Model,
}

/// So many in a time, and how many of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Allowance {
    /// How fast.
    pub rate: PerTime,
    /// How many at once; at least 1.
    pub burst: u64,
}

/// So many in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerTime {
    /// 1 to 1000000000000.
    pub count: u64,
    /// A second, a minute, an hour or a day.
    pub period: Duration,
}

impl RateKey {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Route, Self::Tenant, Self::Model];

    /// The name in the configuration and in metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Tenant => "tenant",
            Self::Model => "model",
        }
    }
}

impl Priority {
    /// The place of the class that is named so; that of the others where it is none.
    #[must_use]
    pub fn class(&self, name: Option<&[u8]>) -> usize {
        let named = |name: &[u8]| {
            self.classes.iter().position(|c| c.as_bytes().eq_ignore_ascii_case(name.trim_ascii()))
        };
        name.and_then(named).unwrap_or(self.default)
    }
}

impl Serialize for PerTime {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&units::format_rate(self.count, self.period))
    }
}
