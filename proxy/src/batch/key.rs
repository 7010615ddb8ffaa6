//! Under which name requests meet.
//!
//! Why: two requests may share a call only if nobody could tell the difference. The key holds
//! everything that has to be equal: the path and the fields of the body, which
//! [`Ask::parse`](super::Ask::parse) puts in, and what the caller adds to tell tenants, backends
//! and arms apart. Keys are compared in full, so a collision of hashes brings nobody together.
//!
//! What it decides: values are compared by meaning as far as that is safe. The order of members,
//! white space and escapes in strings do not matter; numbers are compared as they are written, so
//! `1` and `1.0` stay apart, because some servers tell them apart.
//!
//! What it leaves out: whose header names a tenant. [`Key::headers`] therefore takes in every
//! header except the few that are known to describe one message, one hop or one trace.

use std::fmt;

use http::HeaderMap;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use super::compatible::NotBatchable;
use super::json::{self, Members};

/// How deep a field other than the prompt may be nested.
const MAX_DEPTH: usize = 32;

/// Headers that differ between two requests which may still share a call. A merged request has its
/// own values for those of the first group, and one of the senders' values for the others.
const INDIVIDUAL: [&str; 21] = [
    // The message and the hop; `accept-encoding` because the caller reads the answer itself.
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // The way here.
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-real-ip",
    "user-agent",
    // The trace.
    "traceparent",
    "tracestate",
    "b3",
    "x-request-id",
    "x-correlation-id",
    "x-amzn-trace-id",
];

/// The same by how a name begins; `x-stainless-` is how the OpenAI clients describe themselves.
const INDIVIDUAL_PREFIXES: [&str; 3] = ["x-b3-", "x-datadog-", "x-stainless-"];

/// Everything that requests of one batch have in common. Its parts cannot run into each other: each
/// is written with its length.
///
/// It may hold credentials, so it is never printed: [`Key::fingerprint`] is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Vec<u8>);

/// What a JSON text says, written in one way: equal for two texts that differ in nothing but the order of members, white
/// space and escapes. `None` for a text that is not JSON, names a member twice, or is nested too deeply.
#[must_use]
pub fn canonical(text: &[u8]) -> Option<Vec<u8>> {
    let value: &RawValue = serde_json::from_slice(text).ok()?;
    let mut key = Key::new();
    key.value(value, MAX_DEPTH).ok()?;
    Some(key.0)
}

impl Key {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds something that has to be equal too: a name and a value, such as the arm of a split. The
    /// order of calls matters; make it always the same.
    pub fn extend(&mut self, name: &[u8], value: &[u8]) {
        self.0.push(b'+');
        self.part(name);
        self.part(value);
    }

    /// Adds the headers of a request, except those that describe one message, one hop or one trace
    /// (lengths, encodings of the transfer, forwarding, user agent, trace and request ids). The
    /// order of headers of different names does not matter.
    pub fn headers(&mut self, headers: &HeaderMap) {
        let shared = headers.iter().filter(|(name, _)| !individual(name.as_str()));
        let mut shared: Vec<_> = shared.collect();
        shared.sort_by_key(|(name, _)| name.as_str());
        for (name, value) in shared {
            self.extend(name.as_str().as_bytes(), value.as_bytes());
        }
    }

    /// A hash that is the same in every process and version, for logs and shards. Equal
    /// fingerprints do not make equal keys.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        xxh3_64(&self.0)
    }

    /// Adds the member of an object.
    pub(super) fn member(&mut self, name: &str, value: &RawValue) -> Result<(), NotBatchable> {
        self.part(name.as_bytes());
        self.value(value, MAX_DEPTH)
    }

    fn value(&mut self, value: &RawValue, depth: usize) -> Result<(), NotBatchable> {
        let deeper = || depth.checked_sub(1).ok_or(NotBatchable::Long);
        match value.get().as_bytes().first() {
            Some(b'{') => self.object(value, deeper()?),
            Some(b'[') => self.list(value, deeper()?),
            Some(b'"') => self.text(value),
            _ => {
                self.0.push(b'=');
                self.part(value.get().as_bytes());
                Ok(())
            }
        }
    }

    fn object(&mut self, value: &RawValue, depth: usize) -> Result<(), NotBatchable> {
        let mut members = Members::parse(value.get().as_bytes()).ok_or(NotBatchable::NotJson)?;
        members.0.sort_by(|(one, _), (other, _)| one.cmp(other));
        if members.0.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(NotBatchable::Repeated);
        }
        self.0.push(b'{');
        self.count(members.0.len());
        members.0.iter().try_for_each(|(name, value)| {
            self.part(name.as_bytes());
            self.value(value, depth)
        })
    }

    fn list(&mut self, value: &RawValue, depth: usize) -> Result<(), NotBatchable> {
        let list: Vec<&RawValue> =
            serde_json::from_str(value.get()).map_err(|_| NotBatchable::NotJson)?;
        self.0.push(b'[');
        self.count(list.len());
        list.into_iter().try_for_each(|value| self.value(value, depth))
    }

    fn text(&mut self, value: &RawValue) -> Result<(), NotBatchable> {
        let text = json::text(value).ok_or(NotBatchable::NotJson)?;
        self.0.push(b'"');
        self.part(text.as_bytes());
        Ok(())
    }

    pub(super) fn part(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn count(&mut self, count: usize) {
        self.0.extend_from_slice(&(count as u64).to_le_bytes());
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Key({:016x})", self.fingerprint())
    }
}

