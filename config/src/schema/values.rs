//! Single values that are more than a string or a number: durations, sizes, bounded numbers, and
//! choices of form.
//!
//! Decides the words of the mistakes. A message may have a second line, which is the help.

/// The parts of a JSON schema that stands where it is used.
macro_rules! inline {
    ($name:literal) => {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            $name.into()
        }
    };
}

mod admission;
mod after;
mod number;

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;

use crate::units;
pub use admission::{LimitWord, Rate};
pub use after::After;
pub use number::{Number, Percent};

const MILLI: u64 = 1_000;
const SECOND: u64 = 1_000 * MILLI;
const HOUR: u64 = 3_600 * SECOND;
const WEEK: u64 = 7 * 24 * HOUR;

/// A duration that bounds something: 1ms to 7d.
pub type Timeout = Time<MILLI, WEEK>;
/// A duration that may be nothing: 0s to 7d.
pub type Pause = Time<0, WEEK>;
/// A duration that repeats, or that is looked back on: 10ms to 1h.
pub type Span = Time<{ 10 * MILLI }, HOUR>;
/// A duration that is hardly noticed: 100us to 1s.
pub type Moment = Time<100, SECOND>;
/// A port that something listens on.
pub type Port = Whole<1, 65_535>;

/// A duration with its unit, such as `250ms`, `2s`, `1h30m`; `MIN` and `MAX` in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time<const MIN: u64, const MAX: u64>(pub Duration);

/// A size with its unit, such as `64KiB`, `1MB`; `MIN` and `MAX` in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size<const MIN: u64, const MAX: u64>(pub u64);

/// A whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole<const MIN: u32, const MAX: u32>(pub u32);

/// A value, or the word `off` (`false` is the same).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch<T> {
    /// The word `off`.
    Off,
    /// The value.
    On(T),
}

/// One value, or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OneOrMany<T>(pub Vec<T>);

/// A mapping, or what [`Abbreviated`] makes of a single value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brief<M>(pub M);

/// A mapping that may be written as one of its values, when the others are the defaults.
pub trait Abbreviated {
    /// The value.
    type Short;
    /// What the forms are called in a mistake.
    const FORMS: &'static str;
    /// Whether a number is such a value.
    const NUMBERS: bool = false;
    /// Whether true and false are such values.
    const BOOLEANS: bool = false;

    /// What the value alone means.
    fn from_short(short: Self::Short) -> Self;

    /// The value in this mapping, whatever else is in it.
    fn short(&self) -> Self::Short;
}

/// Where endpoints are: `"host:port"`, or a mapping. Exactly one of the first three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct EndpointMapping {
    /// Where it is: "host:port" or "http://host:port".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// A DNS name of the form _service._proto.name, whose SRV records are endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub srv: Option<String>,
    /// A file with a list of endpoints, each as "host:port" or a mapping with `address`. It is read
    /// again whenever it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Its share among the endpoints of the backend, 1 to 1000; only with `address`. Default: 1.
    pub weight: EndpointWeight,
    /// The zone it is in. Default: unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether it is this pod's own; only with `address`. Default: false.
    pub local: bool,
}

/// An endpoint as it is written: a text is its address.
pub type EndpointEntry = Brief<EndpointMapping>;

/// The share of an endpoint.
pub type EndpointWeight = Whole<1, 1000>;

/// One status such as `200`, or a range such as `"200-299"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusEntry {
    /// 100 to 599.
    pub first: u16,
    /// At least `first`, at most 599.
    pub last: u16,
}

impl<const MIN: u64, const MAX: u64> Time<MIN, MAX> {
    /// So many seconds; for defaults, which are in range by a test.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// So many milliseconds; for defaults, which are in range by a test.
    #[must_use]
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    fn bounds() -> (Duration, Duration) {
        (Duration::from_micros(MIN), Duration::from_micros(MAX))
    }

    fn read(text: &str) -> Result<Self, String> {
        let value =
            units::parse_duration(text).map_err(|message| format!("{message}{TIME_HELP}"))?;
        let (min, max) = Self::bounds();
        let (low, high) = (units::format_duration(min), long(max));
        match (min..=max).contains(&value) {
            true => Ok(Self(value)),
            false => Err(format!("must be {low} to {high}, found {text}")),
        }
    }
}

