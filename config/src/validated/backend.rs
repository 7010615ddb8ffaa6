//! A backend: which endpoints there are, which of them are fit, and how they are asked.
//!
//! Leaves out how one of them is chosen ([`Balance`], [`Signals`], [`Locality`]) and when one is left
//! out ([`Ejection`]) or all of them are ([`Breaker`]).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::{Balance, Breaker, Ejection, Limit, Locality, Queue, Signals, as_map, value_or_off};
use crate::units;

/// A named group of endpoints with one balancing policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    /// Unique; letters, digits and `-_.`; the value of metric labels and of the arm header.
    pub name: String,
    /// At least one; no two in the same place.
    pub endpoints: Vec<Endpoint>,
    /// What the endpoints speak.
    pub protocol: Protocol,
    /// How one is chosen.
    pub balance: Balance,
    /// What endpoints tell about themselves.
    pub signals: Signals,
    /// What distance costs.
    pub locality: Locality,
    /// Requests in flight per endpoint; `None` = no limit.
    #[serde(serialize_with = "number_or_off")]
    pub max_connections: Option<usize>,
    /// Requests in flight at all endpoints together; `None` = no limit.
    #[serde(serialize_with = "value_or_off")]
    pub limit: Option<Limit>,
    /// Who waits for a place; `None` = nobody.
    #[serde(serialize_with = "value_or_off")]
    pub queue: Option<Queue>,
    /// The active check; `None` = every endpoint is ready at once and stays so.
    #[serde(serialize_with = "value_or_off")]
    pub health: Option<Health>,
    /// What an endpoint does before it takes traffic; `None` = nothing.
    #[serde(serialize_with = "value_or_off")]
    pub warm_up: Option<WarmUp>,
    /// How an endpoint that comes back gets its share; `None` = at once.
    #[serde(serialize_with = "value_or_off")]
    pub slow_start: Option<SlowStart>,
    /// The passive check; `None` = off.
    #[serde(serialize_with = "value_or_off")]
    pub ejection: Option<Ejection>,
    /// When all of it is left alone; `None` = never.
    #[serde(serialize_with = "value_or_off")]
    pub breaker: Option<Breaker>,
    /// Idle connections kept per endpoint; 0 = none.
    pub idle_connections: usize,
    /// How long an idle one is kept.
    #[serde(serialize_with = "units::duration")]
    pub idle_timeout: Duration,
    /// Upper bound on the time to live of a DNS answer.
    #[serde(serialize_with = "units::duration")]
    pub dns_refresh: Duration,
}

/// A place where the backend is served: one address, or what stands for several.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Endpoint {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// Its share among the endpoints of the backend, 1 to 1000; 1 unless `place` is a host.
    pub weight: u32,
    /// The zone it is in; `None` = not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether it is this pod's own, so that [`Locality::hop`] does not count; `false` unless `place`
    /// is a host.
    pub local: bool,
}

/// Where endpoints are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// One address, or a DNS name whose every address is an endpoint.
    Host {
        /// The address or the name.
        host: Host,
        /// 1 to 65535.
        port: u16,
    },
    /// A DNS name of the form `_service._proto.name` (lower case, without a closing dot) whose SRV
    /// records are endpoints.
    Srv(String),
    /// A file that lists endpoints, see [`crate::load_endpoints`]; to be watched.
    File(PathBuf),
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

/// What an endpoint does before it takes traffic: after it was found, became ready again, or was
/// ejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WarmUp {
    /// At least one; sent one after the other.
    pub requests: Vec<WarmUpRequest>,
    /// How long one request may take.
    #[serde(serialize_with = "units::duration")]
    pub timeout: Duration,
    /// The pause after one that failed; then all of them are sent again.
    #[serde(serialize_with = "units::duration")]
    pub retry: Duration,
}

/// A request that warms an endpoint up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WarmUpRequest {
    /// Upper case.
    pub method: String,
    /// With its query, if it has one.
    pub path: String,
    /// Lower-case names, in file order; none that frames the message.
    #[serde(serialize_with = "as_map")]
    pub headers: Vec<(String, String)>,
    /// May be empty.
    pub body: String,
    /// How often it is sent, 1 to 1000.
    pub repeat: u32,
}

/// How an endpoint that has just become ready gets its share: its weight is multiplied by
/// `max(floor, (age / window)^(1 / aggression))` until its age reaches the window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlowStart {
    /// How long it takes; above 0.
    #[serde(serialize_with = "units::duration")]
    pub window: Duration,
    /// The least share of its weight, 0.0 to 1.0.
    #[serde(serialize_with = "units::percent")]
    pub floor: f64,
    /// 1.0 = evenly; above: faster at the start; below: slower. 0.1 to 10.0.
    pub aggression: f64,
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

impl Endpoint {
    /// A host of weight 1, nothing more.
    #[must_use]
    pub fn host(host: Host, port: u16) -> Self {
        Self { place: Place::Host { host, port }, weight: 1, zone: None, local: false }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(out)
    }
}

impl fmt::Display for Place {
    /// `host:port`, with brackets where they are needed; the name; or the path of the file.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host: Host::Ip(address), port } => {
                SocketAddr::new(*address, *port).fmt(out)
            }
            Self::Host { host: Host::Name(name), port } => write!(out, "{name}:{port}"),
            Self::Srv(name) => out.write_str(name),
            Self::File(path) => path.display().fmt(out),
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

impl Serialize for Place {
    /// One key, as in the file.
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let key = match self {
            Self::Host { .. } => "address",
            Self::Srv(_) => "srv",
            Self::File(_) => "file",
        };
        let mut map = out.serialize_map(Some(1))?;
        map.serialize_entry(key, &self.to_string())?;
        map.end()
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

fn status_ranges<S: Serializer>(ranges: &[StatusRange], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(ranges.iter().map(ToString::to_string))
}

fn number_or_off<S: Serializer>(value: &Option<usize>, out: S) -> Result<S::Ok, S::Error> {
    value_or_off(value, out)
}
