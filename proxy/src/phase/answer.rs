//! May a stored answer do? Before an endpoint is asked, and again when none has answered.
//!
//! Routes differ: one prefers what is stored, another has it for bad days only. Nothing of this delays a request
//! that could not be answered from store anyway: a body is read ahead only as far as a stored one may be long, and only
//! where all of it is on its way (a length, or JSON).
//!
//! What comes from store says so, whatever the reason: `age`, `cache-status` (RFC 9211) and `x-outrigger-answer`. A
//! response that has begun is never completed from store.
//!
//! What is decided here is in which order things are tried; what may be stored and served is [`policy`]'s.

mod own;
mod pour;
mod record;
mod together;

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use http::Method;
use outrigger_config::validated::{self as config, FallbackReason, LevelAction, Replay};

use super::{
    ask::is_json,
    attempt::expired,
    bound::turn_away,
    conclude::{conclude_call, give_back},
    forward::{append_via, edit},
    respond,
    route::{body_failure, read_body_while},
};
use crate::{
    answers::{
        Answer, Key, Store, Tags, Use, Wish,
        key::{Body, Identity, Proof},
        policy::{self, Said},
        store::unix_now,
    },
    deadline::Watchdog,
    gateway::call,
    outcome::Outcome,
    relay::Packer,
    request::{Failure, Request},
    snapshot::Route,
    telemetry::metrics::{AnswerMetrics, Missed, Served, ServedFor},
    tenant::Tenant,
    upstream::Backend,
    wire::{BodyLength, Downstream, ResponseHead},
};
pub use own::Nobody;
use own::refresh;
use pour::{Source, pour};
pub use record::{record, record_whole, store};
use together::together;

/// Why a stored answer was given: `fresh`, `stale` or `fallback`, the latter with its reason.
const MARK: &str = "x-outrigger-answer";
/// Fields of a request that asks for a part, or only for what is new: not what is stored.
const CONDITIONAL: [&str; 6] =
    ["range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"];

/// Fields that make a request another one on every route: what its body is, and a session, which may be somebody's.
const ALWAYS: [&str; 2] = ["content-type", "cookie"];

/// What a route does with answers.
pub struct Shelf {
    settings: config::Answers,
    route: Arc<str>,
    store: Arc<Store>,
    metrics: Arc<AnswerMetrics>,
}

/// A request that may be answered from store, or whose answer may be stored.
#[derive(Clone)]
pub struct Asked {
    key: Key,
    proof: Proof,
    tags: Tags,
    wish: Wish,
    /// Found while there still was a response that it might replace.
    stand_in: Option<Arc<Answer>>,
}

/// A stored answer that may be served.
struct Found {
    key: Key,
    answer: Arc<Answer>,
    age: Duration,
    kind: Served,
    reason: ServedFor,
}

impl Shelf {
    /// What the route of that name does, by these settings.
    pub fn new(
        settings: &config::Answers,
        route: &str,
        store: Arc<Store>,
        metrics: Arc<AnswerMetrics>,
    ) -> Self {
        Shelf { settings: settings.clone(), route: route.into(), store, metrics }
    }

    /// What is counted.
    pub fn metrics(&self) -> &AnswerMetrics {
        &self.metrics
    }

    /// What the store has for this request, and what it is good for.
    async fn find(&self, asked: &Asked) -> Option<(Arc<Answer>, Duration, Use)> {
        let answer = self.store.get(&asked.key, &asked.proof).await?;
        let age = unix_now().saturating_sub(answer.stored_at);
        let good_for = policy::use_of(&answer.terms, age, &asked.wish, &self.settings);
        Some((Arc::new(answer), age, good_for))
    }
}

