//! Which route takes the request, and which arm of it.
//!
//! Routes are tried in file order. Where one of them asks for a field of the body, the body is read just as far as
//! that field, at most `limits.body_scan`; what was read goes on to the endpoint as it came.

use std::{future::poll_fn, sync::Arc, task::Poll};

use bytes::{Bytes, BytesMut};
use outrigger_config::{
    pattern::host_without_port,
    validated::{Decompress, Match, Sticky},
};

use super::admit::too_large;
use crate::{
    chance, clock,
    compress::{Decoder, Refused},
    deadline::{Expiry, Next, Watchdog},
    outcome::Outcome,
    phase::mirror::Mirror,
    relay::{Fault, Upload},
    request::{Failure, Request},
    scan::{Progress, Scanner, Value},
    snapshot::{Action, Arm, Route, Split},
    wire::{BodyLength, Downstream, RequestHead},
};

/// Request bytes kept even without retries, for a resting connection that turns out to be closed.
const KEPT_FOR_STALE: u64 = 64 * 1024;

/// Finds the route of the request, and the arm if it has arms.
///
/// # Errors
/// [`Outcome::NoRoute`]; [`Outcome::BadRequest`] for a body that names a field twice; what went wrong with the body.
pub async fn route(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
) -> Result<Arc<Route>, Failure> {
    let snapshot = Arc::clone(&request.snapshot);
    let mut unpacked: Option<Unpacked<'_>> = None;
    for route in &snapshot.routes {
        let head = match &unpacked {
            Some(unpacked) => &unpacked.head,
            None => &request.head,
        };
        if !matches_head(&route.settings.matches, head) {
            continue;
        }
        let limits = route.settings.decompress.as_ref();
        if let Some(otherwise) = unpacked.take_if(|unpacked| Some(unpacked.limits) != limits) {
            otherwise.undo(request);
        }
        if unpacked.is_none()
            && let Some(limits) = limits
        {
            unpacked = decompress(request, limits)?;
        }
        if route.settings.reads_body() && request.upload.scanner().is_none() {
            scan_body(request, client, watchdog).await?;
        }
        if matches_model(&route.settings.matches, request.model.as_deref()) {
            enter(request, route);
            return Ok(Arc::clone(route));
        }
    }
    Err(no_route(request))
}

/// Whether everything but the model fits.
pub fn matches_head(wanted: &Match, head: &RequestHead) -> bool {
    let host = host_without_port(head.host());
    let any = |empty: bool, found: bool| empty || found;
    any(wanted.paths.is_empty(), wanted.paths.iter().any(|p| p.matches(head.path())))
        && any(wanted.hosts.is_empty(), wanted.hosts.iter().any(|h| h.matches(host)))
        && any(wanted.methods.is_empty(), wanted.methods.iter().any(|m| head.method == **m))
        && wanted
            .headers
            .iter()
            .all(|(name, value)| head.fields.get_all(name).any(|field| value.matches_bytes(field)))
        && wanted
            .query
            .iter()
            .all(|(name, value)| query_values(head.query(), name).any(|found| value.matches(found)))
}

/// Whether the model fits, or none is asked for.
pub fn matches_model(wanted: &Match, model: Option<&str>) -> bool {
    wanted.models.is_empty()
        || model.is_some_and(|model| wanted.models.iter().any(|glob| glob.matches(model)))
}

fn query_values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn no_route(request: &Request) -> Failure {
    let head = &request.head;
    let model = request.model.as_ref().map_or(String::new(), |model| format!(", model {model:?}"));
    let detail =
        format!("no route for {} {} on host {:?}{model}", head.method, head.path(), head.host());
    Failure::new(Outcome::NoRoute, detail)
}

/// Reads the body until every wanted field was seen, or it ends, or the bound is reached. The rest is looked at as it
/// passes, so that a second `model` further on does not slip through.
async fn scan_body(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
) -> Result<(), Failure> {
    let fields: Vec<&str> = request.snapshot.body_fields.iter().map(String::as_str).collect();
    let bound = request.snapshot.config.limits.body_scan;
    request.upload.scan(&fields);
    read_body_while(request, client, watchdog, |upload| {
        let wants_more = |scanner: &Scanner| scanner.progress() == Progress::More;
        upload.scanner().is_some_and(wants_more) && upload.received() < bound
    })
    .await?;
    request.model = text(request, "model").map(str::to_owned);
    Ok(())
}

/// Reads the request body for as long as `wants_more` says so and it has not ended.
///
/// # Errors
/// What went wrong with the client's body.
pub async fn read_body_while(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    wants_more: impl Fn(&Upload) -> bool,
) -> Result<(), Failure> {
    let patience = request.snapshot.config.limits.body_timeout;
    let upload = &mut request.upload;
    while !upload.has_ended() && wants_more(upload) {
        let next = Next::never().or(Some(clock::now() + patience), Expiry::ClientBody);
        let received = poll_fn(|cx| match upload.poll_receive(client, cx) {
            Poll::Ready(result) => Poll::Ready(result.map_err(Fault::from)),
            Poll::Pending => watchdog.poll_expired(next, cx).map(|e| Err(Fault::Expired(e))),
        })
        .await;
        if let Err(fault) = received {
            return Err(body_failure(request, fault));
        }
    }
    Ok(())
}

/// A request whose body was decompressed to see whether its model fits a route. A route that does not match must not
/// have changed what the next one gets.
struct Unpacked<'a> {
    /// Its head as it came.
    head: RequestHead,
    limits: &'a Decompress,
}

impl Unpacked<'_> {
    fn undo(self, request: &mut Request) {
        request.head = self.head;
        request.upload.pack_again();
        request.model = None;
    }
}

