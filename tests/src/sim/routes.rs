//! Which path answers what.
//!
//! | path | answer |
//! |---|---|
//! | `/v1/models` `/v1/chat/completions` `/v1/completions` `/v1/embeddings` | the model server |
//! | `/health` `/metrics` | as vLLM's |
//! | `/echo` | what was received, as JSON ([`super::Echo`]) |
//! | `/mirror` | the request's body, as it arrives |
//! | `/bytes/N[?chunked=1]` | N bytes of [`super::pattern`], with a length or chunked |
//! | `/text/N[?chunked=1]` | N bytes of [`super::text`], as `text/plain` |
//! | `/events/N[?gap=MS][&size=BYTES]` | N server-sent events, then `[DONE]` |
//! | `/status/CODE` | that status at once; the request's body stays unread |
//! | `/redirect[?to=TARGET][&status=CODE]` | a redirect |
//! | `/early` | 103 with a `link`, then 200 (HTTP/1) |
//! | `/trailers` | a body with the trailer `x-sim-trailer: done`; on HTTP/1 the connection closes after it |
//! | `/raw` | the request's body, as the bytes of the response, then FIN (HTTP/1) |
//! | `/head/N` | a response head with a field of N bytes |
//! | `/close` | an answer with `connection: close` |
//! | `/ws` | a WebSocket that echoes |
//! | `/sim/state` `/sim/seen` `/sim/faults` `/sim/resume` `/sim/hang-up` `/sim/slowdown` | control |
//!
//! Each request header `x-sim-set: NAME=VALUE` sets a field of the answer's head, whatever the path.

use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Cx, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, SERVER};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use super::body::{Busy, Counted, SimBody, whole};
use super::context::{Context, Guard, lock};
use super::fault::Fault;
use super::line::{Line, Order};
use super::openai::{self, Kind};
use super::reports::Wanted;
use super::samples::{Beat, Pattern, Text};
use super::{control, echo, misbehave, websocket};

type Payload = UnsyncBoxBody<Bytes, hyper::Error>;

/// Answers one request.
pub(crate) async fn answer(
    context: Arc<Context>,
    line: Arc<Line>,
    request: Request<Incoming>,
) -> Response<SimBody> {
    let busy = Busy::new(&line);
    let bodiless = request.method() == Method::HEAD;
    let h2 = request.version() == Version::HTTP_2;
    let (parts, body) = request.into_parts();
    let wanted = Wanted::by(&parts, &context);
    let set = wishes(&parts);
    let (mut response, guard) = if parts.uri.path().starts_with("/sim/") {
        (control::answer(&context, &parts, body).await, None)
    } else {
        let guard = context.begin(&parts);
        counted(&context, &line, guard, Request::from_parts(parts, body)).await
    };
    if let Some(report) = wanted {
        response = report.add(response);
    }
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("outrigger-sim"));
    if let Ok(name) = HeaderValue::from_str(&context.options.name) {
        headers.insert(HeaderName::from_static("x-sim-name"), name);
    }
    headers.extend(set);
    if bodiless && h2 {
        response = head_only(response);
    }
    let bodiless = bodiless || matches!(response.status().as_u16(), 101 | 204 | 304);
    response.map(|body| Counted::new(body, guard, busy, bodiless).boxed_unsync())
}

/// Takes the body away and leaves its length: over h2 hyper would send it even to `HEAD`.
fn head_only(mut response: Response<SimBody>) -> Response<SimBody> {
    if let Some(length) = response.body().size_hint().exact() {
        let length = HeaderValue::from(length);
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length);
    }
    response.map(|_| whole(""))
}

/// The fields that the request wants to see in the head of its answer; what is no field is left out.
fn wishes(parts: &Parts) -> HeaderMap {
    let set = parts.headers.get_all("x-sim-set").iter();
    set.filter_map(|wish| {
        let (name, value) = wish.to_str().ok()?.split_once('=')?;
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
    })
    .collect()
}