fn individual(name: &str) -> bool {
    INDIVIDUAL.contains(&name) || INDIVIDUAL_PREFIXES.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn key(value: &str) -> Result<Key, NotBatchable> {
        let mut key = Key::new();
        key.member("field", serde_json::from_str(value).unwrap())?;
        Ok(key)
    }

    #[test]
    fn order_spacing_and_escapes_do_not_matter() {
        let one = key(r#"{"a":[1,{"x":null,"y":"\u0041\n"}],"b":true}"#).unwrap();
        let other = key(" { \"b\":true, \"a\" : [1, {\"y\":\"A\\u000a\",\"x\":null} ] } ").unwrap();
        assert_eq!(one, other);
        assert_eq!(one.fingerprint(), other.fingerprint());
    }

    #[test]
    fn different_values_stay_apart() {
        let values = [
            "1",
            "1.0",
            "-1",
            "\"1\"",
            "null",
            "\"null\"",
            "[1]",
            "[\"1\"]",
            "[[1]]",
            "[1,2]",
            "[2,1]",
            "[12]",
            "{}",
            "[]",
            "{\"a\":1}",
            "{\"a\":[1]}",
            "{\"a\":1,\"b\":2}",
            "{\"a\":2,\"b\":1}",
            "{\"ab\":\"c\"}",
            "{\"a\":\"bc\"}",
            "{\"A\":1}",
            "true",
            "false",
            "1e0",
            "[[1],2]",
            "[[1,2]]",
            "{\"a\":{},\"b\":1}",
            "{\"a\":{\"b\":1}}",
        ];
        for (i, one) in values.iter().enumerate() {
            for other in &values[i + 1..] {
                assert_ne!(key(one), key(other), "{one} and {other}");
            }
        }
    }

    #[test]
    fn repeated_names_and_deep_values_have_no_key() {
        assert_eq!(key(r#"{"a":{"b":1,"\u0062":2}}"#), Err(NotBatchable::Repeated));
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(key(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(key(&nested(MAX_DEPTH + 1)), Err(NotBatchable::Long));
        assert_eq!(key(r#""\udc00""#), Err(NotBatchable::NotJson));
    }

    fn with_headers(headers: &[(&str, &str)]) -> Key {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        let mut key = Key::new();
        key.headers(&map);
        key
    }

    #[test]
    fn tenants_stay_apart() {
        let tenants = [
            with_headers(&[]),
            with_headers(&[("authorization", "Bearer a")]),
            with_headers(&[("authorization", "Bearer b")]),
            with_headers(&[("x-api-key", "Bearer a")]),
            with_headers(&[("x-tenant", "a"), ("authorization", "Bearer a")]),
            with_headers(&[("cookie", "session=1")]),
            with_headers(&[("baggage", "tenant=1")]),
            with_headers(&[("x-tenant", "a"), ("x-tenant", "b")]),
            with_headers(&[("x-tenant", "b"), ("x-tenant", "a")]),
        ];
        for (i, one) in tenants.iter().enumerate() {
            assert!(!tenants[i + 1..].contains(one), "{i}");
        }
    }

    #[test]
    fn headers_of_one_message_do_not_matter() {
        let one = with_headers(&[
            ("Authorization", "Bearer a"),
            ("X-Tenant", "t"),
            ("content-length", "17"),
            ("x-request-id", "1"),
            ("X-Stainless-Retry-Count", "0"),
            ("traceparent", "00-1"),
        ]);
        let other = with_headers(&[
            ("x-tenant", "t"),
            ("x-request-id", "2"),
            ("authorization", "Bearer a"),
            ("user-agent", "curl"),
            ("accept-encoding", "gzip"),
        ]);
        assert_eq!(one, other);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let with = |parts: &[(&[u8], &[u8])]| {
            let mut key = Key::new();
            parts.iter().for_each(|(name, value)| key.extend(name, value));
            key
        };
        assert_ne!(with(&[(b"arm", b"1x")]), with(&[(b"arm1", b"x")]));
        assert_ne!(with(&[(b"a", b"b"), (b"c", b"d")]), with(&[(b"a", b"b+\x01")]));
    }

    #[test]
    fn a_key_is_not_printed() {
        let key = with_headers(&[("authorization", "Bearer secret")]);
        assert_eq!(format!("{key:?}"), format!("Key({:016x})", key.fingerprint()));
    }
}
