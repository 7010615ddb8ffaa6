//! Load reports on answers: Open Request Cost Aggregation (ORCA), read from engines and written for
//! clients.
//!
//! Why it exists: a report on an answer costs no request of its own and is as fresh as the answer.
//! vLLM and Triton write such reports when they are asked; proxies before us (Envoy, gRPC clients,
//! another Outrigger) understand them.
//!
//! What it decides: which of the forms a field has, and what of it is a load. A report has many
//! fields of which few matter here; the others are not judged.
//! What it leaves out: when to ask, whom to believe, and for how long.
//!
//! | field | value |
//! |---|---|
//! | `endpoint-load-metrics` | `TEXT key=value, …`, `JSON {…}` or `BIN <base64>` |
//! | `endpoint-load-metrics-json` | `{…}`, or `JSON {…}` |
//! | `endpoint-load-metrics-bin` | `<base64>`; gRPC servers send it among the trailers |
//!
//! Sources: the ORCA text of cncf/xds, `xds/data/orca/v3/orca_load_report.proto`, the parser of
//! Envoy, and the writers of vLLM and Triton. Between key and value of the text form vLLM, Triton
//! and the ORCA text put `=` and Envoy expects `:`; both are read and `=` is written. A text
//! without a first word is read as Envoy once wrote it.

mod json;
mod protobuf;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use memchr::memchr2;

use super::is_load;
use crate::balance::reported::Report;

/// The request field by which a client asks for a report: `text`, `json` or `bin`. In lower case,
/// because Triton takes any other for none.
pub const FORMAT: &str = "endpoint-load-metrics-format";

/// The response fields (or trailers) that hold a report, the usual one first.
pub const HEADERS: [&str; 3] = [TAGGED, BARE_JSON, BARE_BIN];

const TAGGED: &str = "endpoint-load-metrics";
const BARE_JSON: &str = "endpoint-load-metrics-json";
const BARE_BIN: &str = "endpoint-load-metrics-bin";

/// The longest value that is read, in bytes.
pub const MAX_VALUE: usize = 16 * 1024;

/// Padding may be missing, as it is in gRPC's metadata.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a report says, as far as it is understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// What balancing wants to know. `utilization` is `application_utilization`, or else
    /// `cpu_utilization`, as gRPC's weighted round robin has it (gRFC A58); zero means that nobody
    /// set it. `kv_usage` above 1 is read as 1.
    pub report: Report,
    /// The 95th percentile of the time to the first byte, in milliseconds: ours, no engine reports
    /// it.
    pub first_byte_p95_ms: Option<f64>,
    /// Requests per second. Envoy's weighted round robin makes nothing of a report without it.
    pub requests_per_second: Option<f64>,
}

/// A form in which a client may ask for a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Keys and values.
    Text,
    /// JSON.
    Json,
    /// Protocol buffers in base64.
    Bin,
}

impl Format {
    /// The format that the value of [`FORMAT`] names, in any case.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let formats = [("text", Format::Text), ("json", Format::Json), ("bin", Format::Bin)];
        let is = |word: &str| name.trim_ascii().eq_ignore_ascii_case(word);
        formats.into_iter().find_map(|(word, format)| is(word).then_some(format))
    }
}

/// Why a report can not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The byte where it is wrong, from 0: of the field's value, or of what its base64 decodes to.
    pub at: usize,
    /// What is wrong.
    pub what: String,
}

impl Malformed {
    fn new(at: usize, what: impl Into<String>) -> Self {
        Malformed { at, what: what.into() }
    }

    /// The same for a part that begins at `offset`.
    fn after(self, offset: usize) -> Self {
        Malformed { at: self.at + offset, ..self }
    }
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "load report: {} at byte {}", self.what, self.at)
    }
}

impl std::error::Error for Malformed {}

/// Reads the value of one of [`HEADERS`].
///
/// # Errors
/// [`Malformed`] when the value is not of the form that it claims to have, or a value that is needed
/// is not a number from 0 on.
pub fn read(header: &str, value: &[u8]) -> Result<Load, Malformed> {
    if value.len() > MAX_VALUE {
        return Err(Malformed::new(MAX_VALUE, "too long"));
    }
    let (format, at) = form(header, value);
    let body = &value[at..];
    let findings = match format {
        Format::Text => text(body).map_err(|error| error.after(at))?,
        Format::Json => json::read(body).map_err(|error| error.after(at))?,
        Format::Bin => protobuf::read(&decode(body).map_err(|error| error.after(at))?)?,
    };
    Ok(findings.load())
}

