//! What the proxy runs with: everything checked, everything defaulted, nothing left to interpret.
//!
//! Decides the types that the data plane reads; they are plain data, compared by value, and never
//! change after [`crate::load`]. `Serialize` is for people: durations and sizes are printed with
//! their units, `off` where there is none.
//!
//! Leaves out how it was written: see [`crate::schema`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::pattern::{Glob, HostPattern, PathPattern};
use crate::report::Problem;
use crate::units;

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Config {
    /// Addresses that take traffic, at least one, in file order.
    pub listeners: Vec<Listener>,
    /// The admin page, metrics and health of the proxy itself.
    pub admin: Admin,
    /// What only a restart changes, besides the addresses.
    pub runtime: Runtime,
    /// Limits of the client side.
    pub limits: Limits,
    /// Every backend, in file order; [`Arm::backend`] counts into this. Names are unique.
    pub backends: Vec<Backend>,
    /// Every route, in file order: the first that matches wins. Names are unique.
    pub routes: Vec<Route>,
    /// What is believed of, and told to, the neighbours.
    pub forwarding: Forwarding,
    /// One line per request.
    pub access_log: AccessLog,
    /// How the proxy stops.
    pub drain: Drain,
    /// The proxy's own log.
    pub log: Log,
    /// What is allowed but probably not meant; each with its place. Say them in the log.
    pub warnings: Vec<Problem>,
}

/// An address that takes traffic: HTTP/1.1, h2c by prior knowledge, and WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Port 0 takes any free port.
    pub address: SocketAddr,
}

/// Where the admin server listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Admin {
    /// Port 0 takes any free port.
    pub address: SocketAddr,
}

/// Settings of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// Threads that carry traffic, 1 to 256.
    pub threads: usize,
    /// The socket over which a new process takes the listeners from the old one.
    pub upgrade_socket: PathBuf,
}

/// Limits of the client side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Bytes of one request head.
    #[serde(serialize_with = "units::size")]
    pub header_bytes: u64,
    /// Header fields of one request head.
    pub headers: usize,
    /// Bytes of a request body; a longer one is refused with 413.
    #[serde(serialize_with = "units::size")]
    pub body_bytes: u64,
    /// How many bytes of a body are read to find `model` or a sticky field.
    #[serde(serialize_with = "units::size")]
    pub body_scan: u64,
    /// From the first byte of a request to the end of its head.
    #[serde(serialize_with = "units::duration")]
    pub header_timeout: Duration,
    /// Between two reads of a request body.
    #[serde(serialize_with = "units::duration")]
    pub body_timeout: Duration,
    /// A client that reads nothing for so long is cut.
    #[serde(serialize_with = "units::duration")]
    pub write_timeout: Duration,
    /// A kept connection without a request is closed after it.
    #[serde(serialize_with = "units::duration")]
    pub idle_timeout: Duration,
    /// Open client connections; further ones are closed at once.
    pub connections: usize,
}

/// A named group of endpoints with one balancing policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    /// Unique; letters, digits and `-_.`; the value of metric labels and of the arm header.
    pub name: String,
    /// At least one; no two with the same host and port.
    pub endpoints: Vec<Endpoint>,
    /// What the endpoints speak.
    pub protocol: Protocol,
    /// How one is chosen.
    pub balance: Balance,
    /// Requests in flight per endpoint; `None` = no limit.
    #[serde(serialize_with = "number_or_off")]
    pub max_connections: Option<usize>,
    /// The active check; `None` = every endpoint is ready at once and stays so.
    #[serde(serialize_with = "value_or_off")]
    pub health: Option<Health>,
    /// The passive check; `None` = off.
    #[serde(serialize_with = "value_or_off")]
    pub ejection: Option<Ejection>,
    /// Idle connections kept per endpoint; 0 = none.
    pub idle_connections: usize,
    /// How long an idle one is kept.
    #[serde(serialize_with = "units::duration")]
    pub idle_timeout: Duration,
    /// Upper bound on the time to live of a DNS answer.
    #[serde(serialize_with = "units::duration")]
    pub dns_refresh: Duration,
}

