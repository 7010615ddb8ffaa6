//! Where traces go.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Percent, Time, Timeout, Whole};

/// Traces of requests, sent to a collector of OpenTelemetry by OTLP over HTTP. A change needs a restart.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
#[schemars(extend("required" = ["endpoint"]))]
pub struct Tracing {
    /// The collector, such as http://collector:4318; without a port 4318, without a path /v1/traces.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// How many of the requests that come without a trace are traced, 0% to 100%. Of one that comes with a trace its
    /// sender has decided. Default: 1%.
    pub sample: Percent<0, 10_000>,
    /// What the proxy is called in traces. Default: outrigger.
    pub service_name: String,
    /// What else is told of the proxy with every trace (resource attributes), such as k8s.namespace.name. Default: none.
    pub attributes: IndexMap<String, String>,
    /// Request headers for the collector. A value may be file:/path of a file that holds it, or env:NAME of an
    /// environment variable; both are read at the start. Default: none.
    pub headers: IndexMap<String, String>,
    /// How long one batch of spans may take, with all its tries, 1ms to 7d. Default: 10s.
    pub timeout: Timeout,
    /// Requests whose spans may wait to be sent; further ones are dropped, 16 to 65536. Default: 4096.
    pub queue: Whole<16, 65_536>,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            sample: Percent(0.01),
            service_name: "outrigger".to_owned(),
            attributes: IndexMap::new(),
            headers: IndexMap::new(),
            timeout: Time::seconds(10),
            queue: Whole(4096),
        }
    }
}

/// Without the headers: they may be secrets.
impl std::fmt::Debug for Tracing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tracing").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