/// The form of a value, and where it begins.
fn form(header: &str, value: &[u8]) -> (Format, usize) {
    let start = value.len() - value.trim_ascii_start().len();
    if header.eq_ignore_ascii_case(BARE_BIN) {
        return (Format::Bin, start);
    }
    let word = value[start..].split(u8::is_ascii_whitespace).next().unwrap_or_default();
    let tagged = str::from_utf8(word).ok().and_then(Format::named);
    match tagged {
        Some(format) => (format, start + word.len()),
        None if value[start..].starts_with(b"{") => (Format::Json, start),
        None if header.eq_ignore_ascii_case(BARE_JSON) => (Format::Json, start),
        None => (Format::Text, start),
    }
}

fn decode(body: &[u8]) -> Result<Vec<u8>, Malformed> {
    use base64::DecodeError::{InvalidByte, InvalidLastSymbol, InvalidLength, InvalidPadding};
    let start = body.len() - body.trim_ascii_start().len();
    BASE64.decode(body.trim_ascii()).map_err(|error| match error {
        InvalidByte(at, _) | InvalidLastSymbol(at, _) => Malformed::new(start + at, "not base64"),
        InvalidLength(at) => Malformed::new(start + at, "base64 of no such length"),
        InvalidPadding => Malformed::new(body.len(), "wrong padding of base64"),
    })
}

/// Reads `key=value, key=value`; keys of maps have the name of the map and a point before them.
fn text(body: &[u8]) -> Result<Findings, Malformed> {
    let mut findings = Findings::default();
    let mut start = 0;
    for entry in body.split(|byte| *byte == b',') {
        let at = start + entry.len() - entry.trim_ascii_start().len();
        start += entry.len() + 1;
        let entry = entry.trim_ascii();
        if entry.is_empty() {
            continue;
        }
        let sign = memchr2(b'=', b':', entry)
            .ok_or_else(|| Malformed::new(at, "neither = nor : after a key"))?;
        if let Some(key) = Key::in_text(entry[..sign].trim_ascii()) {
            let number = super::load(entry[sign + 1..].trim_ascii()).unwrap_or(f64::NAN);
            findings.learn(key, number, Repeated::Refused).map_err(|error| error.after(at))?;
        }
    }
    Ok(findings)
}

/// What of a report is needed, under the names that it has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    ApplicationUtilization,
    CpuUtilization,
    RequestsPerSecond,
    /// An entry of [`NAMED`].
    Named(usize),
}

/// What an entry of a map tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Waiting,
    Running,
    KvUsage,
    FirstByte,
}

/// The keys that matter in the maps `named_metrics` and `utilization`. Of several with one meaning
/// the first is believed: vLLM's, then Triton's, then what others have used.
const NAMED: [(&str, Meaning); 6] = [
    ("num_requests_waiting", Meaning::Waiting),
    ("num_requests_running", Meaning::Running),
    ("kv_cache_usage_perc", Meaning::KvUsage),
    ("kv_cache_utilization", Meaning::KvUsage),
    ("kv_cache_usage", Meaning::KvUsage),
    ("first_byte_p95_ms", Meaning::FirstByte),
];

/// Under which of them we write.
const WAITING: Key = Key::Named(0);
const RUNNING: Key = Key::Named(1);
const KV_USAGE: Key = Key::Named(2);
const FIRST_BYTE: Key = Key::Named(5);

impl Key {
    const COUNT: usize = 3 + NAMED.len();

    fn in_text(key: &[u8]) -> Option<Self> {
        match key {
            b"application_utilization" => Some(Key::ApplicationUtilization),
            b"cpu_utilization" => Some(Key::CpuUtilization),
            b"rps_fractional" => Some(Key::RequestsPerSecond),
            _ => key
                .strip_prefix(b"named_metrics.")
                .or_else(|| key.strip_prefix(b"utilization."))
                .and_then(Key::in_map),
        }
    }