/// One address that serves, or a DNS name whose every address does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Endpoint {
    /// Where it is.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
    /// Its share among the endpoints of the backend, 1 to 1000.
    pub weight: u32,
}

/// A host: an address, or a name to resolve (lower case, without a closing dot).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A DNS name.
    Name(String),
}

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The one with the least work in flight for its weight.
    LeastConnection,
    /// One after the other, by weight.
    RoundRobin,
}

/// An active health check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// What is asked.
    pub check: HealthCheck,
    /// From the start of a check to the start of the next.
    #[serde(serialize_with = "units::duration")]
    pub interval: Duration,
    /// How long one check may take.
    #[serde(serialize_with = "units::duration")]
    pub timeout: Duration,
    /// Consecutive successes to become ready (the first is enough at the very start), 1 to 100.
    pub healthy: u32,
    /// Consecutive failures to become unready, 1 to 100.
    pub unhealthy: u32,
    /// Which statuses are a success, each from first to last inclusive. Not used by a TCP check.
    #[serde(serialize_with = "status_ranges")]
    pub status: Vec<StatusRange>,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthCheck {
    /// `GET` of this path (with its query, if it has one), in the protocol of the backend.
    Http(String),
    /// A connection is enough.
    Tcp,
}

/// Statuses from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    /// 100 to 599.
    pub first: u16,
    /// At least `first`, at most 599.
    pub last: u16,
}

/// Passive health: an endpoint that keeps failing is left out for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ejection {
    /// Consecutive failures that eject, 1 to 1000.
    pub failures: u32,
    /// How long the first time; the n-th ejection in a row lasts n times as long.
    #[serde(serialize_with = "units::duration")]
    pub base: Duration,
    /// Never longer than this; at least `base`.
    #[serde(serialize_with = "units::duration")]
    pub max: Duration,
}

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
    /// When another attempt is made; `None` = never.
    #[serde(serialize_with = "value_or_off")]
    pub retry: Option<Retry>,
    /// What is changed on the way.
    pub rewrite: Rewrite,
    /// What is told in response headers.
    pub expose: Expose,
    /// The shape of the proxy's own error bodies.
    pub errors: ErrorStyle,
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

/// How long each part of a request may take; `None` = no bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deadline {
    /// To connect to an endpoint, per attempt.
    #[serde(serialize_with = "units::duration_or_off")]
    pub connect: Option<Duration>,
    /// From the sent request to the first byte of the response.
    #[serde(serialize_with = "units::duration_or_off")]
    pub first_byte: Option<Duration>,
    /// Between two pieces of the response.
    #[serde(serialize_with = "units::duration_or_off")]
    pub gap: Option<Duration>,
    /// From the received request head to the end of the response, all attempts together.
    #[serde(serialize_with = "units::duration_or_off")]
    pub total: Option<Duration>,
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

/// What is believed of the proxies in front.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forwarding {
    /// How many entries of `x-forwarded-for`, from the right, are believed; 0 = none, the header is
    /// replaced. 0 to 32.
    pub trusted_hops: usize,
}

/// One line per request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccessLog {
    /// How a line looks; `None` = off.
    #[serde(serialize_with = "value_or_off")]
    pub format: Option<LogFormat>,
    /// Where lines go.
    pub path: LogPath,
    /// Which fields, in this order; at least one, none twice.
    pub fields: Vec<LogField>,
}

/// How an access-log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// `Text` when the target is a terminal, else `Json`.
    Auto,
    /// One JSON object.
    Json,
    /// `key=value` pairs.
    Text,
}

/// Where access-log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPath {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to.
    File(PathBuf),
}

/// How the proxy stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drain {
    /// How long it keeps accepting while it already says "not ready"; may be 0.
    #[serde(serialize_with = "units::duration")]
    pub delay: Duration,
    /// Then, how long it waits for requests to end; may be 0.
    #[serde(serialize_with = "units::duration")]
    pub timeout: Duration,
}

/// The proxy's own log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Log {
    /// What is said at least.
    pub level: LogLevel,
}

/// From few words to many.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Something is broken.
    Error,
    /// Something is odd.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// Declares [`LogField`] with the names it is read and printed by.
