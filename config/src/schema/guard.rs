//! What happens beside a request: a split that watches over its arms, and copies of requests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Percent, Size, Switch, Time, Timeout, Whole};
use super::{GIB, MIB};

/// Takes an arm of the split out as soon as it is shown to do worse than another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["arm"]))]
pub struct Guard {
    /// The arm that is taken out, such as canary.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub arm: String,
    /// The arm it is compared with. Default: the other one, where there are two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// So many more errors are tolerated, 0% to 100%, in points of the requests. Default: 1%.
    pub errors: Percent<0, 10_000>,
    /// So much later a first byte is tolerated, 0% to 1000%, or off. Default: 10%.
    pub first_byte: Switch<Percent<0, 100_000>>,
    /// So much longer a gap between two pieces of a response is tolerated, 0% to 1000%, or off.
    /// Default: off.
    pub gap: Switch<Percent<0, 100_000>>,
    /// The chance that an arm that is no worse is ever taken out, 0.01% to 20%. Default: 1%.
    pub false_alarm: Percent<1, 2_000>,
    /// How the arm gets more and more of the traffic. Default: by its weight in the split, for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Steps>,
}

/// How an arm gets more and more of the traffic. A step ends when its time has passed and its
/// requests have been answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["weights"]))]
pub struct Steps {
    /// Percent of the traffic for the arm, each 1 to 100, ascending; the other arms share the rest
    /// by their weights. At least one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub weights: Vec<Whole<1, 100>>,
    /// The least time of a step, 1ms to 7d. Default: 10m.
    pub every: Timeout,
    /// The least requests of the arm in a step, 1 to 1000000. Default: 500.
    pub requests: Whole<1, 1_000_000>,
}

/// Sends copies of requests to a backend whose answers are thrown away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["backend"]))]
pub struct Mirror {
    /// The backend that gets the copies.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend: String,
    /// How many of the requests are copied, 0.01% to 100%. Default: 100%.
    pub share: Percent<1, 10_000>,
    /// Copies under way, 1 to 10000; while there are so many, no other is made. Default: 8.
    pub max_in_flight: Whole<1, 10_000>,
    /// Size of a request body, 0B to 1GiB; a longer one is not copied. Default: 1MiB.
    pub body: Size<0, GIB>,
    /// How long a copy may take, 1ms to 7d. Default: 1m.
    pub timeout: Timeout,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            arm: String::new(),
            against: None,
            errors: Percent(0.01),
            first_byte: Switch::On(Percent(0.1)),
            gap: Switch::Off,
            false_alarm: Percent(0.01),
            steps: None,
        }
    }
}

impl Default for Steps {
    fn default() -> Self {
        Self { weights: Vec::new(), every: Time::seconds(600), requests: Whole(500) }
    }
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            backend: String::new(),
            share: Percent(1.0),
            max_in_flight: Whole(8),
            body: Size(MIB),
            timeout: Time::seconds(60),
        }
    }
}
