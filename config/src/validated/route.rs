//! A route: what it takes, and what is done with it.
//!
//! Leaves out what happens beside the request itself ([`Guard`], [`Mirror`]), to its body
//! ([`Compress`], [`Decompress`], [`Batch`]) and while it waits ([`Hedge`]), and how long it may take
//! ([`Deadline`], [`Levels`]).

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::{
    Answers, Batch, Compress, Deadline, Decompress, Fallback, Guard, Hedge, Levels, Limit, Mirror,
    Priority, Queue, RateKey, RateLimit, as_map, value_or_off,
};
use crate::pattern::{Glob, HostPattern, PathPattern};
use crate::units;

/// A match and the policy for what it matches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Route {
    /// Unique; letters, digits and `-_./`; `route-N` (N from 1, its place in the file) when the
    /// file gives none.
    pub name: String,
    /// What it takes.
    #[serde(rename = "match")]
    pub matches: Match,
    /// What is done with it.
    pub action: Action,
    /// By what a client keeps its arm; `None` = not at all.
    pub sticky: Option<Sticky>,
    /// The header (lower case) by which a tester picks an arm by name; `None` = off.
    #[serde(serialize_with = "value_or_off")]
    pub force_arm: Option<String>,
    /// How long each part may take.
    pub deadline: Deadline,
    /// What changes under load; `None` = nothing.
    #[serde(serialize_with = "value_or_off")]
    pub levels: Option<Levels>,
    /// When another attempt is made; `None` = never.
    #[serde(serialize_with = "value_or_off")]
    pub retry: Option<Retry>,
    /// When a second endpoint is asked while the first one has not begun to answer; `None` = never.
    #[serde(serialize_with = "value_or_off")]
    pub hedge: Option<Hedge>,
    /// What of its answers is stored and served again; `None` = nothing.
    #[serde(serialize_with = "value_or_off")]
    pub answers: Option<Answers>,
    /// What is served where there would be an error.
    pub fallback: Fallback,
    /// How fast requests may come; each by itself.
    pub rates: Vec<RateLimit>,
    /// How many may be in flight at once; `None` = as many as there are.
    #[serde(serialize_with = "value_or_off")]
    pub limit: Option<Limit>,
    /// Who waits for a place; `None` = nobody. Only with `limit`.
    #[serde(serialize_with = "value_or_off")]
    pub queue: Option<Queue>,
    /// Who goes first when requests wait; `None` = nobody.
    #[serde(serialize_with = "value_or_off")]
    pub priority: Option<Priority>,
    /// What is changed on the way.
    pub rewrite: Rewrite,
    /// What is told in response headers.
    pub expose: Expose,
    /// The shape of the proxy's own error bodies.
    pub errors: ErrorStyle,
    /// What takes an arm out of the split that does worse than another; `None` = nothing.
    #[serde(serialize_with = "value_or_off")]
    pub guard: Option<Guard>,
    /// Where a copy of the requests goes; `None` = nowhere.
    #[serde(serialize_with = "value_or_off")]
    pub mirror: Option<Mirror>,
    /// How responses are compressed; `None` = not at all.
    #[serde(serialize_with = "value_or_off")]
    pub compress: Option<Compress>,
    /// How request bodies are decompressed; `None` = passed on as they are.
    #[serde(serialize_with = "value_or_off")]
    pub decompress: Option<Decompress>,
    /// How requests are sent together; `None` = each for itself.
    #[serde(serialize_with = "value_or_off")]
    pub batch: Option<Batch>,
    /// Top-level fields of a JSON body by which a backend of this route, that of the mirror included,
    /// chooses an endpoint ([`Key::Body`]); each once, sorted.
    ///
    /// [`Key::Body`]: super::Key::Body
    #[serde(skip)]
    pub key_fields: Vec<String>,
}

