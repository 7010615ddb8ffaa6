//! The end of a request: its outcome in metrics and in the access log.

use std::time::{Duration, SystemTime};

use crate::{
    clock,
    outcome::Outcome,
    probes::{Follower, Told},
    request::Request,
    snapshot::Action,
    telemetry::{
        access_log::{AccessLog, Kept, Record},
        metrics::HedgeResult,
        trace::{About, Finished},
    },
};

use super::{answer, forward::trace_id};

/// The status that is logged for a client that went away before it got one; nginx made the number common.
const CLIENT_GONE: u16 = 499;

/// How a request ended.
#[derive(Clone, Copy)]
struct Ended {
    outcome: Outcome,
    status: u16,
    /// From its head to its end.
    duration: Duration,
    /// From its head to the first byte of its answer.
    first_byte: Option<Duration>,
}

impl Ended {
    fn now(request: &Request, outcome: Outcome) -> Self {
        let duration = clock::now().saturating_duration_since(request.start);
        let first_byte = request.progress.first_byte_after(request.start);
        let status = request.trail.status.or(outcome.status()).unwrap_or(CLIENT_GONE);
        Ended { outcome, status, duration, first_byte }
    }
}

/// Counts and logs a request that has ended.
pub fn conclude(request: &mut Request, outcome: Outcome, log: &AccessLog) {
    let ended = Ended::now(request, outcome);
    count(request, ended);
    let trace = end_trace(request, ended);
    match follower(request, ended.first_byte) {
        // It is told of when the kernel's part of its timeline is known.
        Some(follower) => {
            let line = log.is_on().then(|| Box::new(Kept::of(&record(request, ended))));
            if let Err(untold) = follower.ended(request.trail.followed, (line, trace)) {
                tell(untold, log);
            }
        }
        None => {
            if log.is_on() {
                log.write(&record(request, ended));
            }
            tell((None, trace), log);
        }
    }
    follow_up(request, outcome);
}

/// Tells of a request without what the kernel saw.
fn tell((line, trace): Told, log: &AccessLog) {
    if let Some(line) = line {
        log.write(&line.with(None));
    }
    if let Some(trace) = trace {
        trace.send(None, Vec::new());
    }
}

/// What is to be done when a call of our own has ended, which was made for the sake of a request.
pub fn conclude_call(request: &mut Request, outcome: Outcome) {
    if let Some(trace) = end_trace(request, Ended::now(request, outcome)) {
        trace.send(None, Vec::new());
    }
    follow_up(request, outcome);
}

/// Ends the trace of a request, if it has one. Copies of the request that are yet to be sent are part of all of it.
fn end_trace(request: &mut Request, ended: Ended) -> Option<Box<Finished>> {
    let trace = request.trace.take()?;
    if request.route.as_ref().is_some_and(|route| route.mirror.is_some()) {
        trace.identify(&mut request.head.fields);
    }
    let pattern = match request.route.as_ref().map(|route| &*route.settings.matches.paths) {
        Some([one]) => one.to_string(),
        _ => String::new(),
    };
    Some(trace.end(About {
        record: Kept::of(&record(request, ended)),
        start: request.start,
        first_byte: ended.first_byte.map(|after| request.start + after),
        pattern,
        path: request.head.path().to_owned(),
        shares_call: request.trail.shares_call,
    }))
}

/// What follows it in the kernel, if it was sent to an endpoint that is followed.
fn follower(request: &Request, first_byte: Option<Duration>) -> Option<&Follower> {
    let follower = request.trail.endpoint.as_ref()?.follower.as_ref()?;
    (request.trail.followed.is_some() || first_byte.is_some()).then_some(follower)
}

/// What happens beside the request, once it is known how it ended.
pub fn follow_up(request: &mut Request, outcome: Outcome) {
    give_back(request, outcome);
    let Some(route) = request.route.clone() else { return };
    if request.recording.is_some() {
        answer::store(request, &route, outcome);
    }
    // The call that it shared has been looked at already.
    if request.trail.shares_call {
        return;
    }
    // A guard judges the arm, which failed all the same.
    let outcome = request.trail.averted.unwrap_or(outcome);
    if let (Some(canary), Action::Split(split)) = (&route.canary, &route.action) {
        canary.observe(request, outcome, split);
    }
    if let Some(mirror) = &route.mirror {
        mirror.copy(request, outcome);
    }
}

/// Gives back what the request holds, its places and what it was charged too much, by how its call ended; to do that
/// again does nothing. What a model server said settles the charge; a call that was not answered cost its prompt at most.
pub fn give_back(request: &mut Request, outcome: Outcome) {
    request.admitted.leave(outcome, request.trail.status);
    if request.admitted.bill.is_some() {
        let summary = request.progress.summary();
        let worked_on = request.trail.attempts > 0 && outcome != Outcome::ConnectFailed;
        request.admitted.settle(worked_on.then_some(&summary), clock::now());
    }
}

fn count(request: &Request, ended: Ended) {
    let Ended { outcome, status, duration, first_byte } = ended;
    let metrics = &request.metrics;
    let summary = request.progress.summary();
    metrics.ended(outcome, status);
    metrics.duration.observe(duration);
    if let Some(first_byte) = first_byte {
        metrics.first_byte.observe(first_byte);
    }
    metrics.request_bytes.add(request.upload.received());
    metrics.response_bytes.add(request.progress.bytes());
    metrics.tokens_in.add(summary.tokens_in.unwrap_or(0));
    metrics.tokens_out.add(summary.tokens_out.unwrap_or(0));
}

fn record(request: &Request, ended: Ended) -> Record<'_> {
    let Ended { outcome, status, duration, first_byte } = ended;
    let (fields, trail) = (&request.head.fields, &request.trail);
    let summary = request.progress.summary();
    Record {
        time: SystemTime::now() - duration,
        request_id: &request.id,
        trace_id: trace_id(fields).unwrap_or(""),
        client: request.client_ip(),
        method: request.head.method.as_str(),
        host: fields.get("x-forwarded-host").or(fields.get("host")).unwrap_or(b""),
        path: request.path().as_bytes(),
        route: request.route.as_ref().map_or("", |route| &route.settings.name),
        arm: request.arm.as_ref().map_or("", |backend| &backend.name),
        endpoint: trail.endpoint.as_ref().map_or("", |endpoint| &endpoint.name),
        model: request.model.as_deref().unwrap_or(""),
        protocol: protocol(request.head.version),
        status,
        outcome,
        duration,
        first_byte,
        deadline: trail.first_byte_limit.filter(|_| request.allowed.is_unusual(request)),
        upstream_connect: trail.connect,
        queued: trail.queued,
        attempts: trail.attempts,
        hedge: trail.hedge.map_or("", HedgeResult::as_str),
        bytes_in: request.upload.received(),
        bytes_out: request.progress.bytes(),
        chunks: summary.events.max(request.progress.chunks()),
        tokens_in: summary.tokens_in,
        tokens_out: summary.tokens_out,
        user_agent: fields.get("user-agent").unwrap_or(b""),
        app: None,
    }
}

fn protocol(version: u8) -> &'static str {
    match version {
        20 => "HTTP/2",
        10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}