/// From here on the body is what it was before the client compressed it, if it did.
fn decompress<'a>(
    request: &mut Request,
    limits: &'a Decompress,
) -> Result<Option<Unpacked<'a>>, Failure> {
    if !request.head.fields.contains("content-encoding") {
        return Ok(None);
    }
    let head = request.head.clone();
    match Decoder::of(&mut request.head, limits) {
        Ok(Some(decoder)) => {
            request.upload.unpack_by(decoder);
            Ok(Some(Unpacked { head, limits }))
        }
        Ok(None) => Ok(None),
        Err(refused) => Err(packed(refused)),
    }
}

fn packed(refused: Refused) -> Failure {
    let outcome = match refused.status() {
        415 => Outcome::UnsupportedCoding,
        413 => Outcome::TooLarge,
        _ => Outcome::BadRequest,
    };
    Failure::new(outcome, refused.to_string())
}

/// What a fault of the client's body means for the request.
pub fn body_failure(request: &Request, fault: Fault) -> Failure {
    match fault {
        Fault::TooLarge => too_large(request.snapshot.config.limits.body_bytes),
        Fault::ClientInvalid(what) => Failure::new(Outcome::BadRequest, what),
        Fault::Packed(refused) => packed(refused),
        Fault::Expired(_) => {
            let patience = request.snapshot.config.limits.body_timeout;
            let detail = format!("no more of the request body came for {patience:?}");
            Failure::new(Outcome::ClientTimeout, detail)
        }
        Fault::ClientGone | Fault::Upstream(_) => {
            Failure::new(Outcome::ClientGone, "the client went away with its request half sent")
        }
    }
}

fn text<'a>(request: &'a Request, field: &str) -> Option<&'a str> {
    request.upload.scanner()?.get(field)?.value.as_text()
}

/// A string or a number of the body, as it is written.
pub fn body_key<'a>(request: &'a Request, field: &str) -> Option<&'a [u8]> {
    match &request.upload.scanner()?.get(field)?.value {
        Value::Text(text) | Value::Number(text) => Some(text.as_bytes()),
        Value::Bool(_) | Value::Null | Value::Nested | Value::TooLong => None,
    }
}

/// The request belongs to this route from here on.
fn enter(request: &mut Request, route: &Arc<Route>) {
    request.route = Some(Arc::clone(route));
    request.upload.stay_unpacked();
    let buffer = route.settings.retry.as_ref().map_or(0, |retry| retry.buffer);
    request.upload.keep(buffer.max(KEPT_FOR_STALE));
    match &route.action {
        Action::Split(split) => {
            let forced = forced_arm(route, split, request);
            request.arm_forced = forced.is_some();
            let arm = forced.unwrap_or_else(|| choose_arm(route, split, request));
            request.arm = Some(Arc::clone(&arm.backend));
            request.metrics = Arc::clone(&arm.metrics);
            request.learning.clone_from(&arm.learning);
        }
        Action::Local(metrics) => request.metrics = Arc::clone(metrics),
    }
    if let Some(model) = &route.settings.rewrite.model {
        rewrite_model(request, model);
    }
    let draw = |mirror: &Arc<Mirror>| mirror.draw(&request.head, &mut chance::rng());
    if let Some(bytes) = route.mirror.as_ref().and_then(draw) {
        request.upload.copy(bytes);
    }
}

/// The arm that a tester asks for by name.
fn forced_arm<'a>(route: &Route, split: &'a Split, request: &Request) -> Option<&'a Arm> {
    let name = route.settings.force_arm.as_ref()?;
    split.named(request.head.fields.get(name)?)
}

fn choose_arm<'a>(route: &'a Route, split: &'a Split, request: &Request) -> &'a Arm {
    let fields = &request.head.fields;
    match &route.settings.sticky {
        Some(Sticky::Header(name)) => by_key(split, fields.get(name)),
        Some(Sticky::Cookie(name)) => by_key(split, cookie(&request.head, name)),
        Some(Sticky::Body(field)) => by_key(split, body_key(request, field)),
        None => split.next(),
    }
}

/// A request without a key takes its turn.
fn by_key<'a>(split: &'a Split, key: Option<&[u8]>) -> &'a Arm {
    key.map_or_else(|| split.next(), |key| split.sticky(key))
}

/// The value of a cookie.
pub fn cookie<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    head.fields.get_all("cookie").flat_map(|v| v.split(|b| *b == b';')).find_map(|pair| {
        let (key, value) = pair.trim_ascii_start().split_at_checked(name.len())?;
        (key == name.as_bytes()).then_some(value)?.strip_prefix(b"=")
    })
}

/// Puts `model` in the place of the model in the part of the body that has been read.
fn rewrite_model(request: &mut Request, model: &str) {
    let found = request.upload.scanner().and_then(|scanner| scanner.get("model"));
    let Some(span) = found.filter(|f| f.value.as_text().is_some()).map(|f| f.span.clone()) else {
        return;
    };
    let mut whole = BytesMut::new();
    for piece in request.upload.kept() {
        whole.extend_from_slice(piece);
    }
    let quoted = serde_json::Value::from(model).to_string();
    let before = whole.len();
    let rest = whole.split_off(span.end);
    whole.truncate(span.start);
    whole.extend_from_slice(quoted.as_bytes());
    whole.extend_from_slice(&rest);
    if let BodyLength::Exact(length) = &mut request.head.body {
        *length = *length - before as u64 + whole.len() as u64;
        request.head.fields.set("content-length", length.to_string());
    }
    request.upload.replace_kept(Bytes::from(whole));
}
