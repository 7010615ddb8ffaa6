//! The head that the endpoint sees: hop-by-hop fields out, where the request came from in, rewrites applied.

use std::net::SocketAddr;

use outrigger_config::validated::HeaderEdits;
use rand::{Rng, RngExt};

use crate::{
    relay::load_report,
    request::{Request, hex128},
    snapshot::Route,
    telemetry::trace::context::{Parent, TRACEPARENT, TRACESTATE, single},
    upstream::{Backend, backend::Place},
    wire::{
        Fields,
        fields::{has_token, tokens},
        hop::{LEFT_POD, strip_hop_by_hop},
    },
};

/// How we sign `via` (RFC 9110, 7.6.3).
pub const PSEUDONYM: &str = "outrigger";

/// Turns the head that the client sent into the one that goes to an endpoint.
pub fn prepare(request: &mut Request, route: &Route, rng: &mut impl Rng) {
    request.report_asked = load_report::asked(&request.head.fields);
    strip_request_hop_by_hop(request);
    identify(request, rng);
    tell_origin(request);
    if !request.head.fields.contains("host") {
        // HTTP/1.0 knows no Host, but the endpoint is spoken to in HTTP/1.1.
        request.head.fields.append("host", "localhost");
    }
    rewrite(request, route);
}

/// Removes what concerns this connection alone, but keeps an upgrade and the wish for trailers.
fn strip_request_hop_by_hop(request: &mut Request) {
    let head = &mut request.head;
    let upgrade =
        head.is_upgrade().then(|| head.fields.get("upgrade").map(<[u8]>::to_vec)).flatten();
    let trailers = has_token(head.fields.get_all("te"), "trailers");
    strip_hop_by_hop(&mut head.fields);
    head.fields.remove("expect");
    if let Some(protocol) = upgrade {
        head.fields.append("upgrade", protocol);
    }
    if trailers {
        head.fields.append("te", "trailers");
    }
}

/// Request id and trace context, accepted or made (W3C Trace Context, level 1).
fn identify(request: &mut Request, rng: &mut impl Rng) {
    let fields = &mut request.head.fields;
    if single(fields, "x-request-id") != Some(request.id.as_bytes()) {
        fields.set("x-request-id", request.id.as_bytes());
    }
    if let Some(trace) = &request.trace {
        // The client may have named it as one of the fields that are of its connection alone.
        if !fields.contains(TRACEPARENT) {
            trace.identify(fields);
        }
    } else if single(fields, TRACEPARENT).and_then(Parent::parse).is_none() {
        fields.remove(TRACESTATE);
        let (trace, span) = (hex128(rng.random()), hex128(rng.random()));
        fields.set(TRACEPARENT, format!("00-{trace}-{}-00", &span[..16]));
    }
}

/// The trace id of the request, once it has been identified.
pub fn trace_id(fields: &Fields) -> Option<&str> {
    fields.get_str(TRACEPARENT)?.get(3..35)
}

/// `x-forwarded-*`, `forwarded` (RFC 7239) and `via`.
fn tell_origin(request: &mut Request) {
    let hops = request.snapshot.config.forwarding.trusted_hops;
    let peer = std::sync::Arc::clone(&request.peer);
    let host = request.head.host().to_owned();
    let version = request.head.version;
    request.origin_told = true;
    let fields = &mut request.head.fields;
    append_hop(fields, "x-forwarded-for", hops, peer.client_ip.as_bytes());
    let node = match peer.client_ip.contains(':') {
        true => format!("for=\"[{}]\";host=\"{host}\";proto=http", peer.client_ip),
        false => format!("for={};host=\"{host}\";proto=http", peer.client_ip),
    };
    append_hop(fields, "forwarded", hops, node.as_bytes());
    if hops == 0 || !fields.contains("x-forwarded-proto") {
        fields.set("x-forwarded-proto", "http");
    }
    if hops == 0 || !fields.contains("x-forwarded-host") {
        fields.set("x-forwarded-host", host);
    }
    append_via(fields, version);
}

