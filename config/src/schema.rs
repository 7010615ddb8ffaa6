//! What a user may write: one struct per mapping of the file, one field per key.
//!
//! Decides names, units, ranges of single values and defaults. The comments of the fields are what
//! `outrigger schema` shows, and the defaults there come from the `Default`s here. Unknown keys are
//! mistakes everywhere.
//!
//! Leaves out what several values mean together: see `check`.

mod admission;
mod answers;
mod backend;
mod balance;
mod body;
mod deadline;
mod ejection;
mod guard;
mod hedge;
mod probes;
mod redis;
mod route;
mod tracing;
pub(crate) mod values;

use std::path::PathBuf;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validated::{LogField, LogFormat, LogLevel};
pub use admission::{AdaptiveLimit, Limit, Priority, Queue, RateLimit};
pub use answers::{AnswerStore, AnswerWarmUp, Answers, Fallback, FallbackAnswers};
pub use backend::{Backend, Health, SlowStart, WarmUp, WarmUpRequest};
pub use balance::{Agent, Balance, Key, Locality, Scrape, Signals};
pub use body::{Batch, Compress, Decompress};
pub use deadline::{Adaptive, Bound, Deadline, Learning, Level, Levels};
pub use ejection::{Breaker, Ejection, Latency, Stall, SuccessRate};
pub use guard::{Guard, Mirror, Steps};
pub use hedge::Hedge;
pub use probes::{CudaProbe, Driver};
pub use redis::Redis;
pub use route::{
    Expose, HeaderEdits, Match, Redirect, Respond, Retry, RetryBudget, Rewrite, Route, Sticky,
};
pub use tracing::Tracing;
pub use values::{
    Abbreviated, After, Brief, EndpointEntry, EndpointWeight, LimitWord, Moment, Number, OneOrMany,
    Pause, Percent, Port, Rate, Size, Span, StatusEntry, Switch, Time, Timeout, Whole,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The configuration of Outrigger, a sidecar proxy for inference servers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["routes"]))]
pub struct File {
    /// Addresses that take traffic. At least one. Default: one, 0.0.0.0:8800.
    #[schemars(length(min = 1))]
    pub listeners: Vec<Listener>,
    /// The admin page, metrics and health of the proxy itself.
    pub admin: Admin,
    /// Settings of the process; a change needs a restart.
    pub runtime: Runtime,
    /// Limits of the client side.
    pub limits: Limits,
    /// How DNS names are resolved.
    pub dns: Dns,
    /// Groups of endpoints by name. A name is the value of metric labels and of x-outrigger-arm: 1
    /// to 100 letters, digits, `-`, `_` and `.`.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub backends: IndexMap<String, Backend>,
    /// What is done with which request: the first match wins, in the order of the file. At least
    /// one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub routes: Vec<Route>,
    /// Where answers are stored that a route wants stored.
    pub answers: AnswerStore,
    /// What is believed of the proxies in front.
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
    /// Where traces of requests go, or off for none. Default: off.
    pub tracing: Switch<Tracing>,
}

/// An address that takes traffic: HTTP/1.1, HTTP/2 without TLS (prior knowledge) and WebSocket on
/// one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// IP address and port, such as 0.0.0.0:8800 or `[::]:8800`. Port 0 takes any free port. A
    /// change needs a restart.
    pub address: String,
}

/// The admin page, metrics and health of the proxy itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// IP address and port. Port 0 takes any free port. A change needs a restart. Default:
    /// 127.0.0.1:8801.
    pub address: String,
}

/// Settings of the process; a change needs a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// Threads that carry traffic, 1 to 256. Default: 1.
    pub threads: Whole<1, 256>,
    /// The socket over which a new process takes the listeners from the old one. Default:
    /// /tmp/outrigger-upgrade.sock.
    pub upgrade_socket: PathBuf,
}

/// Limits of the client side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Size of one request head, 1KiB to 1MiB; a larger one is refused with 431. Default: 64KiB.
    pub header_bytes: Size<KIB, MIB>,
    /// Header fields of one request, 1 to 256; more are refused with 431. Default: 128.
    pub headers: Whole<1, 256>,
    /// Size of a request body, 0B to 1TiB; a longer one is refused with 413. Default: 512MiB.
    pub body_bytes: Size<0, { 1024 * GIB }>,
    /// How far a request body is read to find `model`, a sticky field or a key of a backend, 1KiB to
    /// 1GiB. Default: 1MiB.
    pub body_scan: Size<KIB, GIB>,
    /// From the first byte of a request to the end of its head, 1ms to 7d. Default: 10s.
    pub header_timeout: Timeout,
    /// Between two reads of a request body, 1ms to 7d. Default: 30s.
    pub body_timeout: Timeout,
    /// A client that reads nothing for so long is cut, 1ms to 7d. Default: 1m.
    pub write_timeout: Timeout,
    /// A kept connection without a request is closed after it, 1ms to 7d. Default: 1m15s.
    pub idle_timeout: Timeout,
    /// Open client connections, 1 to 1000000; further ones are closed at once. Default: 10000.
    pub connections: Whole<1, 1_000_000>,
}

/// How DNS names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// IP addresses with ports of the servers that are asked, such as 10.0.0.10:53. Default: none,
    /// the servers of the system.
    pub servers: Vec<String>,
}

/// What is believed of the proxies in front.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Forwarding {
    /// How many proxies in front are believed in x-forwarded-for, 0 to 32; 0 believes none and
    /// replaces the header. Default: 0.
    pub trusted_hops: Whole<0, 32>,
}

/// Whose request it is: requests whose values of these headers are the same are of one tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tenant {
    /// A request header or a list of them. Default: authorization, x-api-key, api-key.
    pub header: OneOrMany<String>,
}

