//! The values of admission: a limit in one word, and a rate.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::Whole;
use crate::units;

/// A number of requests in flight, or the word `adaptive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitWord {
    /// So many.
    InFlight(Whole<1, 1_000_000>),
    /// As many as the model servers bear.
    Adaptive,
}

/// So many in a time, such as `100/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u64,
    /// A second, a minute, an hour or a day.
    pub period: Duration,
}

const RATE_HELP: &str =
    "\nwrite a whole number, a slash and a unit (s, min, h, d): 100/s, 1000000/min";

struct Word;

impl Visitor<'_> for Word {
    type Value = LimitWord;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a number, adaptive, a mapping")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<LimitWord, E> {
        match text {
            "adaptive" => Ok(LimitWord::Adaptive),
            _ => Err(E::invalid_type(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<LimitWord, E> {
        Whole::read(number.into()).map(LimitWord::InFlight)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<LimitWord, E> {
        Whole::read(number.into()).map(LimitWord::InFlight)
    }
}

impl<'de> Deserialize<'de> for LimitWord {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(Word)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let read = |text: &str| match units::parse_rate(text) {
            Ok((count, period)) => Ok(Rate { count, period }),
            Err(message) => Err(format!("{message}{RATE_HELP}")),
        };
        input.deserialize_any(super::Text("a rate such as 100/s", read))
    }
}

impl Serialize for LimitWord {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::InFlight(most) => most.serialize(out),
            Self::Adaptive => out.serialize_str("adaptive"),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&units::format_rate(self.count, self.period))
    }
}

impl JsonSchema for LimitWord {
    inline!("LimitWord");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "const": "adaptive" },
            { "type": "integer", "minimum": 1, "maximum": 1_000_000 },
        ] })
    }
}

impl JsonSchema for Rate {
    inline!("Rate");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+/(s|min|h|d)$" })
    }
}