/// Conditions of a route. Every kind that is not empty must hold; within a kind one of `hosts`,
/// `paths`, `methods`, `models` is enough, while all of `headers` and all of `query` are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Match {
    /// Compared with the host without its port, see [`crate::pattern::host_without_port`].
    #[serde(rename = "host", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostPattern>,
    /// Compared with the path without its query.
    #[serde(rename = "path", skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathPattern>,
    /// Upper case.
    #[serde(rename = "method", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Header name (lower case) and a glob for one of its values.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_map")]
    pub headers: Vec<(String, Glob)>,
    /// Query parameter (as written, not decoded) and a glob for one of its values.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_map")]
    pub query: Vec<(String, Glob)>,
    /// Compared with the `model` field of a JSON body; a request without one does not match.
    #[serde(rename = "model", skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Glob>,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Sends to one of these arms, at least one, by weight; at least one weight is above 0, and an
    /// arm with weight 0 is reached by [`Route::force_arm`] only. `backend: x` is one arm with
    /// weight 1.
    Split(Vec<Arm>),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers by itself.
    Respond(Respond),
}

/// One arm of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arm {
    /// The name of the backend, which is the name of the arm.
    pub name: String,
    /// Its place in [`Config::backends`].
    ///
    /// [`Config::backends`]: super::Config::backends
    #[serde(skip)]
    pub backend: usize,
    /// 0 to 10000.
    pub weight: u32,
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Redirect {
    /// The value of `location`, as it is sent.
    pub to: String,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Empty when the status allows none (204, 205, 304).
    pub body: String,
    /// Lower-case names, in file order; none that frames the message.
    #[serde(serialize_with = "as_map")]
    pub headers: Vec<(String, String)>,
}

/// By what a client keeps its arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sticky {
    /// The value of this request header (lower case).
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The value of this top-level field of a JSON body.
    Body(String),
}

/// When another attempt is made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retry {
    /// Tries in all, 1 to 10.
    pub attempts: u32,
    /// After what.
    pub when: RetryOn,
    /// Full jitter over `backoff × 2^n`.
    #[serde(serialize_with = "units::duration")]
    pub backoff: Duration,
    /// The most one pause lasts; at least `backoff`.
    #[serde(serialize_with = "units::duration")]
    pub max_backoff: Duration,
    /// A longer `retry-after` of an endpoint is passed on instead of waited for.
    #[serde(serialize_with = "units::duration")]
    pub max_retry_after: Duration,
    /// Request bytes kept for another attempt.
    #[serde(serialize_with = "units::size")]
    pub buffer: u64,
    /// How much of the traffic may be retries.
    pub budget: RetryBudget,
}

/// What may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryReason {
    /// Could not connect: refused or timed out.
    Connect,
    /// `REFUSED_STREAM`, or a `GOAWAY` that did not take the stream.
    Refused,
    /// The connection died before any byte of the response.
    Reset,
    /// 429 or 503 from the endpoint.
    Overloaded,
    /// The first-byte deadline passed.
    FirstByte,
    /// 500, 502 or 504 from the endpoint.
    ServerError,
    /// The endpoint stopped working on everything it had, and no byte of the response was there.
    Stalled,
}

/// A set of [`RetryReason`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(u8);

/// How much of the traffic may be retries: `percent` of the requests, and always `min_per_second`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RetryBudget {
    /// 0 to 100.
    pub percent: u32,
    /// 0 to 10000.
    pub min_per_second: u32,
}

/// What is changed on the way to the endpoint and back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    /// The path; see [`Route::rewritten_path`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// The `host` that the endpoint sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The value of the `model` field of a JSON body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Of the request.
    #[serde(skip_serializing_if = "HeaderEdits::is_empty")]
    pub request_headers: HeaderEdits,
    /// Of the response.
    #[serde(skip_serializing_if = "HeaderEdits::is_empty")]
    pub response_headers: HeaderEdits,
}

/// A new path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// The whole path becomes this.
    Exact(String),
    /// The matched prefix becomes this one; then every pattern in [`Match::paths`] is a prefix.
    Prefix(String),
}

