//! Where traces go.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{Host, Secret, as_map};
use crate::units;

/// Traces of requests, and the collector that gets them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tracing {
    /// Where the collector listens.
    pub endpoint: Collector,
    /// The share of the requests without a trace of their own that are traced, 0 to 1.
    #[serde(serialize_with = "units::percent")]
    pub sample: f64,
    /// What the proxy is called in traces; not empty.
    pub service_name: String,
    /// What else is told of the proxy; each name once.
    #[serde(serialize_with = "as_map")]
    pub attributes: Vec<(String, String)>,
    /// Request headers (lower case) for the collector; each once.
    #[serde(serialize_with = "as_map")]
    pub headers: Vec<(String, Secret)>,
    /// How long one batch may take, with all its tries.
    #[serde(serialize_with = "units::duration")]
    pub timeout: Duration,
    /// Requests whose spans may wait, 16 to 65536.
    pub queue: usize,
}

/// A collector that takes OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// Its host.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// The path of traces there; begins with a slash.
    pub path: String,
}

impl Collector {
    /// Host and port, as they stand in an address.
    #[must_use]
    pub fn authority(&self) -> String {
        match &self.host {
            Host::Ip(std::net::IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            host => format!("{host}:{}", self.port),
        }
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "http://{}{}", self.authority(), self.path)
    }
}

impl Serialize for Collector {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}
