//! What the record of a request says as spans: names, attributes and errors by the semantic conventions of OpenTelemetry
//! for HTTP and generative AI, and `outrigger.*` for what they have no word for.
//!
//! One span of the kind *server* is the request; in it are its waits for a place and, of the kind *client*, its attempts;
//! in an attempt are the making of its connection and what the kernel saw of it. A pure function of a record, but for the
//! ids of the inner spans.
//!
//! What it leaves out: queries, bodies and headers, which may hold secrets.

#[cfg(test)]
mod tests;

use std::{borrow::Cow, time::SystemTime};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags,
    trace::{Event, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use rand::Rng;

use super::{
    context::id,
    record::{Attempt, Ending, Finished, Wait, Why},
    steps::{Step, StepName, steps},
};
use crate::{outcome::Outcome, telemetry::access_log::Record};

/// The longest text of an attribute in bytes.
const LONGEST: usize = 1024;

/// Methods that may stand in the name of a span (RFC 9110, RFC 5789): others are a client's invention.
const METHODS: [&str; 9] =
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// All spans of a request.
pub(super) fn spans(
    finished: &Finished,
    scope: &InstrumentationScope,
    rng: &mut impl Rng,
) -> Vec<SpanData> {
    let maker = Maker::new(finished, scope);
    let mut spans = Vec::with_capacity(count(finished));
    if !finished.trace.is_part {
        spans.push(maker.request());
    }
    spans.extend(finished.trace.waits.iter().map(|wait| maker.wait(wait, id(rng))));
    for (number, attempt) in finished.trace.attempts.iter().enumerate() {
        spans.push(maker.attempt(number, attempt));
        spans.extend(maker.connection(attempt, || id(rng)));
        let steps = maker.steps(number, attempt);
        spans.extend(steps.into_iter().map(|step| maker.step(&step, attempt, id(rng))));
    }
    spans
}

/// How many they are.
pub(super) fn count(finished: &Finished) -> usize {
    let trace = &finished.trace;
    let connections = trace.attempts.iter().filter(|attempt| attempt.connected.is_some()).count();
    let steps = finished.timeline.map_or(0, |timeline| {
        let seen = [
            timeline.sent,
            timeline.arrived,
            timeline.picked,
            timeline.first_write,
            timeline.last_write,
        ];
        seen.windows(2).filter(|ends| ends.iter().all(Option::is_some)).count()
    });
    let followed = trace.attempts.get(trace.current).is_some();
    usize::from(!trace.is_part)
        + trace.waits.len()
        + trace.attempts.len()
        + connections
        + if followed { steps } else { 0 }
}

struct Maker<'a> {
    finished: &'a Finished,
    record: Record<'a>,
    scope: &'a InstrumentationScope,
    state: TraceState,
}

/// What differs between spans.
struct Part {
    span: SpanId,
    parent: SpanId,
    kind: SpanKind,
    name: Cow<'static, str>,
    time: (SystemTime, SystemTime),
    attributes: Attributes,
    status: Status,
}

impl<'a> Maker<'a> {
    fn new(finished: &'a Finished, scope: &'a InstrumentationScope) -> Self {
        // What others have put there may be against its rules; it was passed on all the same.
        let state = finished.trace.state.as_deref().and_then(|state| state.parse().ok());
        let record = finished.about.record.with(None);
        Maker { finished, record, scope, state: state.unwrap_or_default() }
    }