/// Serves a request of a route that stores answers.
///
/// # Errors
/// Why there is no response, also none from store.
pub async fn serve(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Arc<Route>,
    shelf: &Shelf,
    backend: Arc<Backend>,
) -> Result<Outcome, Failure> {
    let wish = Wish::of(&request.head.fields);
    request.asked = ask(request, client, watchdog, shelf, &backend, wish).await?.map(Box::new);
    if let Some(found) = first(request, shelf).await {
        if let (Served::Stale, ServedFor::Preferred) = (found.kind, found.reason) {
            refresh(request, route, shelf, &backend);
        }
        replay(request, client, watchdog, route, shelf, &found).await?;
        return Ok(Outcome::Stored);
    }
    if wish.only_if_cached {
        return Err(Failure::new(Outcome::NotStored, "only-if-cached, and nothing is stored"));
    }
    let shares = shelf.settings.coalesce && request.asked.is_some() && !wish.refuses();
    let live = match turn_away(request, route) {
        Err(failure) => Err(failure),
        Ok(()) if shares => together(request, client, watchdog, route, shelf, backend).await,
        Ok(()) => call(request, client, watchdog, route, backend).await,
    };
    match live {
        Err(failure) => fall_back(request, client, watchdog, route, shelf, failure).await,
        outcome => outcome,
    }
}

/// Under what the answer is stored; `None` where it can not be.
async fn ask(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    shelf: &Shelf,
    backend: &Backend,
    wish: Wish,
) -> Result<Option<Asked>, Failure> {
    let most = shelf.settings.max_request;
    let missed = |reason| {
        shelf.metrics.missed(reason);
        Ok(None)
    };
    if !may_be_stored(request) {
        return missed(Missed::NotStorable);
    }
    if matches!(request.head.body, BodyLength::Exact(length) if length > most) {
        return missed(Missed::TooLong);
    }
    read_body_while(request, client, watchdog, |upload| upload.kept_bytes() <= most).await?;
    let upload = &request.upload;
    if !upload.has_ended() || upload.kept_bytes() > most {
        return missed(Missed::TooLong);
    }
    if upload.has_trailers() {
        return missed(Missed::NotStorable);
    }
    match identify(request, shelf, backend, wish) {
        Ok(asked) => Ok(Some(asked)),
        Err(reason) => missed(reason),
    }
}

/// Whether a request of this sort may be answered from store, as far as its head tells.
fn may_be_stored(request: &Request) -> bool {
    let head = &request.head;
    let json = is_json(request);
    let known_length = !matches!(head.body, BodyLength::Unknown) || json;
    (head.method == Method::POST || head.method == Method::GET)
        && known_length
        && !head.is_upgrade()
        && !CONDITIONAL.iter().any(|name| head.fields.contains(name))
        && !head.fields.contains("content-encoding")
        && !head.fields.get("content-type").is_some_and(|t| t.starts_with(b"application/grpc"))
}

fn identify(
    request: &Request,
    shelf: &Shelf,
    backend: &Backend,
    wish: Wish,
) -> Result<Asked, Missed> {
    let (head, settings, body) = (&request.head, &shelf.settings, request.upload.whole());
    let json = is_json(request);
    let said: Option<Said> =
        if json { serde_json::from_slice(&body).ok() } else { Some(Said::default()) };
    let said = said.unwrap_or_default();
    if settings.deterministic_only && !policy::is_deterministic(head.path(), &said) {
        return Err(Missed::NotDeterministic);
    }
    let tenant = Tenant::of(&head.fields, &request.snapshot.config.tenant.header);
    let model = request.model.as_deref().unwrap_or(said.model());
    let apart = !settings.across_arms || request.arm_forced;
    let fields = settings.vary.iter().map(String::as_str).chain(ALWAYS);
    let identity = Identity {
        tenant,
        route: &shelf.route,
        arm: apart.then_some(&*backend.name),
        model,
        method: head.method.as_str(),
        target: head.target(),
        fields: fields.map(|name| (name, head.fields.get_all(name).collect())).collect(),
        body: if json { Body::Json(&body) } else { Body::Bytes(&body) },
    };
    let (key, proof) = identity.digest().ok_or(Missed::NotStorable)?;
    let (route, arm) = (Arc::clone(&shelf.route), Arc::clone(&backend.name));
    let tags = Tags { tenant, route, arm, model: model.into() };
    Ok(Asked { key, proof, tags, wish, stand_in: None })
}

