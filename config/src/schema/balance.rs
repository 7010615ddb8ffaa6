//! How an endpoint is chosen, and what is known of endpoints for that.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::KIB;
use super::values::{Abbreviated, Number, Port, Size, Span, Switch, Time};
use crate::validated::{BalancePolicy, Engine, HashTable};

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Balance {
    /// The rule. Default: least_load.
    pub policy: BalancePolicy,
    /// What of a request is hashed; needed by consistent_hash and session_affinity, and only by
    /// these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// How a key is looked up; only with consistent_hash. Default: maglev.
    pub table: HashTable,
    /// How many times its fair share of the load an endpoint may have before a key goes on to the
    /// next, 1.01 to 10 or off; only with consistent_hash. Default: 1.25.
    pub bounded_load: Switch<Number<101, 1_000>>,
    /// How much of the head of a prompt is compared with earlier ones, 1KiB to 32KiB or off; only
    /// with least_load and prefix_affinity. Default: 32KiB.
    pub prefix: Switch<Size<KIB, { 32 * KIB }>>,
}

/// What of a request is hashed: exactly one of the four.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Key {
    /// The value of this request header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The value of this cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// The value of this top-level field of a JSON body, such as user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// `true`: the address of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<bool>,
}

/// What endpoints tell about themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Signals {
    /// Fetches the metrics (Prometheus text) of every endpoint, or off. Default: off.
    pub scrape: Switch<Scrape>,
    /// Asks endpoints for load reports (ORCA) in their answers and believes them. Default: false.
    pub orca: bool,
    /// Asks every endpoint by the agent-check protocol of HAProxy, or off. Default: off.
    pub agent: Switch<Agent>,
    /// Whether the request header x-gateway-destination-endpoint may name one of the endpoints.
    /// Default: false.
    pub gateway: bool,
}

/// Fetches the metrics of every endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Scrape {
    /// The path. Default: /metrics.
    pub path: String,
    /// The port, 1 to 65535. Default: that of the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// From the start of one to the start of the next, 10ms to 1h. Default: 1s.
    pub interval: Span,
    /// Whose names the metrics have; auto finds it out. Default: auto.
    pub engine: Engine,
}

/// Asks every endpoint by the agent-check protocol of HAProxy: a connection is answered with one
/// line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// The port on the host of the endpoint, 1 to 65535.
    pub port: Port,
    /// From the start of one to the start of the next, 10ms to 1h. Default: 2s.
    #[serde(default = "two_seconds")]
    pub interval: Span,
}

fn two_seconds() -> Span {
    Time::seconds(2)
}

/// What distance costs, in the work of one running request: an endpoint further away takes a request
/// when it is less loaded by more than that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Locality {
    /// The zone of this proxy. Default: the environment variable OUTRIGGER_ZONE, or unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// For an endpoint that is not `local`, 0 to 1000. Default: 1.
    pub hop: Number<0, 100_000>,
    /// Instead of `hop` for an endpoint in another zone, 0 to 1000. Default: 4.
    pub far: Number<0, 100_000>,
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            policy: BalancePolicy::LeastLoad,
            key: None,
            table: HashTable::Maglev,
            bounded_load: Switch::On(Number(1.25)),
            prefix: Switch::On(Size(32 * KIB)),
        }
    }
}

impl Abbreviated for Balance {
    type Short = BalancePolicy;
    const FORMS: &'static str = "a policy or a mapping";

    fn from_short(policy: BalancePolicy) -> Self {
        Self { policy, ..Self::default() }
    }

    fn short(&self) -> BalancePolicy {
        self.policy
    }
}

impl Default for Signals {
    fn default() -> Self {
        Self { scrape: Switch::Off, orca: false, agent: Switch::Off, gateway: false }
    }
}

impl Default for Scrape {
    fn default() -> Self {
        Self {
            path: "/metrics".to_owned(),
            port: None,
            interval: Time::seconds(1),
            engine: Engine::Auto,
        }
    }
}

impl Default for Locality {
    fn default() -> Self {
        Self { zone: None, hop: Number(1.0), far: Number(4.0) }
    }
}