/// One line per request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLog {
    /// How a line looks, or off for no access log. Default: auto.
    pub format: Switch<LogFormat>,
    /// Where lines go: stdout, stderr or the path of a file, which is appended to. Default: stdout.
    pub path: String,
    /// Which fields a line has, in this order. At least one. Default: all of them.
    #[schemars(length(min = 1))]
    pub fields: Vec<LogField>,
}

/// How the proxy stops: it says "not ready", goes on accepting for `delay`, and then waits for
/// requests to end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// How long it keeps accepting while it already says "not ready", 0s to 7d. Default: 2s.
    pub delay: Pause,
    /// Then, how long it waits for requests to end, 0s to 7d. Default: 25s.
    pub timeout: Pause,
}

/// What the kernel is asked: programs in it that see what the application does, which need CAP_BPF and CAP_PERFMON, and
/// questions that need no privilege. `outrigger doctor` says what is missing. A change needs a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Probes {
    /// When each request reached the application's socket, was read, and was answered. For HTTP/1.1 to applications in
    /// the network namespace of the proxy. Default: false.
    pub requests: bool,
    /// What is seen has effect. With `requests`: while requests wait in an application's socket (5 ms and more, for 100 ms),
    /// fewer are let in at once, and wait in the proxy's queue instead, where there is one. With `driver`: while a call is
    /// stuck, the proxy says that it is not ready. Default: false.
    pub feedback: bool,
    /// Once a second, round trips and queues of the connections to endpoints, and processor time of the application's
    /// processes where they may be seen. Needs no privilege. Default: false.
    pub sockets: bool,
    /// How long calls into the GPU's driver take, and which do not return: true, a mapping, or off. For processes in the
    /// network namespace of the proxy. Default: off.
    pub driver: Switch<Brief<Driver>>,
    /// How long processes of the proxy's network namespace wait in the kernel for a GPU's work (its fences), and how long
    /// their jobs wait and run in the DRM scheduler, where the GPU's driver uses those: AMD, Intel, Vulkan, not CUDA.
    /// Default: false.
    pub fences: bool,
    /// How long calls of the GPU's user-space driver take (the CUDA driver API, HIP), in processes of the proxy's network
    /// namespace: true, or a mapping. Needs CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE (before Linux 6.10 CAP_SYS_ADMIN and
    /// CAP_SYS_PTRACE), and an x86-64. Default: false.
    pub cuda: Brief<CudaProbe>,
}

/// The proxy's own log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// What is said at least; the environment variable RUST_LOG overrides it. Default: info.
    pub level: LogLevel,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            requests: false,
            feedback: false,
            sockets: false,
            driver: Switch::Off,
            fences: false,
            cuda: Brief::short(false),
        }
    }
}

impl Default for File {
    fn default() -> Self {
        Self {
            listeners: vec![Listener { address: "0.0.0.0:8800".to_owned() }],
            admin: Admin::default(),
            runtime: Runtime::default(),
            limits: Limits::default(),
            dns: Dns::default(),
            backends: IndexMap::new(),
            routes: Vec::new(),
            answers: AnswerStore::default(),
            forwarding: Forwarding { trusted_hops: Whole(0) },
            tenant: Tenant::default(),
            access_log: AccessLog::default(),
            drain: Drain::default(),
            log: Log::default(),
            probes: Probes::default(),
            tracing: Switch::Off,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: "127.0.0.1:8801".to_owned() }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self { threads: Whole(1), upgrade_socket: "/tmp/outrigger-upgrade.sock".into() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: Size(64 * KIB),
            headers: Whole(128),
            body_bytes: Size(512 * MIB),
            body_scan: Size(MIB),
            header_timeout: Time::seconds(10),
            body_timeout: Time::seconds(30),
            write_timeout: Time::seconds(60),
            idle_timeout: Time::seconds(75),
            connections: Whole(10_000),
        }
    }
}

impl Default for Forwarding {
    fn default() -> Self {
        Self { trusted_hops: Whole(0) }
    }
}

impl Default for Tenant {
    fn default() -> Self {
        let header = ["authorization", "x-api-key", "api-key"].map(str::to_owned).to_vec();
        Self { header: OneOrMany(header) }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        let fields = LogField::ALL.to_vec();
        Self { format: Switch::On(LogFormat::Auto), path: "stdout".to_owned(), fields }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { delay: Time::seconds(2), timeout: Time::seconds(25) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info }
    }
}

/// The JSON schema of the file (draft 2020-12), for editors and for checks outside the proxy.
///
/// Besides the standard words it has `x-minimum` and `x-maximum` for durations and sizes.
#[must_use]
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(File).to_value();
    forbid_null(&mut schema);
    unwrap_descriptions(&mut schema);
    schema
}

/// Line breaks of the comments here mean nothing there.
fn unwrap_descriptions(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Array(items) => items.iter_mut().for_each(unwrap_descriptions),
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            map.values_mut().for_each(unwrap_descriptions);
        }
        _ => {}
    }
}

/// An `Option` may be left out, but a key without a value is a mistake here.
fn forbid_null(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Array(items) => items.iter_mut().for_each(forbid_null),
        Value::Object(map) => {
            map.values_mut().for_each(forbid_null);
            if let Some(Value::Array(kinds)) = map.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [only] = kinds.as_slice() {
                    let only = only.clone();
                    map.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(kinds)) = map.get_mut("anyOf") {
                kinds.retain(|kind| kind["type"] != "null");
                if let [Value::Object(only)] = kinds.as_slice() {
                    let only = only.clone();
                    map.remove("anyOf");
                    map.extend(only);
                }
            }
        }
        _ => {}
    }
}