macro_rules! log_fields {
    ($($variant:ident $name:literal $doc:literal;)+) => {
        /// A field of an access-log line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
        pub enum LogField { $(#[doc = $doc] #[serde(rename = $name)] $variant),+ }

        impl LogField {
            /// Every field, in the default order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The key in the log line.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

log_fields! {
    Time "time" "When the request head had come in.";
    RequestId "request_id" "The `x-request-id`, accepted or made.";
    TraceId "trace_id" "The trace id of `traceparent`.";
    Client "client" "The address of the client.";
    Method "method" "The method.";
    Host "host" "The host.";
    Path "path" "The path without the query.";
    Route "route" "The name of the route.";
    Arm "arm" "The name of the arm.";
    Endpoint "endpoint" "The address that answered.";
    Model "model" "The `model` of the request.";
    Protocol "protocol" "What the client spoke.";
    Status "status" "The status sent.";
    Outcome "outcome" "How it ended.";
    DurationMs "duration_ms" "Until the end, in milliseconds.";
    FirstByteMs "first_byte_ms" "Until the first byte of the response, in milliseconds.";
    UpstreamConnectMs "upstream_connect_ms" "To connect to the endpoint, in milliseconds.";
    Attempts "attempts" "How many attempts were made.";
    BytesIn "bytes_in" "Bytes of the request body.";
    BytesOut "bytes_out" "Bytes of the response body.";
    Chunks "chunks" "Pieces of a streamed response.";
    TokensIn "tokens_in" "Prompt tokens, where the response tells them.";
    TokensOut "tokens_out" "Generated tokens, where the response tells them.";
    UserAgent "user_agent" "The `user-agent`.";
}

impl Config {
    /// The backend of that name.
    #[must_use]
    pub fn backend(&self, name: &str) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.name == name)
    }

    /// Whether any route needs the body of a request before it can choose.
    #[must_use]
    pub fn reads_bodies(&self) -> bool {
        self.routes.iter().any(Route::reads_body)
    }
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
    /// Whether the match, the stickiness or the rewrite needs a JSON body.
    #[must_use]
    pub fn reads_body(&self) -> bool {
        !self.matches.models.is_empty()
            || matches!(self.sticky, Some(Sticky::Body(_)))
            || self.rewrite.model.is_some()
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
    pub const ALL: [Self; 6] = [
        Self::Connect,
        Self::Refused,
        Self::Reset,
        Self::Overloaded,
        Self::FirstByte,
        Self::ServerError,
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

impl StatusRange {
    /// Whether `status` lies in it.
    #[must_use]
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl Health {
    /// Whether an HTTP check that was answered with `status` has succeeded.
    #[must_use]
    pub fn accepts(&self, status: u16) -> bool {
        self.status.iter().any(|range| range.contains(status))
    }
}

impl HeaderEdits {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
}

impl fmt::Display for Endpoint {
    /// `host:port`, with brackets where they are needed: what metrics and logs call the endpoint.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(address) => SocketAddr::new(*address, self.port).fmt(out),
            Host::Name(name) => write!(out, "{name}:{}", self.port),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(out),
            Self::Name(name) => out.write_str(name),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(out);
        }
        write!(out, "{}-{}", self.first, self.last)
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl Serialize for LogField {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(self.name())
    }
}

impl Serialize for LogPath {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Stdout => out.serialize_str("stdout"),
            Self::Stderr => out.serialize_str("stderr"),
            Self::File(path) => out.collect_str(&path.display()),
        }
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

fn as_map<V: Serialize, S: Serializer>(pairs: &[(String, V)], out: S) -> Result<S::Ok, S::Error> {
    let mut map = out.serialize_map(Some(pairs.len()))?;
    for (name, value) in pairs {
        map.serialize_entry(name, value)?;
    }
    map.end()
}

fn status_ranges<S: Serializer>(ranges: &[StatusRange], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(ranges.iter().map(ToString::to_string))
}

fn value_or_off<T: Serialize, S: Serializer>(value: &Option<T>, out: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(out),
        None => out.serialize_str("off"),
    }
}

fn number_or_off<S: Serializer>(value: &Option<usize>, out: S) -> Result<S::Ok, S::Error> {
    value_or_off(value, out)
}
