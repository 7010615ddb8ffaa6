//! How long each part of a request may take.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::value_or_off;
use crate::units;

/// How long each part of a request may take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deadline {
    /// To connect to an endpoint, per attempt.
    pub connect: Bound,
    /// From the sent request to the first byte of the response.
    pub first_byte: Bound,
    /// Between two pieces of the response.
    pub gap: Bound,
    /// From the received request head to the end of the response, all attempts together; `None` = no
    /// bound.
    #[serde(serialize_with = "units::duration_or_off")]
    pub total: Option<Duration>,
    /// Whether the budget that a client sends along shortens `total`, and what is left of it is passed
    /// on.
    pub client_budget: bool,
    /// The field in which every endpoint is told how much time is left; `None` = none but those that
    /// the client sent.
    #[serde(serialize_with = "value_or_off")]
    pub tell_endpoint: Option<BudgetField>,
}

/// One deadline.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// No bound.
    Off,
    /// So long.
    Fixed(Duration),
    /// What is learned, within limits.
    Adaptive(Adaptive),
}

/// A deadline that is learned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Adaptive {
    /// How it follows from what was seen.
    #[serde(flatten)]
    pub strategy: Strategy,
    /// It is never shorter.
    #[serde(serialize_with = "units::duration")]
    pub floor: Duration,
    /// It is never longer, and just so long while too little is known; at least `floor`.
    #[serde(serialize_with = "units::duration")]
    pub ceiling: Duration,
    /// The share of the requests that have the ceiling whatever is known, 0.0 to 0.5.
    #[serde(serialize_with = "units::percent")]
    pub explore: f64,
}

/// How a deadline follows from what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "strategy", rename_all = "snake_case")]
pub enum Strategy {
    /// The time within which this share of the requests was served, times a margin.
    Quantile {
        /// Above 0.5, below 1.0.
        #[serde(serialize_with = "units::percent")]
        quantile: f64,
        /// 1.0 to 100.0.
        margin: f64,
    },
    /// The mean of the last `samples`, and so many standard deviations above it.
    MeanStddev {
        /// 10 to 10000.
        samples: usize,
        /// 0.5 to 100.0.
        deviations: f64,
    },
    /// As TCP waits for an acknowledgement (RFC 6298).
    Rto,
}

/// A header field that says how much time is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BudgetField {
    /// Of gRPC: a number and a unit.
    GrpcTimeout,
    /// Of Envoy: milliseconds.
    XEnvoyExpectedRqTimeoutMs,
    /// Milliseconds.
    XRequestTimeoutMs,
}

impl Bound {
    /// The longest that it can be; `None` = no bound.
    #[must_use]
    pub fn longest(&self) -> Option<Duration> {
        match self {
            Self::Off => None,
            Self::Fixed(limit) => Some(*limit),
            Self::Adaptive(adaptive) => Some(adaptive.ceiling),
        }
    }

    /// How it is learned, if it is.
    #[must_use]
    pub fn adaptive(&self) -> Option<&Adaptive> {
        match self {
            Self::Adaptive(adaptive) => Some(adaptive),
            Self::Off | Self::Fixed(_) => None,
        }
    }
}

impl Deadline {
    /// Whether anything of it is learned.
    #[must_use]
    pub fn is_learned(&self) -> bool {
        [&self.connect, &self.first_byte, &self.gap].iter().any(|it| it.adaptive().is_some())
    }
}

impl Strategy {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Quantile { .. } => "quantile",
            Self::MeanStddev { .. } => "mean_stddev",
            Self::Rto => "rto",
        }
    }
}

impl BudgetField {
    /// Every field.
    pub const ALL: [Self; 3] =
        [Self::GrpcTimeout, Self::XEnvoyExpectedRqTimeoutMs, Self::XRequestTimeoutMs];

    /// Its name, in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GrpcTimeout => "grpc-timeout",
            Self::XEnvoyExpectedRqTimeoutMs => "x-envoy-expected-rq-timeout-ms",
            Self::XRequestTimeoutMs => "x-request-timeout-ms",
        }
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => out.serialize_str("off"),
            Self::Fixed(limit) => units::duration(limit, out),
            Self::Adaptive(adaptive) => adaptive.serialize(out),
        }
    }
}
