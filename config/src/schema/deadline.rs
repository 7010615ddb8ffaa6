//! How long each part of a request may take, and what changes while there is much to do.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::values::{Abbreviated, Number, Pause, Percent, Switch, Time, Timeout, Whole};
use crate::validated::{BudgetField, LevelAction, LoadMeasure};

/// How long each part may take: each a duration, `adaptive`, a mapping, or off for no bound. The
/// word `adaptive` instead of all of it: the first byte and the gaps are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Deadline {
    /// To connect to an endpoint, per attempt, 1ms to 7d, adaptive or off. Default: 2s.
    pub connect: Switch<Bound>,
    /// From the sent request to the first byte of the response, 1ms to 7d, adaptive or off. Default:
    /// 2m.
    pub first_byte: Switch<Bound>,
    /// Between two pieces of the response, 1ms to 7d, adaptive or off. Default: 1m.
    pub gap: Switch<Bound>,
    /// From the received request to the end of the response, all attempts together, 1ms to 7d or
    /// off. Default: off.
    pub total: Switch<Timeout>,
    /// Whether the budget that a client sends in grpc-timeout, x-envoy-expected-rq-timeout-ms or
    /// x-request-timeout-ms shortens `total`, and what is left of it is passed on. Default: true.
    pub client_budget: bool,
    /// The one of these headers in which every endpoint is told how much time is left, whatever the
    /// client sent, where there is a bound; or off. Default: off.
    pub tell_endpoint: Switch<BudgetField>,
}

/// A deadline: fixed, or learned.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// Always so long.
    Fixed(Timeout),
    /// Learned from what happens.
    Adaptive(Adaptive),
}

/// A deadline that is learned from what happens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Adaptive {
    /// How it follows from what was seen: quantile, mean_stddev or rto. Default: quantile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Learning>,
    /// The share of the requests that are served within the time that is multiplied by `margin`, 50%
    /// to 99.99%; only for quantile. Default: 99.9%.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantile: Option<Percent<5_000, 9_999>>,
    /// How many times longer than that, 1 to 100; only for quantile. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<Number<100, 10_000>>,
    /// Of how many samples the mean and the deviation are taken, 10 to 10000; only for mean_stddev.
    /// Default: 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<Whole<10, 10_000>>,
    /// How many standard deviations above the mean, 0.5 to 100; only for mean_stddev. Default: 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deviations: Option<Number<50, 10_000>>,
    /// It is never shorter, 1ms to 7d. Default: 250ms to connect, 1s to the first byte, 2s between
    /// two pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<Timeout>,
    /// It is never longer, and just so long while too little is known, 1ms to 7d; at least `floor`.
    /// Default: 2s to connect, 2m to the first byte, 1m between two pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Timeout>,
    /// The share of the requests that have the ceiling whatever is known, to see what lies beyond, 0%
    /// to 50%. Default: 1%.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explore: Option<Percent<0, 5_000>>,
}

/// How a deadline follows from what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Learning {
    /// The time within which nearly all were served, times a margin.
    Quantile,
    /// The mean of the last samples, and some standard deviations.
    MeanStddev,
    /// As TCP waits for an acknowledgement (RFC 6298).
    Rto,
}

/// The word `adaptive` in the place of all deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum AllLearned {
    /// The first byte and the gaps are learned.
    Adaptive,
}

/// What changes while the route has much to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["table"]))]
pub struct Levels {
    /// What is measured: requests_per_second, in_flight, or queue (requests that wait inside the
    /// engines, as these report, the mean of those that do). Default: requests_per_second.
    pub by: LoadMeasure,
    /// The levels, each with a higher `from` than the one before. Below the first nothing changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub table: Vec<Level>,
    /// A level ends when the load is below its `from` by so much, 0% to 90%. Default: 20%.
    pub hysteresis: Percent<0, 9_000>,
    /// And has been for so long, 0s to 7d. Default: 5s.
    pub hold: Pause,
}

/// One level of load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["from"]))]
pub struct Level {
    /// The load from which on it holds, 1 to 1000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Whole<1, 1_000_000>>,
    /// Multiplies the deadlines of the first byte and the gaps, 0.01 to 100. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<Number<1, 10_000>>,
    /// Takes the place of `deadline.first_byte`, 1ms to 7d. Default: the deadline stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<Timeout>,
    /// Takes the place of `deadline.total`, 1ms to 7d. Default: the deadline stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Timeout>,
    /// What becomes of a request: normal (it is served), prefer_stored, only_stored (a stored answer
    /// or 503), shed (503). Default: normal.
    pub action: LevelAction,
}

impl Deadline {
    /// The first byte and the gaps are learned.
    fn learned() -> Self {
        let adaptive = || Switch::On(Bound::Adaptive(Adaptive::default()));
        Self { first_byte: adaptive(), gap: adaptive(), ..Self::default() }
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Self {
            connect: Switch::On(Bound::Fixed(Time::seconds(2))),
            first_byte: Switch::On(Bound::Fixed(Time::seconds(120))),
            gap: Switch::On(Bound::Fixed(Time::seconds(60))),
            total: Switch::Off,
            client_budget: true,
            tell_endpoint: Switch::Off,
        }
    }
}

impl Default for Levels {
    fn default() -> Self {
        Self {
            by: LoadMeasure::RequestsPerSecond,
            table: Vec::new(),
            hysteresis: Percent(0.2),
            hold: Time::seconds(5),
        }
    }
}

impl Abbreviated for Deadline {
    type Short = AllLearned;
    const FORMS: &'static str = "adaptive or a mapping";

    fn from_short(short: AllLearned) -> Self {
        match short {
            AllLearned::Adaptive => Self::learned(),
        }
    }

    fn short(&self) -> AllLearned {
        AllLearned::Adaptive
    }
}

const ADAPTIVE: &str = "adaptive";

struct FixedOrLearned;

impl<'de> Visitor<'de> for FixedOrLearned {
    type Value = Bound;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a duration such as 250ms, adaptive, a mapping")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Bound, E> {
        if text == ADAPTIVE {
            return Ok(Bound::Adaptive(Adaptive::default()));
        }
        if !text.contains(|c: char| c.is_ascii_digit()) {
            return Err(E::unknown_variant(text, &["a duration such as 250ms", ADAPTIVE]));
        }
        Timeout::deserialize(text.into_deserializer()).map(Bound::Fixed)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Bound, E> {
        Timeout::deserialize(number.into_deserializer()).map(Bound::Fixed)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Bound, A::Error> {
        Adaptive::deserialize(MapAccessDeserializer::new(map)).map(Bound::Adaptive)
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(FixedOrLearned)
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(time) => time.serialize(out),
            Self::Adaptive(adaptive) if *adaptive == Adaptive::default() => {
                out.serialize_str(ADAPTIVE)
            }
            Self::Adaptive(adaptive) => adaptive.serialize(out),
        }
    }
}

impl JsonSchema for Bound {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Bound".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (time, mapping) =
            (generator.subschema_for::<Timeout>(), generator.subschema_for::<Adaptive>());
        json_schema!({ "anyOf": [time, { "const": ADAPTIVE }, mapping] })
    }
}
