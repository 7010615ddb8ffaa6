//! A backend: its endpoints, how they are asked, and when one is fit.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::admission::{Limit, Queue};
use super::balance::{Balance, Locality, Signals};
use super::ejection::{Breaker, Ejection};
use super::values::{
    Abbreviated, Brief, EndpointEntry, Number, OneOrMany, Percent, StatusEntry, Switch, Time,
    Timeout, Whole,
};
use crate::validated::Protocol;

/// A named group of endpoints with one balancing policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["endpoints"]))]
pub struct Backend {
    /// Where it is served, each as "host:port", "http://host:port" or a mapping. The host is an IP
    /// address or a DNS name, which stands for every address it has and is resolved again as its
    /// time to live ends. At least one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub endpoints: Vec<EndpointEntry>,
    /// What the endpoints speak. Default: http1.
    pub protocol: Protocol,
    /// How an endpoint is chosen: a policy, or a mapping. Default: least_load.
    pub balance: Brief<Balance>,
    /// What endpoints tell about themselves.
    pub signals: Signals,
    /// What distance costs.
    pub locality: Locality,
    /// Requests in flight per endpoint, 1 to 1000000, or off for no limit. Default: off.
    pub max_connections: Switch<Whole<1, 1_000_000>>,
    /// Requests in flight at all endpoints together: a number, `adaptive`, a mapping, or off. Default:
    /// off.
    pub limit: Switch<Brief<Limit>>,
    /// Lets requests wait that are more than `limit`, or for whom every endpoint has `max_connections`
    /// in flight; or off. Default: off.
    pub queue: Switch<Queue>,
    /// An active check of every endpoint. Default: none, an endpoint is ready at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Requests that an endpoint must have answered before it takes traffic: when it is new, ready
    /// again or back from an ejection. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// How an endpoint that has just become ready gets its share of the traffic: a duration, a
    /// mapping, or off for at once. Default: off.
    pub slow_start: Switch<Brief<SlowStart>>,
    /// Leaves out an endpoint that keeps failing requests or does worse than its peers, for a while.
    /// `off` switches it off. Default: on.
    pub ejection: Switch<Ejection>,
    /// Lets requests fail at once while the backend as a whole fails, or off. Default: off.
    pub breaker: Switch<Breaker>,
    /// Idle connections kept per endpoint, 0 to 100000. Default: 256.
    pub idle_connections: Whole<0, 100_000>,
    /// How long an idle connection to an endpoint is kept, 1ms to 7d. Default: 50s.
    pub idle_timeout: Timeout,
    /// Upper bound on the time to live of a DNS answer, 1ms to 7d. Default: 30s.
    pub dns_refresh: Timeout,
}

/// An active check of every endpoint: exactly one of `http` and `tcp`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// The path that a GET must find, such as /health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// `true`: a connection is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<bool>,
    /// From the start of a check to the start of the next, 1ms to 7d. Default: 5s.
    pub interval: Timeout,
    /// How long one check may take, 1ms to 7d. Default: 2s.
    pub timeout: Timeout,
    /// Consecutive successes to become ready, 1 to 100; the first one is enough at the very start.
    /// Default: 2.
    pub healthy: Whole<1, 100>,
    /// Consecutive failures to become unready, 1 to 100. Default: 3.
    pub unhealthy: Whole<1, 100>,
    /// Statuses that are a success: codes such as 200, ranges such as "200-299", 100 to 599.
    /// Default: ["200-299"].
    #[schemars(length(min = 1))]
    pub status: OneOrMany<StatusEntry>,
}

/// Requests that an endpoint must have answered before it takes traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["requests"]))]
pub struct WarmUp {
    /// What is sent, one after the other. At least one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub requests: Vec<WarmUpRequest>,
    /// How long one request may take, 1ms to 7d. Default: 10m.
    pub timeout: Timeout,
    /// The pause after a request that failed, before all are sent again, 1ms to 7d. Default: 2s.
    pub retry: Timeout,
}

/// A request that warms an endpoint up. Any status from 200 to 299 is a success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["path"]))]
pub struct WarmUpRequest {
    /// The path, perhaps with a query, such as /v1/completions.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The method. Default: POST.
    pub method: String,
    /// Request headers. Default: none.
    pub headers: IndexMap<String, String>,
    /// The body. Default: "".
    pub body: String,
    /// How often it is sent, 1 to 1000. Default: 1.
    pub repeat: Whole<1, 1000>,
}

/// How an endpoint that has just become ready gets its share of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SlowStart {
    /// How long until it has all of it, 1ms to 7d. Default: 30s.
    pub window: Timeout,
    /// The least share it has, 0% to 100% of its weight. Default: 10%.
    pub floor: Percent<0, 10_000>,
    /// 1 = its share grows evenly; above, it grows faster at the start; 0.1 to 10. Default: 1.
    pub aggression: Number<10, 1_000>,
}

impl Default for Backend {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            protocol: Protocol::Http1,
            balance: Brief(Balance::default()),
            signals: Signals::default(),
            locality: Locality::default(),
            max_connections: Switch::Off,
            limit: Switch::Off,
            queue: Switch::Off,
            health: None,
            warm_up: None,
            slow_start: Switch::Off,
            ejection: Switch::On(Ejection::default()),
            breaker: Switch::Off,
            idle_connections: Whole(256),
            idle_timeout: Time::seconds(50),
            dns_refresh: Time::seconds(30),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            http: None,
            tcp: None,
            interval: Time::seconds(5),
            timeout: Time::seconds(2),
            healthy: Whole(2),
            unhealthy: Whole(3),
            status: OneOrMany::many([StatusEntry { first: 200, last: 299 }]),
        }
    }
}

impl Default for WarmUp {
    fn default() -> Self {
        Self { requests: Vec::new(), timeout: Time::seconds(600), retry: Time::seconds(2) }
    }
}

impl Default for WarmUpRequest {
    fn default() -> Self {
        Self {
            path: String::new(),
            method: "POST".to_owned(),
            headers: IndexMap::new(),
            body: String::new(),
            repeat: Whole(1),
        }
    }
}

impl Default for SlowStart {
    fn default() -> Self {
        Self { window: Time::seconds(30), floor: Percent(0.1), aggression: Number(1.0) }
    }
}

impl Abbreviated for SlowStart {
    type Short = Timeout;
    const FORMS: &'static str = "a duration such as 30s or a mapping";

    fn from_short(window: Timeout) -> Self {
        Self { window, ..Self::default() }
    }

    fn short(&self) -> Timeout {
        self.window
    }
}