/// The stored answer that is served before an endpoint is asked: a fresh one, where the route prefers that; any that could
/// stand in for an error, where the load is high.
async fn first(request: &Request, shelf: &Shelf) -> Option<Found> {
    let asked = request.asked.as_ref()?;
    let by_load =
        matches!(request.allowed.action, LevelAction::PreferStored | LevelAction::OnlyStored);
    if asked.wish.refuses() {
        shelf.metrics.missed(Missed::Refused);
        return None;
    }
    if !by_load && !shelf.settings.prefer && !asked.wish.only_if_cached {
        return None;
    }
    let Some((answer, age, good_for)) = shelf.find(asked).await else {
        shelf.metrics.missed(Missed::Absent);
        return None;
    };
    let why = match by_load {
        true => ServedFor::Load,
        false if asked.wish.only_if_cached => ServedFor::Asked,
        false => ServedFor::Preferred,
    };
    let (kind, reason) = match good_for {
        Use::Fresh => (Served::Fresh, why),
        Use::Stale { revalidate: false } => (Served::Stale, ServedFor::Asked),
        Use::Stale { revalidate: true } => (Served::Stale, why),
        Use::OnError if by_load => (Served::Stale, why),
        Use::OnError | Use::Nothing => {
            shelf.metrics.missed(Missed::Stale);
            return None;
        }
    };
    Some(Found { key: asked.key, answer, age, kind, reason })
}

/// The reason for which a stored answer may stand in for a request that ended so.
fn reason_of(outcome: Outcome) -> Option<FallbackReason> {
    match outcome {
        Outcome::ConnectTimeout
        | Outcome::FirstByteTimeout
        | Outcome::GapTimeout
        | Outcome::TotalTimeout
        | Outcome::Stalled => Some(FallbackReason::Deadline),
        Outcome::NoEndpoint | Outcome::CircuitOpen => Some(FallbackReason::NoEndpoint),
        Outcome::ConnectFailed => Some(FallbackReason::Connect),
        Outcome::UpstreamReset | Outcome::UpstreamInvalid => Some(FallbackReason::Reset),
        Outcome::Overloaded | Outcome::QueueFull | Outcome::QueueTimeout | Outcome::Shed => {
            Some(FallbackReason::Shed)
        }
        Outcome::ServerError => Some(FallbackReason::ServerError),
        Outcome::Ok
        | Outcome::ClientError
        | Outcome::Local
        | Outcome::Stored
        | Outcome::Fallback
        | Outcome::NotStored
        | Outcome::NoRoute
        | Outcome::BadRequest
        | Outcome::TooLarge
        | Outcome::HeaderTooLarge
        | Outcome::UnsupportedCoding
        | Outcome::MethodNotAllowed
        | Outcome::ClientTimeout
        | Outcome::ClientGone
        | Outcome::RateLimited
        | Outcome::Draining
        | Outcome::DrainCut
        | Outcome::Internal => None,
    }
}

fn served_for(reason: FallbackReason) -> ServedFor {
    match reason {
        FallbackReason::Deadline => ServedFor::Deadline,
        FallbackReason::NoEndpoint => ServedFor::NoEndpoint,
        FallbackReason::Connect => ServedFor::Connect,
        FallbackReason::Reset => ServedFor::Reset,
        FallbackReason::Shed => ServedFor::Shed,
        FallbackReason::ServerError => ServedFor::ServerError,
    }
}

/// A stored answer in the place of an error, if there is one and nothing of a response was sent.
async fn fall_back(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Route,
    shelf: &Shelf,
    failure: Failure,
) -> Result<Outcome, Failure> {
    if client.head_sent() {
        return Err(failure);
    }
    let Some(found) = stand_in(request, shelf, failure.outcome).await else {
        return Err(told(failure));
    };
    tracing::debug!(
        id = request.id,
        averted = failure.outcome.as_str(),
        detail = failure.detail,
        "answered from store"
    );
    request.trail.averted = Some(failure.outcome);
    // No endpoint works for it any more, however long its client takes to read.
    give_back(request, failure.outcome);
    replay(request, client, watchdog, route, shelf, &found).await?;
    Ok(Outcome::Fallback)
}

async fn stand_in(request: &mut Request, shelf: &Shelf, outcome: Outcome) -> Option<Found> {
    let reason = reason_of(outcome)?;
    let fallback = shelf.settings.fallback.as_ref()?;
    let asked = request.asked.as_mut().filter(|_| fallback.when.contains(reason))?;
    let reason = served_for(reason);
    let kind = Served::Fallback;
    if let Some(answer) = asked.stand_in.take() {
        let age = unix_now().saturating_sub(answer.stored_at);
        return Some(Found { key: asked.key, answer, age, kind, reason });
    }
    if asked.wish.refuses() {
        shelf.metrics.missed(Missed::Refused);
        return None;
    }
    match shelf.find(asked).await {
        Some((_, _, Use::Nothing)) => shelf.metrics.missed(Missed::Stale),
        Some((answer, age, _)) => return Some(Found { key: asked.key, answer, age, kind, reason }),
        None => shelf.metrics.missed(Missed::Absent),
    }
    None
}