async fn counted(
    context: &Arc<Context>,
    line: &Arc<Line>,
    mut guard: Guard,
    request: Request<Incoming>,
) -> (Response<SimBody>, Option<Guard>) {
    let (parts, body) = request.into_parts();
    let reads_bodies = lock(&context.faults).reads_bodies();
    let (mut body, mut text) = (body.boxed_unsync(), Bytes::new());
    if reads_bodies {
        let Ok(whole) = body.collect().await else { return (broke_off(), None) };
        text = whole.to_bytes();
        body = Full::new(text.clone()).map_err(|never| match never {}).boxed_unsync();
    }
    let fault = match context.fault_for(&parts, &text) {
        Ok(fault) => fault,
        Err(problem) => return (openai::error(StatusCode::BAD_REQUEST, &problem), Some(guard)),
    };
    let Some(fault) = fault else {
        let call = Call { context, line, parts, slow: 1.0 };
        return call.route(guard, body).await;
    };
    let Some(body) = keep(&guard, body).await else {
        return (broke_off(), None);
    };
    if let Some(response) = misbehave::before(&fault, line, &mut guard).await {
        return (response, Some(guard));
    }
    let slow = if let Fault::Slow(factor) = fault { factor } else { 1.0 };
    let call = Call { context, line, parts, slow };
    match call.route(guard, body).await {
        (response, Some(mut guard)) => {
            (misbehave::during(&fault, line, &mut guard, response), Some(guard))
        }
        gone => gone,
    }
}

/// Receives a body before a fault strikes.
async fn keep(guard: &Guard, body: Payload) -> Option<Payload> {
    let body = body.collect().await.ok()?;
    guard.body_received();
    Some(body.map_err(|never| match never {}).boxed_unsync())
}

/// A request on its way to its route.
struct Call<'a> {
    context: &'a Arc<Context>,
    line: &'a Arc<Line>,
    parts: Parts,
    /// How many times later this request's tokens come.
    slow: f64,
}

