//! Whether a response is compressed, in which coding, and what that does to its head.
//!
//! What it decides, from the heads alone:
//! - which coding: the client's `accept-encoding` (RFC 9110, 12.5.3), highest weight first, and among equal
//!   weights the route's order. A client without that field gets the response as it is: the RFC allows any
//!   coding then, but what sends no such field is seldom able to read one;
//! - whether it is worth it: text of some length. A length that is unknown is taken for enough: it could only be
//!   learned by holding the start of the body back, which is the latency that a streamed answer exists to avoid,
//!   and what a short body loses is some bytes and some ten microseconds;
//! - whether it is allowed: never twice, never against `no-transform`, never a part of a body, never gRPC (whose
//!   messages are compressed one by one, by another field);
//! - what must be said about it: `vary` also where this client gets nothing compressed but another one might.
//!
//! What it leaves out: framing. A compressed body has no length beforehand, so [`Plan::apply`] calls it unknown
//! and the side that sends it frames it.

use http::Method;
use outrigger_config::validated::{Coding, Compress};

use super::{
    drop_digests,
    encode::{Encoder, Flow},
};
use crate::wire::{
    BodyLength, Fields, RequestHead, ResponseHead,
    fields::{has_token, tokens},
};

/// What becomes of one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The coding that the client is told of; `None` when the response goes as it came.
    pub coding: Option<Coding>,
    /// How the body comes, and so how it must be flushed.
    pub flow: Flow,
    /// Whether there is a body; the answer to `HEAD` has the head of a compressed one and none.
    has_body: bool,
    /// Whether another `accept-encoding` would have got something else.
    vary: bool,
    /// Whether the entity tag names more than one sequence of bytes.
    weaken: bool,
}

impl Plan {
    /// Nothing is changed.
    pub const UNTOUCHED: Self = Self {
        coding: None,
        flow: Flow::Body { length: None },
        has_body: false,
        vary: false,
        weaken: false,
    };

    /// What encodes the body; `None` when it goes as it came.
    ///
    /// # Errors
    /// [`Broken`](super::Broken) when there is no memory for it.
    pub fn encoder(&self) -> Result<Option<Encoder>, super::Broken> {
        let coding = self.coding.filter(|_| self.has_body);
        coding.map(|coding| Encoder::new(coding, self.flow)).transpose()
    }

    /// Edits the head of the response.
    pub fn apply(&self, head: &mut ResponseHead) {
        if self.vary {
            vary(&mut head.fields);
        }
        if self.weaken {
            weaken(&mut head.fields);
        }
        let Some(coding) = self.coding else { return };
        head.fields.set("content-encoding", coding.name());
        head.fields.remove("content-length");
        // Ranges are counted in bytes of the body as it was, and are not served of this one.
        head.fields.remove("accept-ranges");
        drop_digests(&mut head.fields);
        if self.has_body {
            head.body = BodyLength::Unknown;
        }
    }
}

fn vary(fields: &mut Fields) {
    let said = |token| has_token(fields.get_all("vary"), token);
    if !said("accept-encoding") && !said("*") {
        fields.append("vary", "accept-encoding");
    }
}

/// A strong tag promises the same bytes, which now depend on the coding (RFC 9110, 8.8.3.3). One that is not quoted is
/// no tag at all and may be taken for a strong one, so it goes.
fn weaken(fields: &mut Fields) {
    let Some(tag) = fields.get("etag") else { return };
    if tag.starts_with(b"W/") {
        return;
    }
    let weak = tag.starts_with(b"\"").then(|| [b"W/", tag].concat());
    match weak {
        Some(weak) => fields.set("etag", weak),
        None => fields.remove("etag"),
    }
}

/// What becomes of this response to this request under these settings.
///
/// The head of the request must be the client's own: its `accept-encoding` counts, not what was sent on.
pub fn plan(settings: &Compress, request: &RequestHead, response: &ResponseHead) -> Plan {
    let fields = &response.fields;
    if untouchable(request, response) {
        return Plan::UNTOUCHED;
    }
    let coding = choose(request.fields.get_all("accept-encoding"), &settings.algorithms);
    let media = fields.get("content-type").map(media_type);
    if response.status == 304 {
        return unchanged(media, settings.events, coding);
    }
    let Some(media) = media.filter(|media| worth(media, settings.events)) else {
        return Plan::UNTOUCHED;
    };
    let length = content_length(response);
    if length.is_some_and(|length| length < settings.min.max(1)) {
        return Plan::UNTOUCHED;
    }
    // Who asks for a part counts in bytes of the body as it is.
    let coding = coding.filter(|_| !request.fields.contains("range"));
    let has_body = request.method != Method::HEAD;
    Plan { coding, flow: flow(media, length), has_body, vary: true, weaken: coding.is_some() }
}

/// The answer "what you have is still good" carries the tag of what the client has: the weak one, if it took a
/// compressed body. It seldom names a content type; without one, weak is safe, since it only promises less.
fn unchanged(media: Option<&[u8]>, events: bool, coding: Option<Coding>) -> Plan {
    if media.is_some_and(|media| !worth(media, events)) {
        return Plan::UNTOUCHED;
    }
    Plan { vary: true, weaken: coding.is_some(), ..Plan::UNTOUCHED }
}

/// Whether no client may get another coding of this response.
fn untouchable(request: &RequestHead, response: &ResponseHead) -> bool {
    let fields = &response.fields;
    let no_transform = |fields: &Fields| has_token(fields.get_all("cache-control"), "no-transform");
    request.method == Method::CONNECT
        || matches!(response.status, ..200 | 204..=206 | 226)
        || fields.contains("content-range")
        || fields.get_all("content-encoding").flat_map(tokens).any(|coding| !is_identity(coding))
        || no_transform(fields)
        || no_transform(&request.fields)
}