    fn span(&self, part: Part) -> SpanData {
        let trace = &self.finished.trace;
        let state = self.state.clone();
        SpanData {
            span_context: SpanContext::new(trace.id, part.span, TraceFlags::SAMPLED, false, state),
            parent_span_id: part.parent,
            parent_span_is_remote: part.span == trace.span && part.parent != SpanId::INVALID,
            span_kind: part.kind,
            name: part.name,
            start_time: part.time.0,
            end_time: part.time.1,
            attributes: part.attributes.0,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: part.status,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn request(&self) -> SpanData {
        let (trace, record, anchor) = (&self.finished.trace, &self.record, &self.finished.anchor);
        let method = known_method(record.method).unwrap_or("HTTP");
        let name = match record.route {
            "" => method.to_owned(),
            route => format!("{method} {route}"),
        };
        let failure = failure_of_request(record);
        let mut span = self.span(Part {
            span: trace.span,
            parent: trace.parent,
            kind: SpanKind::Server,
            name: name.into(),
            time: (anchor.time_of(self.finished.about.start), anchor.time),
            attributes: self.about_request().text("error.type", failure.as_deref().unwrap_or("")),
            status: status(failure.is_some()),
        });
        span.events.events.extend(trace.events.iter().map(|event| {
            let about = event.about.iter().map(|(key, word)| KeyValue::new(*key, *word)).collect();
            Event::new(event.name, anchor.time_of(event.at), about, 0)
        }));
        span
    }

    fn about_request(&self) -> Attributes {
        let (record, about) = (&self.record, &self.finished.about);
        let host = String::from_utf8_lossy(record.host);
        let (name, port) = host_and_port(&host);
        let client = record.client.map(|client| client.to_string()).unwrap_or_default();
        Attributes::default()
            .method(record.method)
            .text("url.scheme", "http")
            .text("url.path", &String::from_utf8_lossy(without_query(record.path)))
            .text("http.route", &about.pattern)
            .text("server.address", name)
            .number("server.port", port)
            .text("client.address", &client)
            .text("network.protocol.name", "http")
            .text("network.protocol.version", record.protocol.trim_start_matches("HTTP/"))
            .text("user_agent.original", &String::from_utf8_lossy(record.user_agent))
            .number("http.request.body.size", record.bytes_in)
            .number("http.response.body.size", record.bytes_out)
            .number(
                "http.response.status_code",
                Some(u64::from(record.status)).filter(|it| *it != 499),
            )
            .text("outrigger.outcome", record.outcome.as_str())
            .text("outrigger.request_id", record.request_id)
            .text("outrigger.route", record.route)
            .text("outrigger.arm", record.arm)
            .number("outrigger.attempts", u64::from(record.attempts))
            .number("outrigger.chunks", Some(record.chunks).filter(|it| *it > 0))
            .flag("outrigger.shared_call", about.shares_call)
            .text(
                "gen_ai.operation.name",
                if record.model.is_empty() { "" } else { operation(without_query(record.path)) },
            )
            .text("gen_ai.request.model", record.model)
            .number("gen_ai.usage.input_tokens", record.tokens_in)
            // Without those of the prompt they were not told but counted.
            .number("gen_ai.usage.output_tokens", record.tokens_in.and(record.tokens_out))
    }

    fn wait(&self, wait: &Wait, span: SpanId) -> SpanData {
        let anchor = &self.finished.anchor;
        self.span(Part {
            span,
            parent: self.finished.trace.span,
            kind: SpanKind::Internal,
            name: "queue".into(),
            time: (anchor.time_of(wait.from), anchor.time_of(wait.to)),
            attributes: Attributes::default()
                .text("outrigger.queue.scope", wait.scope.as_str())
                .text("outrigger.queue.name", &wait.name),
            status: Status::Unset,
        })
    }

    fn attempt(&self, number: usize, attempt: &Attempt) -> SpanData {
        let anchor = &self.finished.anchor;
        let failure = failure_of_attempt(self.ending(attempt), attempt.status);
        let mut span = self.span(Part {
            span: attempt.span,
            parent: self.finished.trace.span,
            kind: SpanKind::Client,
            name: known_method(self.record.method).unwrap_or("HTTP").to_owned().into(),
            time: self.time_of(attempt),
            attributes: self
                .about_attempt(number, attempt)
                .text("error.type", failure.as_deref().unwrap_or("")),
            status: status(failure.is_some()),
        });
        let first_byte =
            self.finished.about.first_byte.filter(|_| number == self.finished.trace.current);
        for (name, at) in [("stale connection", attempt.stale), ("first byte", first_byte)] {
            if let Some(at) = at {
                span.events.events.push(Event::new(name, anchor.time_of(at), Vec::new(), 0));
            }
        }
        span
    }

    fn about_attempt(&self, number: usize, attempt: &Attempt) -> Attributes {
        let record = &self.record;
        let (ip, port) = (attempt.address.ip().to_string(), u64::from(attempt.address.port()));
        let (retry, again) = match attempt.why {
            Why::Retry(reason) => (reason.name(), Some(number as u64)),
            Why::First | Why::Hedge => ("", None),
        };
        let ended = match self.ending(attempt) {
            Ending::Outcome(outcome) => outcome.as_str(),
            Ending::Lost => "lost",
        };
        let attributes = Attributes::default()
            .method(record.method)
            .text("url.full", &format!("http://{}{}", attempt.address, self.finished.about.path))
            .text("server.address", &ip)
            .number("server.port", port)
            .text("network.peer.address", &ip)
            .number("network.peer.port", port)
            .number("http.response.status_code", attempt.status.map(u64::from))
            .number("http.request.resend_count", again)
            .text("outrigger.backend", record.arm)
            .number("outrigger.attempt", number as u64 + 1)
            .text("outrigger.retry_reason", retry)
            .flag("outrigger.hedge", attempt.why == Why::Hedge)
            .text("outrigger.outcome", ended);
        match self.finished.timeline.filter(|_| number == self.finished.trace.current) {
            Some(timeline) => attributes.gpu(timeline.gpu.as_ref()),
            None => attributes,
        }
    }

    fn connection(&self, attempt: &Attempt, id: impl FnOnce() -> SpanId) -> Option<SpanData> {
        let (from, to) = attempt.connected?;
        let anchor = &self.finished.anchor;
        Some(self.span(Part {
            span: id(),
            parent: attempt.span,
            kind: SpanKind::Internal,
            name: "connect".into(),
            time: (anchor.time_of(from), anchor.time_of(to)),
            attributes: Attributes::default(),
            status: Status::Unset,
        }))
    }

    /// What the kernel saw is of the attempt whose answer was passed on.
    fn steps(&self, number: usize, attempt: &Attempt) -> Vec<Step> {
        let timeline = self.finished.timeline.filter(|_| number == self.finished.trace.current);
        timeline.map_or_else(Vec::new, |timeline| {
            steps(&timeline, &self.finished.anchor, self.time_of(attempt))
        })
    }

    fn step(&self, step: &Step, attempt: &Attempt, span: SpanId) -> SpanData {
        let of_app = self.finished.timeline.filter(|_| step.name.is_of_app());
        let attributes = Attributes::default().text("outrigger.seen_by", "kernel");
        let attributes = match of_app {
            Some(app) => attributes
                .number("app.pid", Some(u64::from(app.process)).filter(|_| app.picked.is_some()))
                .number("app.writes", app.writes)
                .millis("app.longest_gap_ms", app.longest_gap),
            None => attributes,
        };
        let mut span = self.span(Part {
            span,
            parent: attempt.span,
            kind: SpanKind::Internal,
            name: step.name.as_str().into(),
            time: (step.from, step.to),
            attributes,
            status: Status::Unset,
        });
        if step.name == StepName::Answer {
            span.events.events.extend(self.writes(step));
        }
        span
    }

    /// The writes of an answer, but the first, with which it begins.
    fn writes(&self, answer: &Step) -> impl Iterator<Item = Event> {
        let Finished { writes, anchor, .. } = self.finished;
        writes.iter().map(|write| {
            let at = anchor.time_of_kernel(write.at).clamp(answer.from, answer.to);
            let bytes = i64::try_from(write.bytes).unwrap_or(i64::MAX);
            Event::new("write", at, vec![KeyValue::new("app.bytes", bytes)], 0)
        })
    }

    /// One that was under way when the request ended has ended with it.
    fn ending(&self, attempt: &Attempt) -> Ending {
        attempt.end.map_or(Ending::Outcome(self.record.outcome), |(_, ending)| ending)
    }

    fn time_of(&self, attempt: &Attempt) -> (SystemTime, SystemTime) {
        let anchor = &self.finished.anchor;
        let to = attempt.end.map_or(anchor.time, |(at, _)| anchor.time_of(at));
        (anchor.time_of(attempt.from), to)
    }
}

fn status(failed: bool) -> Status {
    if failed { Status::error("") } else { Status::Unset }
}

/// The method, if it is one of the known.
fn known_method(method: &str) -> Option<&'static str> {
    METHODS.into_iter().find(|known| *known == method)
}

/// What the proxy did wrong, or its endpoints, by the rules for servers: a status from 500 on, or no whole answer for another
/// reason than the client's.
fn failure_of_request(record: &Record<'_>) -> Option<Cow<'static, str>> {
    let own = record.outcome.status().is_some_and(|status| status >= 500);
    match (own, record.status) {
        (true, _) => Some(record.outcome.as_str().into()),
        (false, 500..) => Some(record.status.to_string().into()),
        (false, _) => None,
    }
}

/// What went wrong with an attempt, by the rules for clients: a status from 400 on, or no whole answer. That nobody wanted
/// it any more is no failure.
fn failure_of_attempt(ending: Ending, status: Option<u16>) -> Option<Cow<'static, str>> {
    match (ending, status) {
        (Ending::Lost | Ending::Outcome(Outcome::ClientGone), _) => None,
        (Ending::Outcome(outcome), Some(status @ 400..)) if outcome.is_of_upstream() => {
            Some(status.to_string().into())
        }
        (Ending::Outcome(outcome), _) if outcome.is_of_upstream() => None,
        (Ending::Outcome(outcome), _) => Some(outcome.as_str().into()),
    }
}

/// What a model is asked for, as far as the path of the OpenAI interface tells.
fn operation(path: &[u8]) -> &'static str {
    match path {
        path if path.ends_with(b"/chat/completions") => "chat",
        path if path.ends_with(b"/completions") => "text_completion",
        path if path.ends_with(b"/embeddings") => "embeddings",
        _ => "",
    }
}

