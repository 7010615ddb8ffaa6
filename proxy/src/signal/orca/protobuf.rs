//! Load reports as `xds.data.orca.v3.OrcaLoadReport`, in the wire format of protocol buffers.
//!
//! By hand, because five of the message's nine fields are wanted, all of them doubles: a crate
//! would bring a derive macro or generated code, and a map with every name in it, for what is a
//! page of code here. Nothing nests deeper than an entry of a map, and nothing is kept but numbers,
//! so the input bounds the work.
//!
//! As the format demands, fields that are not known, or not of the type that they should have, are
//! skipped, and of a field that is there twice the last one counts.

use super::{Findings, Key, Malformed, Repeated};

const CPU_UTILIZATION: u64 = 1;
const UTILIZATION: u64 = 5;
const RPS_FRACTIONAL: u64 = 6;
const NAMED_METRICS: u64 = 8;
const APPLICATION_UTILIZATION: u64 = 9;
const MAP_KEY: u64 = 1;
const MAP_VALUE: u64 = 2;

const FIXED64: u64 = 1;
const LENGTH: u64 = 2;

/// Reads one message.
pub(super) fn read(message: &[u8]) -> Result<Findings, Malformed> {
    let mut findings = Findings::default();
    let mut wire = Wire { bytes: message, at: 0 };
    while let Some(field) = wire.field()? {
        let Some((key, value)) = needed(&field)? else { continue };
        findings.learn(key, value, Repeated::Replaces).map_err(|error| error.after(field.at))?;
    }
    Ok(findings)
}

fn needed(field: &Field<'_>) -> Result<Option<(Key, f64)>, Malformed> {
    Ok(match (field.number, &field.value) {
        (CPU_UTILIZATION, Value::Fixed64(value)) => Some((Key::CpuUtilization, *value)),
        (RPS_FRACTIONAL, Value::Fixed64(value)) => Some((Key::RequestsPerSecond, *value)),
        (APPLICATION_UTILIZATION, Value::Fixed64(value)) => {
            Some((Key::ApplicationUtilization, *value))
        }
        (UTILIZATION | NAMED_METRICS, Value::Bytes(start, entry)) => {
            map_entry(entry).map_err(|error| error.after(*start))?
        }
        _ => None,
    })
}

/// One entry of a map; a part that is missing has its default.
fn map_entry(entry: &[u8]) -> Result<Option<(Key, f64)>, Malformed> {
    let mut wire = Wire { bytes: entry, at: 0 };
    let (mut key, mut number) = (None, 0.0);
    while let Some(field) = wire.field()? {
        match (field.number, field.value) {
            (MAP_KEY, Value::Bytes(_, name)) => key = Key::in_map(name),
            (MAP_VALUE, Value::Fixed64(value)) => number = value,
            _ => {}
        }
    }
    Ok(key.map(|key| (key, number)))
}

/// Writes one message.
pub(super) fn write(entries: &[(Key, f64)]) -> Vec<u8> {
    let mut message = Vec::new();
    for (key, value) in entries {
        match key {
            Key::CpuUtilization => double(&mut message, CPU_UTILIZATION, *value),
            Key::RequestsPerSecond => double(&mut message, RPS_FRACTIONAL, *value),
            Key::ApplicationUtilization => double(&mut message, APPLICATION_UTILIZATION, *value),
            Key::Named(_) => {
                let mut entry = Vec::new();
                bytes(&mut entry, MAP_KEY, key.name().as_bytes());
                double(&mut entry, MAP_VALUE, *value);
                bytes(&mut message, NAMED_METRICS, &entry);
            }
        }
    }
    message
}

fn double(message: &mut Vec<u8>, number: u64, value: f64) {
    varint(message, number << 3 | FIXED64);
    message.extend_from_slice(&value.to_le_bytes());
}

fn bytes(message: &mut Vec<u8>, number: u64, value: &[u8]) {
    varint(message, number << 3 | LENGTH);
    varint(message, value.len() as u64);
    message.extend_from_slice(value);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// One field of a message.
struct Field<'a> {
    /// Where it begins in the message.
    at: usize,
    number: u64,
    value: Value<'a>,
}

enum Value<'a> {
    Fixed64(f64),
    /// Where they begin in the message, and what they are.
    Bytes(usize, &'a [u8]),
    /// Of a type that no needed field has.
    Other,
}

/// A message that is being read.
struct Wire<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Wire<'a> {
    /// The next field, `None` at the end.
    fn field(&mut self) -> Result<Option<Field<'a>>, Malformed> {
        let at = self.at;
        if at == self.bytes.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = self.value(tag & 7).map_err(|what| Malformed::new(at, what))?;
        match tag >> 3 {
            0 => Err(Malformed::new(at, "a field with the number 0")),
            number => Ok(Some(Field { at, number, value })),
        }
    }

    fn value(&mut self, kind: u64) -> Result<Value<'a>, String> {
        const CUT_OFF: &str = "a field that is cut off";
        match kind {
            0 => self.varint().map(|_| Value::Other).map_err(|error| error.what),
            FIXED64 => {
                let bytes = self.take(8).and_then(|bytes| bytes.try_into().ok()).ok_or(CUT_OFF)?;
                Ok(Value::Fixed64(f64::from_le_bytes(bytes)))
            }
            LENGTH => {
                let len = self.varint().map_err(|error| error.what)?;
                let len = usize::try_from(len).map_err(|_| CUT_OFF)?;
                let start = self.at;
                Ok(Value::Bytes(start, self.take(len).ok_or(CUT_OFF)?))
            }
            5 => self.take(4).map(|_| Value::Other).ok_or_else(|| CUT_OFF.into()),
            kind => Err(format!("a field of the unknown type {kind}")),
        }
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.bytes[self.at..].get(..len)?;
        self.at += len;
        Some(taken)
    }

    /// A number in pieces of 7 bits, the lowest first; bits above 64 are dropped, as the format
    /// demands.
    fn varint(&mut self) -> Result<u64, Malformed> {
        let start = self.at;
        let mut value = 0;
        for piece in 0..10 {
            let byte =
                self.take(1).ok_or_else(|| Malformed::new(start, "a number that is cut off"))?[0];
            value |= u64::from(byte & 0x7f) << (7 * piece);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::new(start, "a number of more than ten bytes"))
    }
}