fn is_identity(coding: &[u8]) -> bool {
    coding.eq_ignore_ascii_case(b"identity")
}

/// Bytes of the body, as far as the head tells; for `HEAD`, of the body that `GET` would have got.
fn content_length(response: &ResponseHead) -> Option<u64> {
    if let BodyLength::Exact(length) = response.body {
        return Some(length);
    }
    let declared = response.fields.get_str("content-length")?;
    declared.trim().parse().ok()
}

/// The type without its parameters.
fn media_type(value: &[u8]) -> &[u8] {
    value.split(|&byte| byte == b';').next().unwrap_or(value).trim_ascii()
}

/// Whether bodies of this type shrink enough to be worth the time.
///
/// Not `application/octet-stream`, nor protobuf: tensors and embeddings in binary hardly shrink. Not gRPC and
/// Connect streams, which have a coding of their own inside.
fn worth(media: &[u8], events: bool) -> bool {
    const WHOLE: [&str; 13] = [
        "application/json",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/json-seq",
        "application/xml",
        "application/javascript",
        "application/x-javascript",
        "application/ecmascript",
        "application/yaml",
        "application/openmetrics-text",
        "image/svg",
    ];
    if is(media, "text/event-stream") {
        return events;
    }
    if starts(media, "application/grpc") || starts(media, "application/connect+") {
        return false;
    }
    starts(media, "text/")
        || WHOLE.iter().any(|known| is(media, known))
        || [&b"+json"[..], b"+xml", b"+yaml"].iter().any(|suffix| ends(media, suffix))
}

/// Events, and lines of JSON that come one by one, are each wanted at once.
fn flow(media: &[u8], length: Option<u64>) -> Flow {
    const LINES: [&str; 5] = [
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/json-seq",
    ];
    let lines = || length.is_none() && LINES.iter().any(|known| is(media, known));
    if is(media, "text/event-stream") || lines() { Flow::Events } else { Flow::Body { length } }
}

fn is(media: &[u8], known: &str) -> bool {
    media.eq_ignore_ascii_case(known.as_bytes())
}

fn starts(media: &[u8], prefix: &str) -> bool {
    media.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
}

fn ends(media: &[u8], suffix: &[u8]) -> bool {
    let at = media.len().checked_sub(suffix.len());
    at.is_some_and(|at| media[at..].eq_ignore_ascii_case(suffix))
}

/// The coding that the client likes best of those offered, which stand in the order of the server's preference.
///
/// `None` when there is no such field, when nothing offered is accepted, or when the client names `identity` with a
/// higher weight than any of it. Where even `identity` is refused, the response goes as it is all the same: the RFC
/// prefers that to an error.
pub fn choose<'a>(accepted: impl Iterator<Item = &'a [u8]>, offered: &[Coding]) -> Option<Coding> {
    let wishes = Wishes::of(accepted);
    let mut best = (None, 0);
    for &coding in offered {
        let weight = wishes.weight(coding);
        if weight > best.1 {
            best = (Some(coding), weight);
        }
    }
    best.0.filter(|_| wishes.identity.is_none_or(|identity| identity <= best.1))
}

/// The weights in an `accept-encoding`, in thousandths; `None` where it says nothing.
#[derive(Default)]
struct Wishes {
    zstd: Option<u16>,
    br: Option<u16>,
    gzip: Option<u16>,
    identity: Option<u16>,
    any: Option<u16>,
}

impl Wishes {
    fn of<'a>(accepted: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut wishes = Self::default();
        for member in accepted.flat_map(tokens) {
            let mut parts = member.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
            let Some(place) = parts.next().and_then(|name| wishes.place(name)) else { continue };
            // A weight that can not be read refuses; of two for the same coding the lower one counts.
            let weight = weight(parts).unwrap_or(0);
            *place = Some(place.map_or(weight, |before| before.min(weight)));
        }
        wishes
    }

    fn place(&mut self, name: &[u8]) -> Option<&mut Option<u16>> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            () if is("zstd") => Some(&mut self.zstd),
            () if is("br") => Some(&mut self.br),
            () if is("gzip") || is("x-gzip") => Some(&mut self.gzip),
            () if is("identity") => Some(&mut self.identity),
            () if is("*") => Some(&mut self.any),
            () => None,
        }
    }

    fn weight(&self, coding: Coding) -> u16 {
        let named = match coding {
            Coding::Zstd => self.zstd,
            Coding::Br => self.br,
            Coding::Gzip => self.gzip,
        };
        named.or(self.any).unwrap_or(0)
    }
}

/// The weight among the parameters of a member; 1 when there is none.
fn weight<'a>(mut parameters: impl Iterator<Item = &'a [u8]>) -> Option<u16> {
    let q = |parameter: &&[u8]| parameter.first().is_some_and(|b| b.eq_ignore_ascii_case(&b'q'));
    match parameters.find(q) {
        None => Some(1000),
        Some(parameter) => {
            thousandths(parameter[1..].trim_ascii().strip_prefix(b"=")?.trim_ascii())
        }
    }
}

/// `0`, `1`, and up to three decimals, in thousandths.
fn thousandths(value: &[u8]) -> Option<u16> {
    let (&whole, rest) = value.split_first()?;
    let decimals = rest.strip_prefix(b".").or(rest.is_empty().then_some(rest))?;
    if !matches!(whole, b'0' | b'1') || decimals.len() > 3 {
        return None;
    }
    let mut sum = u16::from(whole - b'0') * 1000;
    for (digit, unit) in decimals.iter().zip([100, 10, 1]) {
        sum += u16::from(char::from(*digit).to_digit(10)? as u8) * unit;
    }
    (sum <= 1000).then_some(sum)
}

#[cfg(test)]
mod tests;
