//! A route: what it takes, and what is done with it.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::admission::{Limit, Priority, Queue, RateLimit};
use super::answers::{Answers, Fallback};
use super::body::{Batch, Compress, Decompress};
use super::deadline::{Deadline, Levels};
use super::guard::{Guard, Mirror};
use super::hedge::Hedge;
use super::values::{Brief, OneOrMany, Pause, Size, Switch, Time, Whole};
use super::{GIB, MIB};
use crate::validated::{ErrorStyle, RetryReason};

/// What is done with which request. Exactly one of `backend`, `split`, `redirect` and `respond`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Route {
    /// The value of metric labels: 1 to 100 letters, digits, `-`, `_`, `.` and `/`. Default:
    /// route-1, route-2, … by place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it takes: all given keys must hold. Without it, everything.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<Match>,
    /// The backend that everything goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Backends by name, each with a weight, 0 to 10000; not all 0. An arm with weight 0 is reached
    /// by `force_arm` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<IndexMap<String, Whole<0, 10_000>>>,
    /// Answers with a redirect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Answers by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub respond: Option<Respond>,
    /// By what a client keeps its arm of the split. Default: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// The request header by which a tester picks an arm by its name; `off` switches it off.
    /// Default: x-outrigger-arm.
    pub force_arm: Switch<String>,
    /// How long each part may take: `adaptive`, or a mapping. Default: fixed times.
    pub deadline: Brief<Deadline>,
    /// What changes while the route has much to do, or off. Default: off.
    pub levels: Switch<Levels>,
    /// When another attempt is made, which is never after a byte of the response was sent. `off`
    /// switches it off. Default: on.
    pub retry: Switch<Retry>,
    /// Asks a second endpoint when the first one is slow to begin its response, or off. Default:
    /// off.
    pub hedge: Switch<Hedge>,
    /// Stores answers and serves them again, always marked, or off. Default: off.
    pub answers: Switch<Answers>,
    /// What is served where there would be an error.
    pub fallback: Fallback,
    /// How fast requests may come, each rule by itself. Default: as fast as they do.
    pub rates: Vec<RateLimit>,
    /// How many requests may be in flight at once: a number, `adaptive`, a mapping, or off. Default:
    /// off.
    pub limit: Switch<Brief<Limit>>,
    /// Lets requests wait that are more than `limit`, or off. Default: off.
    pub queue: Switch<Queue>,
    /// Who goes first when requests wait, here or in the queue of the backend. Default: none before
    /// another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// What is changed on the way to the endpoint and back.
    pub rewrite: Rewrite,
    /// Response headers that tell about the proxy: arm (x-outrigger-arm), attempts
    /// (x-outrigger-attempts), timing (server-timing), load (endpoint-load-metrics, for clients that
    /// ask for it), endpoint (x-outrigger-endpoint). Default: none.
    pub expose: Vec<Expose>,
    /// The shape of the proxy's own error bodies. Default: auto.
    pub errors: ErrorStyle,
    /// Takes an arm of the split out as soon as it is shown to do worse than another one. Default:
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
    /// Sends copies of requests to a backend whose answers are thrown away. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Compresses responses for clients that take it, or off. Default: off.
    pub compress: Switch<Compress>,
    /// Decompresses request bodies, or off. Default: off.
    pub decompress: Switch<Decompress>,
    /// Sends requests together that come at almost the same time, or off. Default: off.
    pub batch: Switch<Batch>,
}

/// What a route takes: all given keys must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// A host or a list of them, compared without the port; letter case does not matter.
    /// `*.example.com` is every name below it, `*` every host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<OneOrMany<String>>,
    /// A path or a list of them. Without a star the whole path, with one at the end a prefix, with
    /// stars elsewhere any text, also `/`, for each star.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<OneOrMany<String>>,
    /// A method or a list of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<OneOrMany<String>>,
    /// Headers by name, each with a glob for one of its values; "*" = it is there.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub headers: IndexMap<String, String>,
    /// Query parameters by name, each with a glob for one of its values; "*" = it is there.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub query: IndexMap<String, String>,
    /// A glob or a list of them for the `model` field of a JSON body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<OneOrMany<String>>,
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// The value of the location header.
    pub to: String,
    /// 301, 302, 303, 307 or 308. Default: 308.
    #[serde(default = "permanent")]
    #[schemars(extend("enum" = [301, 302, 303, 307, 308]))]
    pub status: Whole<100, 599>,
}