const TIME_HELP: &str = "\nwrite a number and a unit: 250ms, 2s, 5m, 1h30m";
const STATUS_HELP: &str = "\nwrite a code or a range, 100 to 599: 200, \"200-299\"";
const SIZE_HELP: &str = "\nwrite a number and a unit: 64KiB, 1MB, 512MiB";

/// A bound, in days where it is whole days.
fn long(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds > 0 && seconds.is_multiple_of(86_400) => {
            format!("{}d", seconds / 86_400)
        }
        _ => units::format_duration(duration),
    }
}

impl<const MIN: u64, const MAX: u64> Size<MIN, MAX> {
    fn read(text: &str) -> Result<Self, String> {
        let value = units::parse_size(text).map_err(|message| format!("{message}{SIZE_HELP}"))?;
        let (low, high) = (units::format_size(MIN), units::format_size(MAX));
        match (MIN..=MAX).contains(&value) {
            true => Ok(Self(value)),
            false => Err(format!("must be {low} to {high}, found {text}")),
        }
    }
}

impl<const MIN: u32, const MAX: u32> Whole<MIN, MAX> {
    fn read<E: de::Error>(number: i128) -> Result<Self, E> {
        let value = u32::try_from(number).ok().filter(|value| (MIN..=MAX).contains(value));
        value.map(Self).ok_or_else(|| E::custom(format!("must be {MIN} to {MAX}, found {number}")))
    }
}

impl<T> OneOrMany<T> {
    /// A list.
    #[must_use]
    pub fn many<const N: usize>(items: [T; N]) -> Self {
        Self(items.into())
    }
}

impl<M: Abbreviated> Brief<M> {
    /// What the value alone means.
    pub fn short(short: M::Short) -> Self {
        Self(M::from_short(short))
    }
}

impl Default for EndpointMapping {
    fn default() -> Self {
        let (address, srv, file, zone) = (None, None, None, None);
        Self { address, srv, file, weight: Whole(1), zone, local: false }
    }
}

impl Abbreviated for EndpointMapping {
    type Short = String;
    const FORMS: &'static str = "\"host:port\" or a mapping";

    fn from_short(address: String) -> Self {
        Self { address: Some(address), ..Self::default() }
    }

    fn short(&self) -> String {
        self.address.clone().unwrap_or_default()
    }
}

impl StatusEntry {
    fn read(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (100 <= first && first <= last && last <= 599).then_some(Self { first, last })
    }
}

// Reading.

struct Text<T>(&'static str, fn(&str) -> Result<T, String>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        let text = number.to_string();
        (self.1)(&text).map_err(E::custom)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Time<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(Text("a duration such as 250ms", Self::read))
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Size<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(Text("a size such as 64KiB", Self::read))
    }
}

impl<'de> Deserialize<'de> for StatusEntry {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let read = |text: &str| {
            Self::read(text).ok_or_else(|| format!("\"{text}\" is not a status{STATUS_HELP}"))
        };
        input.deserialize_any(Text("a status such as 200 or \"200-299\"", read))
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Number<const MIN: u32, const MAX: u32>;

        impl<const MIN: u32, const MAX: u32> Visitor<'_> for Number<MIN, MAX> {
            type Value = Whole<MIN, MAX>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "a whole number ({MIN} to {MAX})")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                Whole::read(number.into())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Whole::read(number.into())
            }
        }

        input.deserialize_any(Number)
    }
}

/// Tells our own reader that the word `off` belongs into the message of a mistake.
pub(crate) const OR_OFF: &str = "or off";

/// Hands every form but the word `off` on to `T`.
struct OffOr<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OffOr<T> {
    type Value = Switch<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        match text {
            "off" => Ok(Switch::Off),
            _ => T::deserialize(text.into_deserializer()).map(Switch::On),
        }
    }

    /// `false` is what YAML 1.1 tools make of the word before it gets here.
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        match value {
            true => T::deserialize(value.into_deserializer()).map(Switch::On),
            false => Ok(Switch::Off),
        }
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_any(self)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        T::deserialize(number.into_deserializer()).map(Switch::On)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        T::deserialize(number.into_deserializer()).map(Switch::On)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        T::deserialize(number.into_deserializer()).map(Switch::On)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Switch::On)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Switch<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_newtype_struct(OR_OFF, OffOr(PhantomData))
    }
}