fn without_query(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'?').next().unwrap_or(path)
}

fn host_and_port(host: &str) -> (&str, Option<u64>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
        _ => (host, None),
    }
}

/// Attributes of a span; what is empty or not known is none.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(mut self, key: &'static str, text: &str) -> Self {
        if !text.is_empty() {
            let end = text.floor_char_boundary(LONGEST);
            self.0.push(KeyValue::new(key, text[..end].to_owned()));
        }
        self
    }

    fn number(mut self, key: &'static str, number: impl Into<Option<u64>>) -> Self {
        if let Some(number) = number.into() {
            self.0.push(KeyValue::new(key, i64::try_from(number).unwrap_or(i64::MAX)));
        }
        self
    }

    fn millis(mut self, key: &'static str, time: std::time::Duration) -> Self {
        self.0.push(KeyValue::new(key, time.as_nanos() as f64 / 1e6));
        self
    }

    fn flag(mut self, key: &'static str, is_so: bool) -> Self {
        if is_so {
            self.0.push(KeyValue::new(key, true));
        }
        self
    }

    fn method(self, method: &str) -> Self {
        match known_method(method) {
            Some(known) => self.text("http.request.method", known),
            None => self
                .text("http.request.method", "_OTHER")
                .text("http.request.method_original", method),
        }
    }

    fn gpu(self, wait: Option<&crate::probes::GpuWait>) -> Self {
        let Some(wait) = wait else { return self };
        let attribution = if wait.among > 1 { "shared" } else { "exact" };
        self.millis("gpu.wait_ms", wait.took)
            .text("gpu.wait_method", wait.method.as_str())
            .text("gpu.wait_attribution", attribution)
            .number("gpu.wait_among", u64::from(wait.among))
    }
}
