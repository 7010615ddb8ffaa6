//! How an endpoint is chosen, and what is known of endpoints for that.

use std::time::Duration;

use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::value_or_off;
use crate::units;

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// By what rule.
    pub policy: BalancePolicy,
    /// What is hashed; there if and only if [`BalancePolicy::needs_key`].
    pub key: Option<Key>,
    /// How a key is looked up; means something to `consistent_hash` only.
    pub table: HashTable,
    /// How many times its fair share of the load an endpoint may have before a key goes on to the
    /// next, 1.01 to 10; `None` = off, and `None` unless the policy is `consistent_hash`.
    pub bounded_load: Option<f64>,
    /// How many bytes of the head of a prompt are compared, 1024 to 32768; `None` = off, and `None`
    /// unless [`BalancePolicy::compares_prompts`].
    pub prefix: Option<usize>,
}

/// The rule by which an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BalancePolicy {
    /// The one with the least to do, by everything that is known of it.
    LeastLoad,
    /// The one with the least work in flight from here for its weight.
    LeastConnection,
    /// The better of two drawn at random.
    PowerOfTwo,
    /// The one with the lowest latency times load; latency rises at once and falls slowly.
    PeakEwma,
    /// The one that has been answering soonest.
    LeastTime,
    /// Among those with few in flight the fastest, else the one with the fewest in flight.
    Prequal,
    /// The same key goes to the same endpoint, and few keys move when endpoints change.
    ConsistentHash,
    /// The one that has served the longest head of this prompt, unless it has too much to do.
    PrefixAffinity,
    /// The one that has served this key before, unless it has too much to do.
    SessionAffinity,
    /// One after the other, by weight.
    RoundRobin,
}

/// What of a request is hashed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// The value of this request header (lower case).
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The value of this top-level field of a JSON body; see [`Route::key_fields`].
    ///
    /// [`Route::key_fields`]: super::Route::key_fields
    Body(String),
    /// The address of the client, without its port.
    Client,
}

/// How a key is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashTable {
    /// A table whose every endpoint has its exact share; one look-up.
    Maglev,
    /// A ring of points; the fewest keys move when endpoints change.
    Ring,
}

/// What endpoints tell about themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Signals {
    /// Metrics that are fetched; `None` = off.
    #[serde(serialize_with = "value_or_off")]
    pub scrape: Option<Scrape>,
    /// Whether answers are asked for load reports (ORCA), and these are believed.
    pub orca: bool,
    /// The agent-check of HAProxy; `None` = off.
    #[serde(serialize_with = "value_or_off")]
    pub agent: Option<Agent>,
    /// Whether `x-gateway-destination-endpoint` may name one of the endpoints.
    pub gateway: bool,
}

/// Metrics (Prometheus text) that are fetched from every endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Scrape {
    /// With its query, if it has one.
    pub path: String,
    /// 1 to 65535; `None` = that of the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// From the start of one to the start of the next.
    #[serde(serialize_with = "units::duration")]
    pub interval: Duration,
    /// Whose names the metrics have.
    pub engine: Engine,
}

/// The inference server that an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Found out by the names of its metrics.
    Auto,
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// Text Generation Inference.
    Tgi,
    /// The server of llama.cpp.
    LlamaCpp,
    /// TensorRT-LLM's own server.
    TensorrtLlm,
    /// Triton.
    Triton,
}

/// The agent-check of HAProxy: a connection is answered with one line about the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// 1 to 65535, on the host of the endpoint.
    pub port: u16,
    /// From the start of one to the start of the next.
    #[serde(serialize_with = "units::duration")]
    pub interval: Duration,
}

/// What distance costs, in the work of one running request: by so much an endpoint further away must
/// be less loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Locality {
    /// Where this proxy is; `None` = what `$OUTRIGGER_ZONE` says, if it is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// For an endpoint that is not [`Endpoint::local`], 0 to 1000.
    ///
    /// [`Endpoint::local`]: super::Endpoint::local
    pub hop: f64,
    /// Instead of `hop` for an endpoint that is known to be in another zone, 0 to 1000.
    pub far: f64,
}

impl Balance {
    /// The policy with everything else at its default. One that needs a key has none yet.
    #[must_use]
    pub fn of(policy: BalancePolicy) -> Self {
        Self {
            policy,
            key: None,
            table: HashTable::Maglev,
            bounded_load: policy.is_hash().then_some(1.25),
            prefix: policy.compares_prompts().then_some(32 << 10),
        }
    }
}

impl BalancePolicy {
    /// Its name in the configuration and in metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LeastLoad => "least_load",
            Self::LeastConnection => "least_connection",
            Self::PowerOfTwo => "power_of_two",
            Self::PeakEwma => "peak_ewma",
            Self::LeastTime => "least_time",
            Self::Prequal => "prequal",
            Self::ConsistentHash => "consistent_hash",
            Self::PrefixAffinity => "prefix_affinity",
            Self::SessionAffinity => "session_affinity",
            Self::RoundRobin => "round_robin",
        }
    }

    /// Whether it chooses by a key of the request.
    #[must_use]
    pub fn needs_key(self) -> bool {
        matches!(self, Self::ConsistentHash | Self::SessionAffinity)
    }

    /// Whether it keeps a table of keys.
    #[must_use]
    pub fn is_hash(self) -> bool {
        self == Self::ConsistentHash
    }

    /// Whether it compares the heads of prompts.
    #[must_use]
    pub fn compares_prompts(self) -> bool {
        matches!(self, Self::LeastLoad | Self::PrefixAffinity)
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self::of(BalancePolicy::LeastLoad)
    }
}

impl Default for Locality {
    fn default() -> Self {
        Self { zone: None, hop: 1.0, far: 4.0 }
    }
}

impl Serialize for Balance {
    /// What means something to the policy.
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(None)?;
        map.serialize_entry("policy", &self.policy)?;
        if let Some(key) = &self.key {
            map.serialize_entry("key", key)?;
        }
        if self.policy.is_hash() {
            map.serialize_entry("table", &self.table)?;
            map.serialize_entry("bounded_load", &OrOff(self.bounded_load))?;
        }
        if self.policy.compares_prompts() {
            let prefix = self.prefix.map(|bytes| units::format_size(bytes as u64));
            map.serialize_entry("prefix", &OrOff(prefix))?;
        }
        map.end()
    }
}

struct OrOff<T>(Option<T>);

impl<T: Serialize> Serialize for OrOff<T> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        value_or_off(&self.0, out)
    }
}