impl Call<'_> {
    async fn route(self, guard: Guard, body: Payload) -> (Response<SimBody>, Option<Guard>) {
        let mut guard = Some(guard);
        let path = self.parts.uri.path().to_owned();
        let path = path.strip_prefix('/').unwrap_or_default();
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let response = match (first, rest) {
            ("ws", "") => {
                let request = Request::from_parts(self.parts, body);
                websocket::accept(self.context, &mut guard, request)
            }
            ("v1", rest) => self.generate(rest, &mut guard, body).await,
            ("echo", "") => self.echo(&mut guard, body).await,
            ("mirror", "") => mirror(body),
            ("raw", "") => self.raw(&mut guard, body).await,
            ("trailers", "") => self.trailers(&mut guard).await,
            ("early", "") => self.early().await,
            ("metrics", "") => metrics(self.context),
            _ => self.plain(first, rest),
        };
        (response, guard)
    }

    async fn generate(
        &self,
        path: &str,
        guard: &mut Option<Guard>,
        body: Payload,
    ) -> Response<SimBody> {
        let kind = match path {
            "models" => return openai::models(self.context),
            "chat/completions" => Kind::Chat,
            "completions" => Kind::Completion,
            "embeddings" => Kind::Embedding,
            _ => return openai::error(StatusCode::NOT_FOUND, "no such endpoint"),
        };
        if self.parts.method != Method::POST {
            return openai::error(StatusCode::METHOD_NOT_ALLOWED, "POST only");
        }
        let Ok(body) = body.collect().await else {
            drop(guard.take());
            return broke_off();
        };
        let Some(guard) = guard else { return broke_off() };
        guard.body_received();
        openai::answer(self.context, guard, kind, &body.to_bytes(), self.slow).await
    }

    async fn echo(&self, guard: &mut Option<Guard>, body: Payload) -> Response<SimBody> {
        let head = self.line.take_head();
        let name = &self.context.options.name;
        let Some(echo) = echo::receive(name, &self.parts, head, body).await else {
            drop(guard.take());
            return broke_off();
        };
        guard.iter().for_each(Guard::body_received);
        openai::json_value(StatusCode::OK, &serde_json::json!(echo))
    }

    /// Writes the request's body as the response; never returns.
    async fn raw(&self, guard: &mut Option<Guard>, body: Payload) -> Response<SimBody> {
        let bytes = body.collect().await.map(http_body_util::Collected::to_bytes);
        self.finish(guard, bytes.unwrap_or_default()).await
    }

    async fn trailers(&self, guard: &mut Option<Guard>) -> Response<SimBody> {
        if self.parts.version == Version::HTTP_2 {
            let fields = HeaderMap::from_iter([(
                HeaderName::from_static("x-sim-trailer"),
                HeaderValue::from_static("done"),
            )]);
            let body = Full::<Bytes>::from("trailed").with_trailers(async { Some(Ok(fields)) });
            return Response::new(body.boxed_unsync());
        }
        let text = "HTTP/1.1 200 OK\r\nserver: outrigger-sim\r\ntransfer-encoding: chunked\r\n\
            trailer: x-sim-trailer\r\nconnection: close\r\n\r\n\
            7\r\ntrailed\r\n0\r\nx-sim-trailer: done\r\n\r\n";
        self.finish(guard, Bytes::from_static(text.as_bytes())).await
    }

    async fn finish(&self, guard: &mut Option<Guard>, bytes: Bytes) -> Response<SimBody> {
        guard.iter_mut().for_each(Guard::completed);
        self.line.end(Order::Finish(bytes));
        pending().await
    }

    async fn early(&self) -> Response<SimBody> {
        if self.parts.version != Version::HTTP_2 {
            let hints =
                "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload; as=style\r\n\r\n";
            self.line.inject(hints).await;
        }
        Response::new(whole("late"))
    }

    fn plain(&self, first: &str, rest: &str) -> Response<SimBody> {
        match (first, rest) {
            ("health" | "", "") => Response::new(whole("")),
            ("close", "") => with(whole("closing"), CONNECTION, HeaderValue::from_static("close")),
            ("redirect", "") => self.redirect(),
            ("bytes", size) => self.bytes(size),
            ("text", size) => self.text(size),
            ("events", count) => self.events(count),
            ("status", code) => status(code),
            ("head", size) => big_head(size),
            _ => openai::error(StatusCode::NOT_FOUND, "no such path"),
        }
    }

    fn redirect(&self) -> Response<SimBody> {
        let target = HeaderValue::from_str(self.query("to").unwrap_or("/health"));
        let mut response = status(self.query("status").unwrap_or("302"));
        if let Ok(target) = target {
            response.headers_mut().insert(LOCATION, target);
        }
        response
    }

    fn bytes(&self, size: &str) -> Response<SimBody> {
        let Ok(size) = size.parse() else { return not_a_number() };
        let body = Pattern::new(size, self.query("chunked").is_some());
        with(
            body.boxed_unsync(),
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        )
    }

    fn text(&self, size: &str) -> Response<SimBody> {
        let Ok(size) = size.parse() else { return not_a_number() };
        let body = Text::new(size, self.query("chunked").is_some());
        with(body.boxed_unsync(), CONTENT_TYPE, HeaderValue::from_static("text/plain"))
    }

    fn events(&self, count: &str) -> Response<SimBody> {
        let gap = self.query("gap").unwrap_or("0").parse();
        let size = self.query("size").unwrap_or("0").parse();
        let (Ok(count), Ok(gap), Ok(size)) = (count.parse(), gap, size) else {
            return not_a_number();
        };
        let body = Beat::new(count, Duration::from_millis(gap), size);
        with(body.boxed_unsync(), CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))
    }

    /// The value of a query parameter as it was written.
    fn query(&self, name: &str) -> Option<&str> {
        let pairs =
            self.parts.uri.query()?.split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

fn metrics(context: &Context) -> Response<SimBody> {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    with(whole(context.metrics()), CONTENT_TYPE, kind)
}

fn mirror(body: Payload) -> Response<SimBody> {
    // A request that breaks off takes the connection, and so the answer, with it.
    Response::new(UntilError(body).boxed_unsync())
}

/// A body that ends where another fails.
struct UntilError(Payload);

impl Body for UntilError {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.and_then(Result::ok).map(Ok))
    }
}

fn status(code: &str) -> Response<SimBody> {
    let code = code.parse().ok().filter(|code: &u16| *code >= 200);
    let Some(status) = code.and_then(|code| StatusCode::from_u16(code).ok()) else {
        return not_a_number();
    };
    let mut response = Response::new(whole(match status.as_u16() {
        204 | 304 => String::new(),
        code => format!("status {code}"),
    }));
    *response.status_mut() = status;
    response
}

fn big_head(size: &str) -> Response<SimBody> {
    let value = size.parse().ok().and_then(|n| HeaderValue::try_from("h".repeat(n)).ok());
    match value {
        Some(value) => with(whole("big head"), HeaderName::from_static("x-sim-big"), value),
        None => not_a_number(),
    }
}

/// Answers a client that is gone or confused; its request has been counted as aborted.
fn broke_off() -> Response<SimBody> {
    openai::error(StatusCode::BAD_REQUEST, "the request's body broke off")
}

fn not_a_number() -> Response<SimBody> {
    openai::error(StatusCode::BAD_REQUEST, "the path does not hold a usable number")
}

fn with(body: SimBody, name: HeaderName, value: HeaderValue) -> Response<SimBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(name, value);
    response
}
