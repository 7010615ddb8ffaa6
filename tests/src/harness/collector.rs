//! A collector of traces: takes what the proxy sends by OTLP over HTTP, and keeps it for the test to look at. It can also
//! be one that refuses, is silent, or talks nonsense.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{fail, within};

/// How it treats what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It takes all.
    Willing,
    /// It answers with this status.
    Answers(u16),
    /// It takes the message, but so many spans fewer.
    Rejects(i64),
    /// It never answers.
    Silent,
    /// It says that all is well, in words that are no message.
    Garbled,
}

/// A running collector; it ends with the test's runtime.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    mood: Arc<watch::Sender<Mood>>,
    taken: watch::Receiver<Taken>,
}

/// What came so far.
#[derive(Debug, Default)]
struct Taken {
    messages: usize,
    headers: HeaderMap,
    path: String,
    resource: BTreeMap<String, String>,
    spans: Vec<Span>,
}

/// A span as it came; ids in hexadecimal digits, times in nanoseconds of Unix time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The trace.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// That of the span it is in; empty when it begins the trace.
    pub parent: String,
    /// The `tracestate`.
    pub state: String,
    /// What it is called.
    pub name: String,
    /// `SERVER`, `CLIENT` or `INTERNAL`.
    pub kind: String,
    /// When it began.
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// Whether it failed.
    pub failed: bool,
    /// Attributes, as text.
    pub about: BTreeMap<String, String>,
    /// Names and times of its events.
    pub events: Vec<(String, u64)>,
}

impl Collector {
    /// One that takes all, on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (told, taken) = watch::channel(Taken::default());
        let mood = Arc::new(watch::channel(Mood::Willing).0);
        let (told, moods) = (Arc::new(told), Arc::clone(&mood));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (told, moods) = (Arc::clone(&told), Arc::clone(&moods));
                let take =
                    service_fn(move |request| take(request, *moods.borrow(), Arc::clone(&told)));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), take),
                );
            }
        });
        Self { address, mood, taken }
    }

    /// Where it is, as a configuration has it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it is like this.
    pub fn is(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Messages that came so far, whatever became of them.
    pub fn messages(&self) -> usize {
        self.taken.borrow().messages
    }

    /// What the last message said of itself: a header, or `:path`.
    pub fn header(&self, name: &str) -> Option<String> {
        let taken = self.taken.borrow();
        match name {
            ":path" => Some(taken.path.clone()),
            name => Some(taken.headers.get(name)?.to_str().ok()?.to_owned()),
        }
    }

    /// What the last message said of the proxy.
    pub fn resource(&self) -> BTreeMap<String, String> {
        self.taken.borrow().resource.clone()
    }

    /// Every span that was taken, as they came.
    pub fn spans(&self) -> Vec<Span> {
        self.taken.borrow().spans.clone()
    }

    /// Waits for so many messages.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn await_messages(&self, count: usize) {
        self.awaited(&format!("{count} messages"), |taken| taken.messages >= count).await;
    }

    /// The spans, once there are at least so many.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn await_spans(&self, count: usize) -> Vec<Span> {
        self.awaited(&format!("{count} spans"), |taken| taken.spans.len() >= count).await;
        self.spans()
    }

    async fn awaited(&self, what: &str, wished: impl Fn(&Taken) -> bool) {
        let mut taken = self.taken.clone();
        if within(what, taken.wait_for(|taken| wished(taken))).await.is_err() {
            fail("the collector has ended");
        }
    }
}

impl Span {
    /// An attribute; empty when there is none.
    pub fn says(&self, key: &str) -> &str {
        self.about.get(key).map_or("", String::as_str)
    }

    /// How long it took, in seconds.
    pub fn seconds(&self) -> f64 {
        (self.end - self.start) as f64 / 1e9
    }

    /// The trace of these spans as people read it: each below the one it is in, with when it began and how long it took.
    pub fn tree(spans: &[Self]) -> String {
        let known = |id: &str| spans.iter().any(|span| span.id == id);
        let roots = spans.iter().filter(|span| !known(&span.parent));
        let mut text = String::new();
        roots.for_each(|root| root.write(spans, (0, root.start), &mut text));
        text
    }

    fn write(&self, spans: &[Self], (depth, zero): (usize, u64), text: &mut String) {
        let millis = |nanos: u64| nanos as f64 / 1e6;
        let name = format!("{}{} {}", "  ".repeat(depth), self.kind, self.name);
        let (from, took) = (millis(self.start.saturating_sub(zero)), self.seconds() * 1e3);
        let failed = if self.failed { " FAILED" } else { "" };
        *text += &format!("{name:<36} {from:>9.3} ms {took:>9.3} ms{failed}  {:?}\n", self.about);
        for (event, at) in &self.events {
            *text +=
                &format!("{}· {event} at {:.3} ms\n", "  ".repeat(depth + 1), millis(at - zero));
        }
        let mut inner: Vec<_> = spans.iter().filter(|span| span.parent == self.id).collect();
        inner.sort_by_key(|span| span.start);
        inner.iter().for_each(|span| span.write(spans, (depth + 1, zero), text));
    }
}

async fn take(
    request: Request<Incoming>,
    mood: Mood,
    told: Arc<watch::Sender<Taken>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    let message = ExportTraceServiceRequest::decode(body);
    let message = message.unwrap_or_else(|error| fail(&format!("not OTLP: {error}")));
    let takes = matches!(mood, Mood::Willing | Mood::Rejects(_) | Mood::Garbled);
    told.send_modify(|taken| {
        taken.messages += 1;
        (taken.headers, taken.path) = (head.headers, head.uri.to_string());
        for resource in message.resource_spans {
            taken.resource = resource.resource.map(|it| about(it.attributes)).unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            if takes {
                taken.spans.extend(spans.map(Span::from));
            }
        }
    });
    let (status, body) = match mood {
        Mood::Willing => (200, Bytes::new()),
        Mood::Garbled => (200, Bytes::from_static(b"\xff\xff\xff all is well")),
        Mood::Answers(status) => (status, Bytes::from_static(b"no")),
        Mood::Rejects(rejected_spans) => {
            let error_message = "too old".to_owned();
            let part = ExportTracePartialSuccess { rejected_spans, error_message };
            let answer = ExportTraceServiceResponse { partial_success: Some(part) };
            (200, answer.encode_to_vec().into())
        }
        Mood::Silent => std::future::pending().await,
    };
    let answer = Response::builder().status(status).body(Full::new(body));
    Ok(answer.unwrap_or_else(|_| fail("a test names a status that is none")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn about(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(is_so)) => is_so.to_string(),
        other => format!("{other:?}"),
    }
}

impl From<otlp::Span> for Span {
    fn from(span: otlp::Span) -> Self {
        let failed = span.status.as_ref().is_some_and(|status| status.code == 2);
        Self {
            kind: span.kind().as_str_name().trim_start_matches("SPAN_KIND_").to_owned(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            state: span.trace_state,
            name: span.name,
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
            failed,
            about: about(span.attributes),
            events: span
                .events
                .into_iter()
                .map(|event| (event.name, event.time_unix_nano))
                .collect(),
        }
    }
}