    fn in_map(key: &[u8]) -> Option<Self> {
        NAMED.iter().position(|(name, _)| name.as_bytes() == key).map(Key::Named)
    }

    fn name(self) -> &'static str {
        match self {
            Key::ApplicationUtilization => "application_utilization",
            Key::CpuUtilization => "cpu_utilization",
            Key::RequestsPerSecond => "rps_fractional",
            Key::Named(index) => NAMED[index].0,
        }
    }

    fn index(self) -> usize {
        match self {
            Key::ApplicationUtilization => 0,
            Key::CpuUtilization => 1,
            Key::RequestsPerSecond => 2,
            Key::Named(index) => 3 + index,
        }
    }
}

/// What to do with a key that was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeated {
    /// It is an error, as it is for Envoy.
    Refused,
    /// The last one counts, as the encoding of protocol buffers demands.
    Replaces,
}

/// The values of a report that are needed.
#[derive(Debug, Default)]
struct Findings {
    values: [Option<f64>; Key::COUNT],
}

impl Findings {
    /// Takes down a value; the error is at byte 0.
    fn learn(&mut self, key: Key, value: f64, repeated: Repeated) -> Result<(), Malformed> {
        if !is_load(value) {
            return Err(Malformed::new(0, format!("{} is not a number from 0 on", key.name())));
        }
        let before = self.values[key.index()].replace(value);
        if before.is_some() && repeated == Repeated::Refused {
            return Err(Malformed::new(0, format!("{} is there twice", key.name())));
        }
        Ok(())
    }

    fn of(&self, meaning: Meaning) -> Option<f64> {
        let keys = NAMED.iter().enumerate().filter(|(_, (_, means))| *means == meaning);
        keys.filter_map(|(index, _)| self.values[Key::Named(index).index()]).next()
    }

    fn set(&self, key: Key) -> Option<f64> {
        self.values[key.index()].filter(|value| *value > 0.0)
    }

    fn load(&self) -> Load {
        let application = self.set(Key::ApplicationUtilization);
        let report = Report {
            waiting: self.of(Meaning::Waiting),
            running: self.of(Meaning::Running),
            kv_usage: self.of(Meaning::KvUsage).map(|share| share.min(1.0)),
            utilization: application.or_else(|| self.set(Key::CpuUtilization)),
        };
        Load {
            report,
            first_byte_p95_ms: self.of(Meaning::FirstByte),
            requests_per_second: self.set(Key::RequestsPerSecond),
        }
    }
}

/// Writes a report: the name of the response field and its value. `None` when nothing is known.
///
/// Left out is what is unknown or can not be a load, and a utilization or rate of zero, which means
/// *not set*.
#[must_use]
pub fn write(format: Format, load: &Load) -> Option<(&'static str, String)> {
    let entries = entries(load);
    let entries = entries.as_slice();
    if entries.is_empty() {
        return None;
    }
    Some(match format {
        Format::Text => (TAGGED, write_text(entries)),
        Format::Json => (TAGGED, json::write(entries)),
        Format::Bin => (BARE_BIN, BASE64.encode(protobuf::write(entries))),
    })
}

/// What is known, fields before entries of `named_metrics`.
fn entries(load: &Load) -> Vec<(Key, f64)> {
    let report = &load.report;
    let known = |value: Option<f64>| value.filter(|value| is_load(*value));
    let set = |value: Option<f64>| known(value).filter(|value| *value > 0.0);
    let entries = [
        (Key::ApplicationUtilization, set(report.utilization)),
        (Key::RequestsPerSecond, set(load.requests_per_second)),
        (WAITING, known(report.waiting)),
        (RUNNING, known(report.running)),
        (KV_USAGE, known(report.kv_usage).map(|share| share.min(1.0))),
        (FIRST_BYTE, known(load.first_byte_p95_ms)),
    ];
    entries.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn write_text(entries: &[(Key, f64)]) -> String {
    let mut text = String::from("TEXT ");
    for (index, (key, value)) in entries.iter().enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        let map = if matches!(key, Key::Named(_)) { "named_metrics." } else { "" };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{map}{}={value}", key.name());
    }
    text
}
