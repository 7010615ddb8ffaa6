//! What the proxy runs with: everything checked, everything defaulted, nothing left to interpret.
//!
//! Decides the types that the data plane reads; they are plain data, compared by value, and never
//! change after [`crate::load`]. `Serialize` is for people: durations and sizes are printed with
//! their units, `off` where there is none.
//!
//! Leaves out how it was written: see [`crate::schema`].

mod admission;
mod answers;
mod backend;
mod balance;
mod body;
mod deadline;
mod ejection;
mod guard;
mod hedge;
mod levels;
mod redis;
mod route;
mod tracing;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::report::Problem;
use crate::units;

pub use admission::{
    AdaptiveLimit, Allowance, Limit, LimitAlgorithm, PerTime, Priority, Queue, RateKey, RateLimit,
};
pub use answers::{
    AnswerStore, AnswerWarmUp, Answers, Fallback, FallbackAnswers, FallbackOn, FallbackReason,
    Replay,
};
pub use backend::{
    Backend, Endpoint, Health, HealthCheck, Host, Place, Protocol, SlowStart, StatusRange, WarmUp,
    WarmUpRequest,
};
pub use balance::{
    Agent, Balance, BalancePolicy, Engine, HashTable, Key, Locality, Scrape, Signals,
};
pub use body::{Batch, Coding, Compress, Decompress};
pub use deadline::{Adaptive, Bound, BudgetField, Deadline, Strategy};
pub use ejection::{Breaker, Ejection, Latency, Stall, SuccessRate};
pub use guard::{Guard, Mirror, Steps};
pub use hedge::{Hedge, HedgeAfter};
pub use levels::{Level, LevelAction, Levels, LoadMeasure};
pub use redis::{Redis, RedisNode, RedisTls, Secret};
pub use route::{
    Action, Arm, ErrorStyle, Expose, HeaderEdits, Match, PathRewrite, Redirect, Respond, Retry,
    RetryBudget, RetryOn, RetryReason, Rewrite, Route, Sticky,
};
pub use tracing::{Collector, Tracing};

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
    /// How DNS names are resolved.
    pub dns: Dns,
    /// Every backend, in file order; [`Arm::backend`] counts into this. Names are unique.
    pub backends: Vec<Backend>,
    /// Every route, in file order: the first that matches wins. Names are unique.
    pub routes: Vec<Route>,
    /// Where answers are stored.
    pub answers: AnswerStore,
    /// What is believed of, and told to, the neighbours.
    pub forwarding: Forwarding,
    /// Whose request it is.
    pub tenant: Tenant,
    /// One line per request.
    pub access_log: AccessLog,
    /// How the proxy stops.
    pub drain: Drain,
    /// The proxy's own log.
    pub log: Log,
    /// What the kernel is asked.
    pub probes: Probes,
    /// Where traces of requests go; `None` = nowhere.
    #[serde(serialize_with = "value_or_off")]
    pub tracing: Option<Tracing>,
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
    /// How many bytes of a body are read to find `model`, a sticky field or a key.
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

/// How DNS names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// Who is asked, none twice; empty = as the system is set up.
    pub servers: Vec<SocketAddr>,
}

/// What is believed of the proxies in front.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forwarding {
    /// How many entries of `x-forwarded-for`, from the right, are believed; 0 = none, the header is
    /// replaced. 0 to 32.
    pub trusted_hops: usize,
}

/// Whose request it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tenant {
    /// Request headers (lower case) by whose values tenants are told apart; at least one, each once.
    pub header: Vec<String>,
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

/// What the kernel is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Probes {
    /// What the application's sockets do with each request.
    pub requests: bool,
    /// What is seen has effect on how many requests are let in.
    pub feedback: bool,
    /// What sockets and processes are like, once a second.
    pub sockets: bool,
    /// How long calls into the GPU's driver take.
    pub driver: Option<Driver>,
    /// How long a GPU's work is waited for in the kernel, and its jobs in the DRM scheduler.
    pub fences: bool,
    /// What the GPU's user-space driver is called for, and for how long.
    pub cuda: Option<CudaProbe>,
}

/// How calls into the GPU's driver are timed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// Absolute paths of further devices, each once.
    pub devices: Vec<PathBuf>,
    /// After how long a call counts as stuck.
    #[serde(serialize_with = "units::duration")]
    pub stuck_after: Duration,
}

/// How calls of the GPU's user-space driver are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CudaProbe {
    /// Kernel launches are counted.
    pub launches: bool,
    /// Functions that have to be single-stepped are looked at, too.
    pub single_step: bool,
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
    DeadlineMs "deadline_ms" "How long the first byte was waited for, where that was not simply configured.";
    UpstreamConnectMs "upstream_connect_ms" "To connect to the endpoint, in milliseconds.";
    QueuedMs "queued_ms" "How long it waited for a place, in milliseconds.";
    Attempts "attempts" "How many attempts were made.";
    Hedge "hedge" "What became of the hedge, where there was one.";
    BytesIn "bytes_in" "Bytes of the request body.";
    BytesOut "bytes_out" "Bytes of the response body.";
    Chunks "chunks" "Pieces of a streamed response.";
    TokensIn "tokens_in" "Prompt tokens, where the response tells them.";
    TokensOut "tokens_out" "Generated tokens, where the response tells them.";
    UserAgent "user_agent" "The `user-agent`.";
    AppWireMs "app_wire_ms" "From the proxy beginning to send it to its first segment at the application's socket, in milliseconds, where a probe saw it.";
    AppSocketWaitMs "app_socket_wait_ms" "How long it lay in the application's socket before it was read, likewise.";
    AppFirstByteMs "app_first_byte_ms" "From being read by the application to the first byte it wrote, likewise.";
    AppAnswerMs "app_answer_ms" "From the first byte that the application wrote to the last, likewise.";
    AppWrites "app_writes" "How often the application wrote, likewise.";
    AppLongestGapMs "app_longest_gap_ms" "The longest that two of its writes in a row were apart, likewise.";
    AppPid "app_pid" "The process that read it: as the proxy's PID namespace counts, or as the host does where it is in another.";
    GpuWaitMs "gpu_wait_ms" "How much of it somebody in the pod waited for the GPU, in milliseconds, where a probe saw it.";
    GpuWaitAmong "gpu_wait_among" "Among how many requests that is shared; 1 is exact.";
    GpuWaitMethod "gpu_wait_method" "How that is known: api (calls of CUDA or HIP), driver (its system calls) or fence (waits in the kernel).";
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

fn as_map<V: Serialize, S: Serializer>(pairs: &[(String, V)], out: S) -> Result<S::Ok, S::Error> {
    let mut map = out.serialize_map(Some(pairs.len()))?;
    for (name, value) in pairs {
        map.serialize_entry(name, value)?;
    }
    map.end()
}

fn value_or_off<T: Serialize, S: Serializer>(value: &Option<T>, out: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(out),
        None => out.serialize_str("off"),
    }
}
