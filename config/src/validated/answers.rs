//! Stored answers: what is stored, and when it is served.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::{Redis, value_or_off};
use crate::units;

/// Where answers are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnswerStore {
    /// Bytes of all answers in memory.
    #[serde(serialize_with = "units::size")]
    pub memory: u64,
    /// Answers that are refreshed at the same time, 1 to 10000.
    pub refreshes: usize,
    /// Where answers outlive the proxy; `None` = nowhere.
    #[serde(serialize_with = "value_or_off")]
    pub redis: Option<Redis>,
    /// Requests whose answers are fetched at the start; `None` = none.
    #[serde(serialize_with = "value_or_off")]
    pub warm_up: Option<AnswerWarmUp>,
}

/// Requests whose answers are fetched when the proxy has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnswerWarmUp {
    /// One request in JSON on each line.
    pub file: PathBuf,
    /// Requests begun per second, 1 to 10000.
    pub rate: u32,
    /// Requests at the same time, 1 to 1000.
    pub at_once: usize,
}

/// What of a route's answers is stored, and when it is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answers {
    /// A fresh one is served before an endpoint is asked.
    pub prefer: bool,
    /// How long an answer is fresh, where the endpoint does not say.
    #[serde(serialize_with = "units::duration")]
    pub ttl: Duration,
    /// For so long after that it is served while a new one is fetched; `None` = not at all.
    #[serde(serialize_with = "units::duration_or_off")]
    pub stale_while_revalidate: Option<Duration>,
    /// What is served instead of an error, from `fallback.answers`; `None` = nothing.
    #[serde(skip)]
    pub fallback: Option<FallbackAnswers>,
    /// Only requests count that would get the same answer again.
    pub deterministic_only: bool,
    /// An arm's answers are served for requests of another arm too.
    pub across_arms: bool,
    /// Request headers, in lower case and sorted, whose values make a request another one.
    pub vary: Vec<String>,
    /// Bytes of a request body; the answer to a longer one is not stored.
    #[serde(serialize_with = "units::size")]
    pub max_request: u64,
    /// Bytes of an answer; a longer one is not stored.
    #[serde(serialize_with = "units::size")]
    pub max_answer: u64,
    /// How a stored stream of events is sent.
    pub replay: Replay,
    /// Requests that are the same, and under way at the same time, share one call.
    pub coalesce: bool,
}

/// How a stored stream of events is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Replay {
    /// All of it as fast as the client takes it.
    AtOnce,
    /// As it came.
    Paced,
}

/// What is served where there would be an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// Stored answers; `None` = none.
    #[serde(serialize_with = "value_or_off")]
    pub answers: Option<FallbackAnswers>,
}

/// When a stored answer is served where there would be an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FallbackAnswers {
    /// How long after its lifetime an answer is good enough for that.
    #[serde(serialize_with = "units::duration")]
    pub stale_for: Duration,
    /// Instead of which errors; at least one.
    pub when: FallbackOn,
}

/// An error in whose place a stored answer may be served. Nothing of a response was sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FallbackReason {
    /// A deadline passed, or the endpoint stopped working.
    Deadline,
    /// No endpoint is ready, or the breaker of the backend is open.
    NoEndpoint,
    /// No endpoint could be connected to.
    Connect,
    /// The endpoint broke the connection, or what it sent was not HTTP.
    Reset,
    /// The request was turned away because too many are here.
    Shed,
    /// 500, 502, 503 or 504 from the endpoint.
    ServerError,
}

/// A set of [`FallbackReason`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FallbackOn(u8);

impl FallbackReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Deadline,
        Self::NoEndpoint,
        Self::Connect,
        Self::Reset,
        Self::Shed,
        Self::ServerError,
    ];

    /// Its name in the configuration, in `x-outrigger-answer` and in metric labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::NoEndpoint => "no_endpoint",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Shed => "shed",
            Self::ServerError => "server_error",
        }
    }
}

impl FallbackOn {
    /// Whether `reason` is in the set.
    #[must_use]
    pub fn contains(self, reason: FallbackReason) -> bool {
        self.0 & (1 << reason as u8) != 0
    }
}

impl FromIterator<FallbackReason> for FallbackOn {
    fn from_iter<I: IntoIterator<Item = FallbackReason>>(reasons: I) -> Self {
        Self(reasons.into_iter().fold(0, |set, reason| set | 1 << reason as u8))
    }
}

impl Serialize for FallbackOn {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(FallbackReason::ALL.into_iter().filter(|reason| self.contains(*reason)))
    }
}
