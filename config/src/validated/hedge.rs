//! A second attempt at another endpoint while the first one has not begun to answer.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::units;

/// When a second endpoint is asked, and how often that may be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hedge {
    /// How long after the request has been sent in full.
    pub after: HedgeAfter,
    /// Hedges for each request of the route; a share, above 0.0 to 1.0.
    #[serde(serialize_with = "units::percent")]
    pub budget: f64,
    /// Hedges of one request, 1 to 4.
    pub max: u32,
}

/// When a hedge is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HedgeAfter {
    /// After this time, 1ms to 1h.
    Fixed(Duration),
    /// When so large a share of first bytes has come by then; 0.5 to 0.999.
    Percentile(f64),
}

impl fmt::Display for HedgeAfter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(after) => out.write_str(&units::format_duration(*after)),
            // Three decimals of a percent, or 99.9 would not be itself.
            Self::Percentile(share) => write!(out, "p{}", (share * 1e5).round() / 1e3),
        }
    }
}

impl Serialize for HedgeAfter {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}
