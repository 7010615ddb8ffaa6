//! When something is due: after a duration, or after a percentile of what is learned.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

use super::{HOUR, MILLI, Text, Time};
use crate::validated::HedgeAfter;

/// A duration of 1ms to 1h, or a percentile of p50 to p99.9.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct After(pub HedgeAfter);

const HELP: &str = "\nwrite a percentile or a duration: p95, 300ms";

impl After {
    /// A percentile; for defaults, which are in range by a test.
    #[must_use]
    pub fn percentile(percent: f64) -> Self {
        // To the share that one would write: 99.9 / 100 is a hair more than 0.999.
        Self(HedgeAfter::Percentile((percent * 1e3).round() / 1e5))
    }

    fn read(text: &str) -> Result<Self, String> {
        match text.strip_prefix('p') {
            Some(percent) => Self::read_percentile(percent, text),
            None => Time::<MILLI, HOUR>::read(text).map(|time| Self(HedgeAfter::Fixed(time.0))),
        }
    }

    fn read_percentile(percent: &str, text: &str) -> Result<Self, String> {
        // Only digits and a point: a number can also be written in ways that nobody means here.
        let plain = percent.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let value = percent.parse::<f64>().ok().filter(|_| plain);
        match value {
            None => Err(format!("\"{text}\" is neither a percentile nor a duration{HELP}")),
            Some(value) if !(50.0..=99.9).contains(&value) => {
                Err(format!("must be p50 to p99.9, found {text}"))
            }
            Some(value) => Ok(Self::percentile(value)),
        }
    }
}

impl<'de> Deserialize<'de> for After {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(Text(
            "a percentile such as p95, or a duration such as 300ms",
            Self::read,
        ))
    }
}

impl Serialize for After {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(out)
    }
}

impl JsonSchema for After {
    inline!("After");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let time = generator.subschema_for::<Time<MILLI, HOUR>>();
        json_schema!({ "anyOf": [{ "type": "string", "pattern": "^p[5-9][0-9](\\.[0-9]+)?$" }, time] })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(text: &str) -> Result<HedgeAfter, String> {
        After::read(text).map(|after| after.0)
    }

    #[test]
    fn percentiles_and_durations_are_read() {
        assert_eq!(read("p95"), Ok(HedgeAfter::Percentile(0.95)));
        assert_eq!(read("p99.9").map(|it| it.to_string()), Ok("p99.9".to_owned()));
        assert_eq!(read("300ms"), Ok(HedgeAfter::Fixed(Duration::from_millis(300))));
    }

    #[test]
    fn nothing_else_is() {
        for text in ["p", "p49", "p100", "p9e1", "p-95", "95", "pinf", "", "0s", "2h", "p95%"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