/// Adds `own` after the last `hops` members of the list, which are believed.
fn append_hop(fields: &mut Fields, name: &str, hops: usize, own: &[u8]) {
    let mut value = Vec::new();
    if hops > 0 {
        let known: Vec<&[u8]> = fields.get_all(name).flat_map(tokens).collect();
        for member in &known[known.len().saturating_sub(hops)..] {
            value.extend_from_slice(member);
            value.extend_from_slice(b", ");
        }
    }
    value.extend_from_slice(own);
    fields.set(name, value);
}

/// Adds ourselves to the `via` list of a message that came in this version of HTTP.
pub fn append_via(fields: &mut Fields, version: u8) {
    let version = match version {
        20 => "2",
        10 => "1.0",
        _ => "1.1",
    };
    fields.append_with("via", |out| {
        out.extend_from_slice(version.as_bytes());
        out.push(b' ');
        out.extend_from_slice(PSEUDONYM.as_bytes());
    });
}

/// Where a scheduler in front names the endpoints it has chosen (Gateway API Inference Extension, endpoint picker
/// protocol).
const DESTINATION: &str = "x-gateway-destination-endpoint";

/// Whether the request has left another pod.
pub fn has_hopped(fields: &Fields) -> bool {
    fields.contains(LEFT_POD)
}

/// Marks a request that leaves the pod, and takes the mark from one that has come to the engine it was sent to. Where
/// neither is so, because there is no engine in the pod, a mark stays. `marked` says how it is so far; how it is now is
/// returned.
pub fn mark_hop(fields: &mut Fields, place: &Place, marked: bool) -> bool {
    match (place.leaves_pod(), place.is_local(), marked) {
        (true, _, false) => fields.set(LEFT_POD, "1"),
        (false, true, true) => fields.remove(LEFT_POD),
        (true, _, true) | (false, true, false) | (false, false, _) => return marked,
    }
    !marked
}

/// The endpoints that a scheduler in front has chosen, the best one first, where the backend believes it. What is no
/// address is passed over; addresses that are no endpoints of the backend are never used.
pub fn destinations(fields: &Fields, backend: &Backend) -> Vec<SocketAddr> {
    if !backend.settings.signals.gateway {
        return Vec::new();
    }
    let address = |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok();
    fields.get_all(DESTINATION).flat_map(tokens).filter_map(address).collect()
}

/// Path, host and header rewrites of the route.
fn rewrite(request: &mut Request, route: &Route) {
    let rewrite = &route.settings.rewrite;
    if let Some(path) = route.settings.rewritten_path(request.head.path()) {
        request.original_target = Some(request.head.target().to_owned());
        let target = match request.head.query() {
            "" => path,
            query => format!("{path}?{query}"),
        };
        request.head.set_target(&target);
    }
    if let Some(host) = &rewrite.host {
        request.head.fields.set("host", host);
    }
    edit(&mut request.head.fields, &rewrite.request_headers);
}

/// Removes and sets fields as configured.
pub fn edit(fields: &mut Fields, edits: &HeaderEdits) {
    for name in &edits.remove {
        fields.remove(name);
    }
    for (name, value) in &edits.set {
        fields.set(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_believed_hops_are_kept() {
        let forwarded = |hops| {
            let mut fields = Fields::new();
            fields.append("X-Forwarded-For", "1.1.1.1, 2.2.2.2");
            fields.append("x-forwarded-for", "3.3.3.3");
            append_hop(&mut fields, "x-forwarded-for", hops, b"9.9.9.9");
            String::from_utf8(fields.get("x-forwarded-for").unwrap().to_vec()).unwrap()
        };
        assert_eq!(forwarded(0), "9.9.9.9");
        assert_eq!(forwarded(1), "3.3.3.3, 9.9.9.9");
        assert_eq!(forwarded(8), "1.1.1.1, 2.2.2.2, 3.3.3.3, 9.9.9.9");
    }
}
