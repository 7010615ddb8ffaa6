//! What happens beside a request: a split that watches over its arms, and copies of requests.

use std::time::Duration;

use serde::Serialize;

use crate::units;

/// Takes an arm of a split out as soon as it is shown to do worse than another one, and leads it
/// through its steps until then.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Guard {
    /// The place of the guarded arm in [`Action::Split`].
    ///
    /// [`Action::Split`]: super::Action::Split
    #[serde(skip)]
    pub arm: usize,
    /// Its name.
    #[serde(rename = "arm")]
    pub arm_name: String,
    /// The place of the arm it is compared with; another one.
    #[serde(skip)]
    pub against: usize,
    /// Its name.
    #[serde(rename = "against")]
    pub against_name: String,
    /// So many more errors are tolerated; share points of the requests, 0.0 to 1.0.
    #[serde(serialize_with = "units::percent")]
    pub errors: f64,
    /// So much slower a first byte is tolerated; a share of that of the other arm, 0.0 to 10.0.
    /// `None` = not compared.
    #[serde(serialize_with = "units::percent_or_off")]
    pub first_byte: Option<f64>,
    /// The same for the gaps between two pieces of a response.
    #[serde(serialize_with = "units::percent_or_off")]
    pub gap: Option<f64>,
    /// The chance that an arm that is no worse is ever taken out, 0.0001 to 0.2.
    #[serde(serialize_with = "units::percent")]
    pub false_alarm: f64,
    /// How the arm gets its traffic; `None` = by its weight in the split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Steps>,
}

/// How an arm gets more and more of the traffic. Each step is kept until both its time and its
/// requests have passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// Percent of the traffic, each 1 to 100; at least one, ascending. The other arms share the rest
    /// by their weights.
    pub weights: Vec<u32>,
    /// The least time of a step.
    #[serde(serialize_with = "units::duration")]
    pub every: Duration,
    /// The least requests of the arm in a step, 1 to 1000000.
    pub requests: u32,
}

/// Sends copies of requests to a backend whose answers are thrown away.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mirror {
    /// Its place in [`Config::backends`].
    ///
    /// [`Config::backends`]: super::Config::backends
    #[serde(skip)]
    pub backend: usize,
    /// Its name.
    #[serde(rename = "backend")]
    pub name: String,
    /// How many of the requests are copied; above 0.0 to 1.0.
    #[serde(serialize_with = "units::percent")]
    pub share: f64,
    /// Copies under way; while there are so many, no other is made. 1 to 10000.
    pub max_in_flight: usize,
    /// Bytes of a request body; a longer one is not copied.
    #[serde(serialize_with = "units::size")]
    pub body: u64,
    /// How long a copy may take.
    #[serde(serialize_with = "units::duration")]
    pub timeout: Duration,
}
