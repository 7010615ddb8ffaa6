//! Numbers with a fraction: plain ones, and percentages.
//!
//! Bounds are hundredths, because a type takes no fractions.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::units;

/// A number; `MIN` and `MAX` in hundredths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number<const MIN: u32, const MAX: u32>(pub f64);

/// A share, written as a percentage such as `5%` or `0.5%`, or as a number that means percent; kept
/// as 0.05 or 0.005. `MIN` and `MAX` in hundredths of a percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percent<const MIN: u32, const MAX: u32>(pub f64);

const HELP: &str = "\nwrite a number and a sign: 5%, 0.5%";

fn hundredths(bound: u32) -> f64 {
    f64::from(bound) / 100.0
}

impl<const MIN: u32, const MAX: u32> Number<MIN, MAX> {
    fn read<E: de::Error>(number: f64) -> Result<Self, E> {
        let (min, max) = (hundredths(MIN), hundredths(MAX));
        match (min..=max).contains(&number) {
            true => Ok(Self(number)),
            false => Err(E::custom(format!("must be {min} to {max}, found {number}"))),
        }
    }
}

impl<const MIN: u32, const MAX: u32> Percent<MIN, MAX> {
    /// From a share; `written` is what a mistake quotes.
    fn read<E: de::Error>(share: f64, written: &str) -> Result<Self, E> {
        let (min, max) = (hundredths(MIN), hundredths(MAX));
        match (min / 100.0..=max / 100.0).contains(&share) {
            true => Ok(Self(share)),
            false => Err(E::custom(format!("must be {min}% to {max}%, found {written}"))),
        }
    }
}

struct Plain<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Visitor<'_> for Plain<MIN, MAX> {
    type Value = Number<MIN, MAX>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "a number ({} to {})", hundredths(MIN), hundredths(MAX))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        Number::read(number)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Number::read(number as f64)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Number::read(number as f64)
    }
}

struct Share<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Visitor<'_> for Share<MIN, MAX> {
    type Value = Percent<MIN, MAX>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a percentage such as 5%")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let share = units::parse_percent(text);
        let share = share.map_err(|message| E::custom(format!("{message}{HELP}")))?;
        Percent::read(share, text)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        Percent::read(number / 100.0, &number.to_string())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Percent::read(number as f64 / 100.0, &number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Percent::read(number as f64 / 100.0, &number.to_string())
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Number<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(Plain)
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Percent<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(Share)
    }
}

impl<const MIN: u32, const MAX: u32> Serialize for Number<MIN, MAX> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        json(self.0).serialize(out)
    }
}

impl<const MIN: u32, const MAX: u32> Serialize for Percent<MIN, MAX> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&units::format_percent(self.0))
    }
}

/// As a person writes it: 4, not 4.0.
fn json(number: f64) -> serde_json::Value {
    let whole = number as i64;
    if whole as f64 == number { whole.into() } else { number.into() }
}

impl<const MIN: u32, const MAX: u32> JsonSchema for Number<MIN, MAX> {
    inline!("Number");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let (min, max) = (json(hundredths(MIN)), json(hundredths(MAX)));
        json_schema!({ "type": "number", "minimum": min, "maximum": max })
    }
}

impl<const MIN: u32, const MAX: u32> JsonSchema for Percent<MIN, MAX> {
    inline!("Percent");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let (min, max) = (hundredths(MIN), hundredths(MAX));
        json_schema!({
            "type": ["string", "number"],
            "pattern": r"^[0-9]+(\.[0-9]+)?%$",
            "minimum": json(min),
            "maximum": json(max),
            "x-minimum": format!("{min}%"),
            "x-maximum": format!("{max}%"),
        })
    }
}