/// A response that was thrown away for a stored answer, which then was not there any more, is none: the error has to be
/// our own.
fn told(failure: Failure) -> Failure {
    match failure.outcome {
        Outcome::ServerError => Failure::new(Outcome::UpstreamReset, failure.detail),
        _ => failure,
    }
}

/// Whether the response of an endpoint that has this status is better replaced by a stored answer, which is at hand then.
pub async fn stands_in(request: &mut Request, status: u16) -> bool {
    if !matches!(status, 500 | 502 | 503 | 504) || request.asked.is_none() {
        return false;
    }
    let Some(route) = request.route.clone() else { return false };
    let Some(shelf) = &route.answers else { return false };
    let Some(found) = stand_in(request, shelf, Outcome::ServerError).await else { return false };
    if let Some(asked) = &mut request.asked {
        asked.stand_in = Some(found.answer);
    }
    true
}

/// Sends a stored answer.
async fn replay(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Route,
    shelf: &Shelf,
    found: &Found,
) -> Result<(), Failure> {
    let answer = &*found.answer;
    shelf.metrics.served(found.kind, found.reason, found.age);
    request.note(|trace| {
        let (kind, reason) = (found.kind.as_str(), found.reason.as_str());
        let about = [("outrigger.answer.kind", kind), ("outrigger.answer.reason", reason)];
        trace.event("answered from store", &about);
    });
    let mut head = ResponseHead::new(answer.status);
    head.fields = answer.fields.clone();
    let made = UNIX_EPOCH + answer.stored_at;
    head.fields.append("date", httpdate::fmt_http_date(made));
    head.fields.append("x-request-id", &request.id);
    append_via(&mut head.fields, head.version);
    edit(&mut head.fields, &route.settings.rewrite.response_headers);
    if route.settings.expose.arm {
        head.fields.set("x-outrigger-arm", answer.tags.arm.as_bytes());
    }
    mark(&mut head, found);
    let length = answer.body_bytes();
    head.body = match (answer.events, length) {
        (true, _) => BodyLength::Unknown,
        (false, 0) => BodyLength::Empty,
        (false, length) => BodyLength::Exact(length as u64),
    };
    if !answer.events {
        head.fields.set("content-length", length.to_string());
    }
    let paced = answer.events && shelf.settings.replay == Replay::Paced;
    let source = Source::stored(answer.pieces.clone(), paced);
    send(request, client, watchdog, route, head, source).await
}

/// Says that an answer comes from store, how old it is, why, and under which key it can be purged.
fn mark(head: &mut ResponseHead, found: &Found) {
    let (key, age) = (found.key, found.age.as_secs());
    let ttl = i128::from(found.answer.terms.ttl.as_secs()) - i128::from(age);
    let (kind, reason) = (found.kind.as_str(), found.reason.as_str());
    let has_reason = found.kind == Served::Fallback || found.reason == ServedFor::Load;
    let (detail, why) = match has_reason {
        true => (format!("; detail={reason}"), format!("{kind}; reason={reason}")),
        false => (String::new(), kind.to_owned()),
    };
    head.fields.set("age", age.to_string());
    let status = format!("outrigger; hit; ttl={ttl}; key=\"{key}\"{detail}");
    head.fields.append("cache-status", status);
    head.fields.set(MARK, why);
}

/// Sends a response that no attempt of this request has brought.
async fn send(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Route,
    mut head: ResponseHead,
    source: Source,
) -> Result<(), Failure> {
    let encoder = respond::pack(&mut head, request, route);
    let packer = encoder.map(|encoder| Packer::new(encoder, Arc::clone(&route.metrics)));
    request.trail.status = Some(head.status);
    let gone = |_| Failure::new(Outcome::ClientGone, "the client went away");
    client.send_head(&head).map_err(gone)?;
    pour(request, client, watchdog, packer, source).await
}