/// Edits of header fields: `remove` first, then `set` (which replaces).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HeaderEdits {
    /// Lower-case names, in file order.
    #[serde(serialize_with = "as_map")]
    pub set: Vec<(String, String)>,
    /// Lower-case names.
    pub remove: Vec<String>,
}

/// Which response headers tell the client about us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Expose {
    /// `x-outrigger-arm`.
    pub arm: bool,
    /// `x-outrigger-attempts`.
    pub attempts: bool,
    /// `server-timing`.
    pub timing: bool,
    /// `endpoint-load-metrics` (ORCA), where the client asks for it.
    pub load: bool,
    /// `x-outrigger-endpoint`.
    pub endpoint: bool,
}

/// The shape of the proxy's own error bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorStyle {
    /// `Openai` under `/v1/`, `Problem` elsewhere.
    Auto,
    /// `{"error": {...}}` as the OpenAI API has it.
    Openai,
    /// `application/problem+json`.
    Problem,
}

impl Match {
    /// Whether it has no condition, or only ones that hold for every request.
    #[must_use]
    pub fn is_any(&self) -> bool {
        let narrow = [&self.headers, &self.query].iter().any(|list| !list.is_empty());
        !narrow
            && self.methods.is_empty()
            && self.models.is_empty()
            && (self.hosts.is_empty() || self.hosts.contains(&HostPattern::Any))
            && (self.paths.is_empty() || self.paths.iter().any(PathPattern::is_any))
    }
}

impl Route {
    /// Whether the match, the stickiness, the rewrite, a rate or a key of a backend needs a field of
    /// a JSON body.
    #[must_use]
    pub fn reads_body(&self) -> bool {
        !self.matches.models.is_empty()
            || matches!(self.sticky, Some(Sticky::Body(_)))
            || self.rewrite.model.is_some()
            || self.rates.iter().any(|rate| rate.per == RateKey::Model)
            || !self.key_fields.is_empty()
    }

    /// The path that the endpoint sees for a `path` that this route has matched; `None` =
    /// unchanged.
    #[must_use]
    pub fn rewritten_path(&self, path: &str) -> Option<String> {
        match self.rewrite.path.as_ref()? {
            PathRewrite::Exact(new) => Some(new.clone()),
            PathRewrite::Prefix(new) => {
                self.matches.paths.iter().find_map(|pattern| match pattern {
                    PathPattern::Prefix(old) => {
                        Some(format!("{new}{}", path.strip_prefix(&**old)?))
                    }
                    PathPattern::Exact(_) | PathPattern::Glob(_) => None,
                })
            }
        }
    }
}

impl RetryReason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Connect,
        Self::Refused,
        Self::Reset,
        Self::Overloaded,
        Self::FirstByte,
        Self::ServerError,
        Self::Stalled,
    ];

    /// Its name in the configuration and in metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Overloaded => "overloaded",
            Self::FirstByte => "first_byte",
            Self::ServerError => "server_error",
            Self::Stalled => "stalled",
        }
    }
}

impl RetryOn {
    /// Whether `reason` is in the set.
    #[must_use]
    pub fn contains(self, reason: RetryReason) -> bool {
        self.0 & (1 << reason as u8) != 0
    }
}

impl FromIterator<RetryReason> for RetryOn {
    fn from_iter<I: IntoIterator<Item = RetryReason>>(reasons: I) -> Self {
        Self(reasons.into_iter().fold(0, |set, reason| set | 1 << reason as u8))
    }
}

impl HeaderEdits {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
}

impl Serialize for PathRewrite {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Exact(path) => out.serialize_str(path),
            Self::Prefix(prefix) => out.collect_str(&format_args!("{prefix}*")),
        }
    }
}

impl Serialize for RetryOn {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(RetryReason::ALL.into_iter().filter(|reason| self.contains(*reason)))
    }
}
