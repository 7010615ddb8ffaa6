//! Ordinary requests, over HTTP/1.1 or h2, and their answers with times.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::streaming::Streaming;
use super::within;
use crate::sim::Echo;

type Payload = UnsyncBoxBody<Bytes, Infallible>;

/// Which HTTP a client speaks; h2 is by prior knowledge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1
    #[default]
    Http1,
    /// HTTP/2 in clear text.
    H2,
}

/// A request, before it is sent.
#[derive(Debug)]
pub struct Call {
    method: Method,
    target: String,
    host: Option<String>,
    headers: HeaderMap,
    content: Content,
    protocol: Protocol,
}

#[derive(Debug)]
enum Content {
    Bytes(Bytes),
    Json(Value),
    Fed(mpsc::Receiver<Frame<Bytes>>),
}

/// Sends the body of a [`Call`] bit by bit; dropping it ends the body.
#[derive(Debug)]
pub struct Feed(mpsc::Sender<Frame<Bytes>>);

impl Feed {
    /// Sends a part. False when nobody reads the body any more.
    pub async fn send(&self, data: impl Into<Bytes>) -> bool {
        self.0.send(Frame::data(data.into())).await.is_ok()
    }

    /// Ends the body with trailers. On HTTP/1 the request must name them in a `trailer` header.
    pub async fn trailers(self, trailers: HeaderMap) -> bool {
        self.0.send(Frame::trailers(trailers)).await.is_ok()
    }
}

