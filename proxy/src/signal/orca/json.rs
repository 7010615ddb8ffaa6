//! Load reports as JSON: the message's fields in snake or camel case, as the JSON form of protocol
//! buffers has them. In that form a number may also be a text.

use std::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::{Findings, Key, Malformed, Repeated};
use crate::signal::{is_load, load};

/// Reads one object; members that do not matter are skipped.
pub(super) fn read(body: &[u8]) -> Result<Findings, Malformed> {
    // Serde would take a list for the fields in their order.
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(Malformed::new(0, "not an object"));
    }
    let document: Document = serde_json::from_slice(body).map_err(|error| {
        let message = error.to_string();
        // A field's value has one line, so the position is a column.
        let what = message.split(" at line ").next().unwrap_or_default();
        Malformed::new(error.column().saturating_sub(1), what)
    })?;
    document.findings()
}

/// Writes one object after its word. Fields come before entries of the map.
pub(super) fn write(entries: &[(Key, f64)]) -> String {
    let mut text = String::from("JSON {");
    let mut in_map = false;
    for (index, (key, value)) in entries.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let begins = matches!(key, Key::Named(_)) && !in_map;
        let map = if begins { "\"named_metrics\":{" } else { "" };
        in_map |= begins;
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{map}\"{}\":{value}", key.name());
    }
    text.push_str(if in_map { "}}" } else { "}" });
    text
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Document {
    #[serde(alias = "applicationUtilization")]
    application_utilization: Option<Number>,
    #[serde(alias = "cpuUtilization")]
    cpu_utilization: Option<Number>,
    #[serde(alias = "rpsFractional")]
    rps_fractional: Option<Number>,
    #[serde(alias = "namedMetrics")]
    named_metrics: Option<Map>,
    utilization: Option<Map>,
}

impl Document {
    fn findings(self) -> Result<Findings, Malformed> {
        let fields = [
            (Key::ApplicationUtilization, self.application_utilization),
            (Key::CpuUtilization, self.cpu_utilization),
            (Key::RequestsPerSecond, self.rps_fractional),
        ];
        let fields = fields.into_iter().filter_map(|(key, number)| Some((key, number?)));
        let maps = [self.named_metrics, self.utilization];
        let mut findings = Findings::default();
        for (key, Number(value)) in fields.chain(maps.into_iter().flatten().flat_map(|map| map.0)) {
            findings.learn(key, value, Repeated::Refused)?;
        }
        Ok(findings)
    }
}

/// The entries of a map that matter.
struct Map(Vec<(Key, Number)>);

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Map;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            match Key::in_map(name.as_bytes()) {
                Some(key) => entries.push((key, map.next_value()?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Map(entries))
    }
}

/// A number that can be a load.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyNumber)
    }
}

struct AnyNumber;

impl AnyNumber {
    fn number<E: Error>(number: Option<f64>) -> Result<Number, E> {
        number.map(Number).ok_or_else(|| E::custom("not a number from 0 on"))
    }
}

impl Visitor<'_> for AnyNumber {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Number, E> {
        Self::number(Some(number).filter(|number| is_load(*number)))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Number, E> {
        self.visit_f64(number as f64)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Number, E> {
        self.visit_f64(number as f64)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
        Self::number(load(text.as_bytes()))
    }
}