struct ListOr<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListOr<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value or a list")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        T::deserialize(text.into_deserializer()).map(|one| OneOrMany(vec![one]))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        T::deserialize(value.into_deserializer()).map(|one| OneOrMany(vec![one]))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        T::deserialize(number.into_deserializer()).map(|one| OneOrMany(vec![one]))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        T::deserialize(number.into_deserializer()).map(|one| OneOrMany(vec![one]))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        T::deserialize(number.into_deserializer()).map(|one| OneOrMany(vec![one]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(OneOrMany)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(ListOr(PhantomData))
    }
}

struct ShortOr<M>(PhantomData<M>);

impl<'de, M> Visitor<'de> for ShortOr<M>
where
    M: Abbreviated<Short: Deserialize<'de>> + Deserialize<'de>,
{
    type Value = Brief<M>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(M::FORMS)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        M::Short::deserialize(text.into_deserializer()).map(Brief::short)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        match M::NUMBERS {
            true => M::Short::deserialize(number.into_deserializer()).map(Brief::short),
            false => Err(E::invalid_type(de::Unexpected::Unsigned(number), &self)),
        }
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        match M::BOOLEANS {
            true => M::Short::deserialize(value.into_deserializer()).map(Brief::short),
            false => Err(E::invalid_type(de::Unexpected::Bool(value), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        M::deserialize(MapAccessDeserializer::new(map)).map(Brief)
    }
}

impl<'de, M> Deserialize<'de> for Brief<M>
where
    M: Abbreviated<Short: Deserialize<'de>> + Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(ShortOr(PhantomData))
    }
}

// Printing, for the defaults in the JSON schema.

impl<const MIN: u64, const MAX: u64> Serialize for Time<MIN, MAX> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&units::format_duration(self.0))
    }
}

impl<const MIN: u64, const MAX: u64> Serialize for Size<MIN, MAX> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&units::format_size(self.0))
    }
}

impl<const MIN: u32, const MAX: u32> Serialize for Whole<MIN, MAX> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_u32(self.0)
    }
}

impl<T: Serialize> Serialize for Switch<T> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => out.serialize_str("off"),
            Self::On(value) => value.serialize(out),
        }
    }
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(out)
    }
}

impl<M> Serialize for Brief<M>
where
    M: Abbreviated<Short: Serialize> + Serialize + PartialEq,
{
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.0 == M::from_short(self.0.short()) {
            true => self.0.short().serialize(out),
            false => self.0.serialize(out),
        }
    }
}

impl Serialize for StatusEntry {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.first == self.last {
            true => out.serialize_u16(self.first),
            false => out.collect_str(&format_args!("{}-{}", self.first, self.last)),
        }
    }
}

// The JSON schema.

impl<const MIN: u64, const MAX: u64> JsonSchema for Time<MIN, MAX> {
    inline!("Time");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let (min, max) = Self::bounds();
        json_schema!({
            "type": "string",
            "pattern": r"^([0-9]+(\.[0-9]+)?(d|h|m|s|ms|us|ns))+$",
            "x-minimum": units::format_duration(min),
            "x-maximum": long(max),
        })
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Size<MIN, MAX> {
    inline!("Size");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^[0-9]+(\.[0-9]+)?(B|[kK]B|MB|GB|TB|KiB|MiB|GiB|TiB)$",
            "x-minimum": units::format_size(MIN),
            "x-maximum": units::format_size(MAX),
        })
    }
}

impl<const MIN: u32, const MAX: u32> JsonSchema for Whole<MIN, MAX> {
    inline!("Whole");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl<T: JsonSchema> JsonSchema for Switch<T> {
    inline!("Switch");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [{ "enum": ["off", false] }, value] })
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    inline!("OneOrMany");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [value, { "type": "array", "items": value, "minItems": 1 }] })
    }
}

impl<M: Abbreviated<Short: JsonSchema> + JsonSchema> JsonSchema for Brief<M> {
    inline!("Brief");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let short = generator.subschema_for::<M::Short>();
        let mapping = generator.subschema_for::<M>();
        json_schema!({ "anyOf": [short, mapping] })
    }
}

impl JsonSchema for StatusEntry {
    inline!("StatusEntry");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 100, "maximum": 599 },
            { "type": "string", "pattern": "^[1-5][0-9][0-9](-[1-5][0-9][0-9])?$" },
        ] })
    }
}