impl Call {
    /// A request with this method for this target (path and query).
    ///
    /// # Panics
    /// When that is no method.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.parse().expect("a method is a token"),
            target: target.to_owned(),
            host: None,
            headers: HeaderMap::new(),
            content: Content::Bytes(Bytes::new()),
            protocol: Protocol::Http1,
        }
    }

    /// A GET.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A POST.
    pub fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    /// A chat completion with one message of the user.
    pub fn chat(prompt: &str) -> Self {
        let messages = json!([{"role": "user", "content": prompt}]);
        Self::post("/v1/chat/completions").json(json!({"model": "sim-model", "messages": messages}))
    }

    /// Adds a header.
    ///
    /// # Panics
    /// When that is no header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a header name is a token");
        self.headers.append(name, HeaderValue::try_from(value).expect("a header value is text"));
        self
    }

    /// Asks every simulator on the way, or with `;at=NAME` one of them, for a fault.
    #[must_use]
    pub fn fault(self, fault: &str) -> Self {
        self.header(crate::sim::fault::HEADER, fault)
    }

    /// Asks for this host instead of the address it is sent to.
    #[must_use]
    pub fn host(self, host: &str) -> Self {
        Self { host: Some(host.to_owned()), ..self }
    }

    /// Sends these bytes as the body.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Self { content: Content::Bytes(body.into()), ..self }
    }

    /// Sends this as the body, in JSON.
    #[must_use]
    pub fn json(self, body: Value) -> Self {
        let call = Self { content: Content::Json(body), ..self };
        call.header("content-type", "application/json")
    }

    /// Sends a body that the test writes while the request is under way.
    #[must_use]
    pub fn fed(self) -> (Self, Feed) {
        let (sender, receiver) = mpsc::channel(1);
        (Self { content: Content::Fed(receiver), ..self }, Feed(sender))
    }

    /// Sets a field of a JSON body.
    ///
    /// # Panics
    /// When the body is not JSON.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        match &mut self.content {
            Content::Json(body) => body[name] = value.into(),
            Content::Bytes(_) | Content::Fed(_) => super::fail("only a JSON body has fields"),
        }
        self
    }

    /// Asks for this model.
    #[must_use]
    pub fn model(self, model: &str) -> Self {
        self.field("model", model)
    }

    /// Asks for an answer of so many tokens.
    #[must_use]
    pub fn max_tokens(self, tokens: u64) -> Self {
        self.field("max_tokens", tokens)
    }

    /// Asks for the answer as a stream of events.
    #[must_use]
    pub fn streaming(self) -> Self {
        self.field("stream", true)
    }

    /// Speaks h2.
    #[must_use]
    pub fn h2(self) -> Self {
        self.over(Protocol::H2)
    }

    /// Speaks this protocol.
    #[must_use]
    pub fn over(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// Sends it on a connection of its own and takes the whole answer.
    ///
    /// # Panics
    /// When no response head comes. An answer that breaks off later is told by [`Answer::cut`].
    pub async fn send(self, to: SocketAddr) -> Answer {
        let told = format!("{} {}", self.method, self.target);
        match self.try_send(to).await {
            Ok(answer) => answer,
            Err(why) => super::fail(&format!("{told} got no answer: {why}")),
        }
    }

    /// Sends it on a connection of its own and takes the whole answer.
    ///
    /// # Errors
    /// When no response head comes.
    pub async fn try_send(self, to: SocketAddr) -> Result<Answer, String> {
        Ok(self.try_open(to).await?.rest().await)
    }

    /// Sends it on a connection of its own and waits for the head of the answer. Dropping the answer hangs up.
    ///
    /// # Panics
    /// When no response head comes.
    pub async fn open(self, to: SocketAddr) -> Streaming {
        match self.try_open(to).await {
            Ok(streaming) => streaming,
            Err(why) => super::fail(&format!("no answer: {why}")),
        }
    }

    /// Sends it on a connection of its own and waits for the head of the answer.
    ///
    /// # Errors
    /// When no response head comes.
    pub async fn try_open(self, to: SocketAddr) -> Result<Streaming, String> {
        let began = Instant::now();
        let mut client = Client::try_connect(to, self.protocol).await?;
        client.exchange(self, began).await
    }

    fn request(self, to: SocketAddr) -> Request<Payload> {
        let host = self.host.unwrap_or_else(|| to.to_string());
        let h2 = self.protocol == Protocol::H2;
        let uri = if h2 { format!("http://{host}{}", self.target) } else { self.target };
        let body = match self.content {
            Content::Bytes(bytes) => Full::new(bytes).boxed_unsync(),
            Content::Json(value) => Full::new(value.to_string().into()).boxed_unsync(),
            Content::Fed(frames) => Fed(frames).boxed_unsync(),
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = uri.parse::<Uri>().expect("a test asks for a valid target");
        *request.headers_mut() = self.headers;
        if !h2 {
            let host = HeaderValue::try_from(host).expect("a host is text");
            request.headers_mut().entry(http::header::HOST).or_insert(host);
        }
        request
    }
}

/// The body that a [`Feed`] sends.
struct Fed(mpsc::Receiver<Frame<Bytes>>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// One connection, kept open between requests.
#[derive(Debug)]
pub struct Client {
    to: SocketAddr,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Payload>),
    H2(http2::SendRequest<Payload>),
}

impl Client {
    /// Connects.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn connect(to: SocketAddr, protocol: Protocol) -> Self {
        match Self::try_connect(to, protocol).await {
            Ok(client) => client,
            Err(why) => super::fail(&format!("cannot connect to {to}: {why}")),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn try_connect(to: SocketAddr, protocol: Protocol) -> Result<Self, String> {
        let stream =
            within("connecting", TcpStream::connect(to)).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let io = TokioIo::new(stream);
        let sender = match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await.map_err(|e| e.to_string())?;
                tokio::spawn(connection.with_upgrades());
                Sender::Http1(sender)
            }
            Protocol::H2 => {
                let handshake = http2::handshake(TokioExecutor::new(), io).await;
                let (sender, connection) = handshake.map_err(|e| e.to_string())?;
                tokio::spawn(connection);
                Sender::H2(sender)
            }
        };
        Ok(Self { to, sender })
    }

    /// Sends a request (in this connection's protocol) and takes the whole answer.
    ///
    /// # Errors
    /// When no response head comes.
    pub async fn send(&mut self, call: Call) -> Result<Answer, String> {
        Ok(self.open(call).await?.rest().await)
    }

    /// Sends a request (in this connection's protocol) and waits for the head of the answer.
    ///
    /// # Errors
    /// When no response head comes.
    pub async fn open(&mut self, call: Call) -> Result<Streaming, String> {
        self.exchange(call, Instant::now()).await
    }

    /// Another handle on the same connection, for requests side by side.
    ///
    /// # Panics
    /// On HTTP/1, which has them one after the other.
    #[must_use]
    pub fn share(&self) -> Self {
        match &self.sender {
            Sender::H2(sender) => Self { to: self.to, sender: Sender::H2(sender.clone()) },
            Sender::Http1(_) => super::fail("an HTTP/1 connection cannot be shared"),
        }
    }

    /// Whether the connection has been closed.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::H2(sender) => sender.is_closed(),
        }
    }

    async fn exchange(&mut self, call: Call, began: Instant) -> Result<Streaming, String> {
        let response: hyper::Result<Response<Incoming>> = match &mut self.sender {
            Sender::Http1(sender) => {
                let request = call.over(Protocol::Http1).request(self.to);
                within("an answer", async {
                    sender.ready().await?;
                    sender.send_request(request).await
                })
                .await
            }
            Sender::H2(sender) => {
                let request = call.over(Protocol::H2).request(self.to);
                within("an answer", async {
                    sender.ready().await?;
                    sender.send_request(request).await
                })
                .await
            }
        };
        response.map(|response| Streaming::new(response, began)).map_err(|e| chain(&e))
    }
}

/// An error with everything behind it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A response that has been read as far as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailer fields.
    pub trailers: HeaderMap,
    /// Why the body broke off, when it did.
    pub cut: Option<String>,
    /// From the beginning of the call (connecting included) to the response head.
    pub head_after: Duration,
    /// To the first byte of the body; none when there is none.
    pub first_byte_after: Option<Duration>,
    /// To the end.
    pub whole_after: Duration,
}

impl Answer {
    /// The first value of a header, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Which simulator answered.
    pub fn by(&self) -> &str {
        self.header("x-sim-name").unwrap_or("-")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| super::fail(&format!("not JSON ({e}): {}", self.text())))
    }

    /// The body as the report of `/echo`.
    ///
    /// # Panics
    /// When it is none.
    pub fn echo(&self) -> Echo {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| super::fail(&format!("not an echo ({e}): {}", self.text())))
    }
}