fn permanent() -> Whole<100, 599> {
    Whole(308)
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Respond {
    /// The status, 200 to 599. Default: 200.
    pub status: Whole<200, 599>,
    /// The body; none with the statuses 204, 205 and 304. Default: "".
    pub body: String,
    /// Response headers. Default: none.
    pub headers: IndexMap<String, String>,
}

/// By what a client keeps its arm: exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sticky {
    /// The value of this request header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The value of this cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// The value of this top-level field of a JSON body, such as user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// When another attempt is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Tries in all, the first included, 1 to 10. Default: 3.
    pub attempts: Whole<1, 10>,
    /// After what. Default: connect, refused, reset, overloaded, stalled.
    pub when: Vec<RetryReason>,
    /// A pause is drawn evenly from 0 to this, doubled with each attempt, 0s to 7d. Default: 25ms.
    pub backoff: Pause,
    /// The most one pause lasts, 0s to 7d; at least `backoff`. Default: 250ms.
    pub max_backoff: Pause,
    /// A longer retry-after of an endpoint is passed on instead of waited for, 0s to 7d. Default:
    /// 2s.
    pub max_retry_after: Pause,
    /// How much of a request is kept for another attempt, 0B to 1GiB; a longer one is tried once.
    /// Default: 1MiB.
    pub buffer: Size<0, GIB>,
    /// How much of the traffic may be retries.
    pub budget: RetryBudget,
}

/// How much of the traffic may be retries: a share of the requests, and always some.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryBudget {
    /// Retries per hundred requests, 0 to 100. Default: 20.
    pub percent: Whole<0, 100>,
    /// Retries per second that are always allowed, 0 to 10000. Default: 10.
    pub min_per_second: Whole<0, 10_000>,
}

/// What is changed on the way to the endpoint and back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rewrite {
    /// The new path; the query stays. With a star at the end it replaces the prefix, and then every
    /// `match.path` ends in a star too. Default: unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The host that the endpoint sees. Default: unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The value of the `model` field of a JSON body. Default: unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Edits of the request headers.
    pub request_headers: HeaderEdits,
    /// Edits of the response headers.
    pub response_headers: HeaderEdits,
}

/// Edits of header fields: removed first, then set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HeaderEdits {
    /// Headers by name, each with its new and only value. Default: none.
    pub set: IndexMap<String, String>,
    /// Names of headers. Default: none.
    pub remove: Vec<String>,
}

/// A response header that tells about the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Expose {
    /// x-outrigger-arm: the arm that answered.
    Arm,
    /// x-outrigger-attempts: how many attempts were made.
    Attempts,
    /// server-timing: how long each part took until the answer began; with the probe of requests also in the kernel (wire,
    /// socket, app).
    Timing,
    /// endpoint-load-metrics (ORCA): how loaded the endpoint is, for clients that ask for it.
    Load,
    /// x-outrigger-endpoint: the address that answered.
    Endpoint,
}

impl Default for Route {
    fn default() -> Self {
        Self {
            name: None,
            matches: None,
            backend: None,
            split: None,
            redirect: None,
            respond: None,
            sticky: None,
            force_arm: Switch::On("x-outrigger-arm".to_owned()),
            deadline: Brief(Deadline::default()),
            levels: Switch::Off,
            retry: Switch::On(Retry::default()),
            hedge: Switch::Off,
            answers: Switch::Off,
            fallback: Fallback::default(),
            rates: Vec::new(),
            limit: Switch::Off,
            queue: Switch::Off,
            priority: None,
            rewrite: Rewrite::default(),
            expose: Vec::new(),
            errors: ErrorStyle::Auto,
            guard: None,
            mirror: None,
            compress: Switch::Off,
            decompress: Switch::Off,
            batch: Switch::Off,
        }
    }
}

impl Default for Respond {
    fn default() -> Self {
        Self { status: Whole(200), body: String::new(), headers: IndexMap::new() }
    }
}

impl Default for Retry {
    fn default() -> Self {
        use RetryReason::{Connect, Overloaded, Refused, Reset, Stalled};
        Self {
            attempts: Whole(3),
            when: vec![Connect, Refused, Reset, Overloaded, Stalled],
            backoff: Time::millis(25),
            max_backoff: Time::millis(250),
            max_retry_after: Time::seconds(2),
            buffer: Size(MIB),
            budget: RetryBudget::default(),
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: Whole(20), min_per_second: Whole(10) }
    }
}
