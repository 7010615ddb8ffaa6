//! Stored answers: what is stored, and when it is served.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::redis::Redis;
use super::values::{Pause, Size, Switch, Time, Timeout, Whole};
use super::{GIB, KIB, MIB};
use crate::validated::{FallbackReason, Replay};

/// Where answers are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AnswerStore {
    /// Size of all answers in memory, 1MiB to 1TiB; what is asked for least often goes first. Default:
    /// 64MiB.
    pub memory: Size<MIB, { 1024 * GIB }>,
    /// Answers that are refreshed at the same time, 1 to 10000. Default: 16.
    pub refreshes: Whole<1, 10_000>,
    /// The Redis in which answers outlive this proxy and are shared with others. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// Requests whose answers are fetched when the proxy has started. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<AnswerWarmUp>,
}

/// Requests whose answers are fetched when the proxy has started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AnswerWarmUp {
    /// A file with one request in JSON on each line: `path`, `body`, and if need be `method` and
    /// `headers`. It goes through the routes as if a client had sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Requests begun per second, 1 to 10000. Default: 5.
    pub rate: Whole<1, 10_000>,
    /// Requests at the same time, 1 to 1000. Default: 2.
    pub at_once: Whole<1, 1000>,
}

/// What of a route's answers is stored, and when it is served first. Whatever comes from store says
/// so: age, cache-status, x-outrigger-answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Answers {
    /// Whether a fresh stored answer is served before an endpoint is asked. Default: false.
    pub prefer: bool,
    /// How long an answer is fresh, where the endpoint does not say, 0s to 7d. Default: 5m.
    pub ttl: Pause,
    /// For so long after that it is still served while a new one is fetched, 1ms to 7d or off; with
    /// `prefer`. Default: off.
    pub stale_while_revalidate: Switch<Timeout>,
    /// Whether only requests count that would get the same answer again: temperature 0, a seed,
    /// embeddings and the like. Default: true.
    pub deterministic_only: bool,
    /// Whether an arm's answers are served for requests of another arm too. Default: false.
    pub across_arms: bool,
    /// Request headers whose values make a request another one. Default: accept.
    pub vary: Vec<String>,
    /// Size of a request body, 0B to 64MiB; the answer to a longer one is not stored. Default:
    /// 256KiB.
    pub max_request: Size<0, { 64 * MIB }>,
    /// Size of an answer, 1KiB to 64MiB; a longer one is not stored. Default: 1MiB.
    pub max_answer: Size<KIB, { 64 * MIB }>,
    /// How a stored stream of events is sent: at_once, or paced as it came. Default: at_once.
    pub replay: Replay,
    /// Whether requests that are the same, and under way at the same time, share one call. Default:
    /// false.
    pub coalesce: bool,
}

/// What is served where there would be an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fallback {
    /// Stored answers, or off. Default: off.
    pub answers: Switch<FallbackAnswers>,
}

/// When a stored answer is served where there would be an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FallbackAnswers {
    /// How long after its `ttl` an answer is good enough for that, 0s to 7d. Default: 24h.
    pub stale_for: Pause,
    /// Instead of which errors. Default: deadline, no_endpoint, connect, reset, shed, server_error.
    pub when: Vec<FallbackReason>,
}

impl Default for AnswerStore {
    fn default() -> Self {
        Self { memory: Size(64 * MIB), refreshes: Whole(16), redis: None, warm_up: None }
    }
}

impl Default for AnswerWarmUp {
    fn default() -> Self {
        Self { file: None, rate: Whole(5), at_once: Whole(2) }
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            prefer: false,
            ttl: Time::seconds(300),
            stale_while_revalidate: Switch::Off,
            deterministic_only: true,
            across_arms: false,
            vary: vec!["accept".to_owned()],
            max_request: Size(256 * KIB),
            max_answer: Size(MIB),
            replay: Replay::AtOnce,
            coalesce: false,
        }
    }
}

impl Default for Fallback {
    fn default() -> Self {
        Self { answers: Switch::Off }
    }
}

impl Default for FallbackAnswers {
    fn default() -> Self {
        Self { stale_for: Time::seconds(24 * 3600), when: FallbackReason::ALL.to_vec() }
    }
}
