//! The OpenAI-compatible surface: what a request asks for, and answers written as vLLM writes them.
//!
//! The text is made of a few words chosen by the prompt, the model and the seed, so that the same question gets the same
//! answer from every simulator. Completions and embeddings take a list of prompts (of texts or of token ids), of which
//! each gets what it would get alone; the engine runs the list as one request. Sampling parameters, tools and stop
//! words are accepted and ignored, as is `n` of chats and streams; a stream answers the first prompt only.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as Cx, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::body::{SimBody, whole};
use super::context::{Context, Guard};
use super::engine::{Job, Refusal};
use super::options::Answers;
use super::pace::Token;
use super::random::{Random, fingerprint};
use super::telemetry::Finish;

const WORDS: &[&str] = &[
    "canoe", "lagoon", "paddle", "tide", "reef", "hull", "float", "boom", "lash", "swell", "drift",
    "keel", "sail", "harbour", "shoal", "current", "bow", "stern", "wake", "mast", "atoll", "gust",
];

/// A tokenizer that is none: English text has about so many bytes in a token.
const BYTES_PER_TOKEN: usize = 4;

/// The length of an embedding when the request does not say.
const DIMENSIONS: u64 = 16;

/// Which of the endpoints was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
    Embedding,
}

/// A request, understood.
#[derive(Debug)]
struct Ask {
    kind: Kind,
    model: String,
    prompt_tokens: u64,
    /// One for each prompt, or `n`; never empty.
    outputs: Vec<Output>,
    /// Names of the blocks of the prompt.
    blocks: Vec<u64>,
    finish: Finish,
    stream: bool,
    include_usage: bool,
    vectors: Vectors,
}

/// What is generated for a prompt.
#[derive(Clone, Copy, Debug)]
struct Output {
    seed: u64,
    tokens: u64,
}

/// How embeddings are written.
#[derive(Clone, Copy, Debug)]
struct Vectors {
    dimensions: u64,
    base64: bool,
}

/// Answers one of the three generating endpoints.
pub(crate) async fn answer(
    context: &Context,
    guard: &mut Guard,
    kind: Kind,
    body: &[u8],
    slow: f64,
) -> Response<SimBody> {
    let ask = match understand(context, kind, body) {
        Ok(ask) => ask,
        Err((status, problem)) => return error(status, &problem),
    };
    let (prompt, answer) = (ask.prompt_tokens, ask.longest());
    let job = Job { prompt, answer, blocks: ask.blocks.clone() };
    let submitted = tokio::time::Instant::now();
    let tokens = match context.pace.submit(job, ask.finish) {
        Ok((ticket, tokens)) => {
            guard.hold(ticket);
            Paced { tokens, submitted, slow }
        }
        Err(Refusal::TooLong) => {
            return error(
                StatusCode::BAD_REQUEST,
                "the prompt and max_tokens exceed the context length",
            );
        }
        Err(Refusal::QueueFull) => {
            return error(StatusCode::SERVICE_UNAVAILABLE, "the queue of waiting requests is full");
        }
    };
    let writer = Writer::new(context, ask);
    if writer.ask.stream { stream(writer, tokens) } else { complete(&writer, tokens).await }
}

fn understand(context: &Context, kind: Kind, body: &[u8]) -> Result<Ask, (StatusCode, String)> {
    let bad = |problem: String| (StatusCode::BAD_REQUEST, problem);
    let ask: Value = serde_json::from_slice(body).map_err(|e| bad(format!("not JSON: {e}")))?;
    let model = ask["model"].as_str().unwrap_or_else(|| context.model()).to_owned();
    if !context.options.models.is_empty() && !context.options.models.contains(&model) {
        return Err((StatusCode::NOT_FOUND, format!("The model `{model}` does not exist.")));
    }
    let prompts = prompts(kind, &ask);
    if prompts.iter().any(String::is_empty) || prompts.is_empty() {
        return Err(bad("there is no prompt".to_owned()));
    }
    let limit =
        [&ask["max_completion_tokens"], &ask["max_tokens"]].into_iter().find(|v| !v.is_null());
    let limit = limit.filter(|_| kind != Kind::Embedding).map(|v| v.as_u64().filter(|n| *n > 0));
    if limit == Some(None) {
        return Err(bad("max_tokens must be at least 1".to_owned()));
    }
    let stream = ask["stream"].as_bool().unwrap_or(false) && kind != Kind::Embedding;
    let choices = match ask["n"].as_u64() {
        Some(n) if kind == Kind::Completion && !stream => n.clamp(1, 128),
        _ => 1,
    };
    let shared = fingerprint(model.as_bytes()) ^ context.options.seed;
    let output = |(prompt, choice): (&String, u64)| {
        let seed = chosen(fingerprint(prompt.as_bytes()) ^ shared, choice);
        let tokens = match limit {
            _ if kind == Kind::Embedding => 1,
            Some(Some(limit)) => limit,
            Some(None) | None => length(context.options.answers, seed),
        };
        Output { seed, tokens }
    };
    let outputs = prompts.iter().flat_map(|prompt| (0..choices).map(move |n| (prompt, n)));
    let tokens = |prompt: &String| (prompt.len() / BYTES_PER_TOKEN).max(1) as u64;
    Ok(Ask {
        kind,
        model,
        prompt_tokens: prompts.iter().map(tokens).sum(),
        outputs: outputs.map(output).collect(),
        blocks: blocks(&prompts.concat(), context.options.engine.kv_block),
        finish: if limit.is_some() { Finish::Length } else { Finish::Stop },
        stream,
        include_usage: ask["stream_options"]["include_usage"].as_bool().unwrap_or(false),
        vectors: Vectors {
            dimensions: ask["dimensions"].as_u64().unwrap_or(DIMENSIONS),
            base64: ask["encoding_format"] == "base64",
        },
    })
}

/// The seed of one choice of a prompt; the first one is the only one of a request without `n`.
fn chosen(seed: u64, choice: u64) -> u64 {
    if choice == 0 { seed } else { Random::new(seed ^ choice).bits() }
}

impl Ask {
    /// How long the engine is busy with it.
    fn longest(&self) -> u64 {
        self.outputs.iter().map(|output| output.tokens).max().unwrap_or(1)
    }
}

/// The prompts of a request: of a list each item, unless they are the token ids of a single prompt.
fn prompts(kind: Kind, ask: &Value) -> Vec<String> {
    let value = match kind {
        Kind::Chat => &ask["messages"],
        Kind::Completion => &ask["prompt"],
        Kind::Embedding => &ask["input"],
    };
    let one = |value: &Value| {
        let mut prompt = String::new();
        collect(value, &mut prompt);
        prompt
    };
    match value {
        Value::Array(items) if kind != Kind::Chat && !items.iter().any(Value::is_number) => {
            items.iter().map(one).collect()
        }
        value => vec![one(value)],
    }
}

/// Appends every text of a prompt: a string, a list of them, or messages with text or parts of text.
fn collect(value: &Value, prompt: &mut String) {
    match value {
        Value::String(text) => prompt.push_str(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, prompt)),
        Value::Object(map) => {
            let texts = ["content", "text"].into_iter().filter_map(|key| map.get(key));
            texts.for_each(|text| collect(text, prompt));
        }
        // A prompt of token ids counts four bytes for each.
        Value::Number(id) => {
            prompt.push_str(&format!("{:04x}", id.as_u64().unwrap_or(0) & 0xffff));
        }
        Value::Null | Value::Bool(_) => {}
    }
}

/// What the engine calls the full blocks of a prompt: each name is drawn from all the text up to the block's end.
fn blocks(prompt: &str, kv_block: u64) -> Vec<u64> {
    let mut name = 0_u64;
    let text = prompt.as_bytes().chunks_exact(kv_block as usize * BYTES_PER_TOKEN);
    text.map(|block| {
        name = Random::new(name ^ fingerprint(block)).bits();
        name
    })
    .collect()
}

fn length(answers: Answers, seed: u64) -> u64 {
    match answers {
        Answers::Fixed(tokens) => tokens.max(1),
        Answers::Geometric(mean) => {
            let unit = 1.0 - Random::new(seed).unit();
            (unit.ln() / (1.0 - 1.0 / mean.max(1.001)).ln()).ceil().clamp(1.0, 65_536.0) as u64
        }
    }
}

/// Tokens as they become due; `slow` stretches the time since the request was submitted.
struct Paced {
    tokens: mpsc::UnboundedReceiver<Token>,
    submitted: tokio::time::Instant,
    slow: f64,
}

impl Paced {
    async fn last(&mut self) {
        while let Some(token) = self.tokens.recv().await {
            if token.last {
                return tokio::time::sleep_until(self.due(&token)).await;
            }
        }
    }

    fn due(&self, token: &Token) -> tokio::time::Instant {
        let stretch = token.made.saturating_duration_since(self.submitted).mul_f64(self.slow);
        self.submitted + stretch
    }
}

/// Writes the frames of one answer.
struct Writer {
    ask: Ask,
    /// `"id":…,"object":…,"created":…,"model":…`, the same in every chunk.
    shared: String,
    fingerprint: String,
}

impl Writer {
    fn new(context: &Context, ask: Ask) -> Self {
        let (prefix, object) = match (ask.kind, ask.stream) {
            (Kind::Chat, true) => ("chatcmpl", "chat.completion.chunk"),
            (Kind::Chat, false) => ("chatcmpl", "chat.completion"),
            (Kind::Completion, _) => ("cmpl", "text_completion"),
            (Kind::Embedding, _) => ("embd", "list"),
        };
        let name = &context.options.name;
        let id = format!("{prefix}-{name}-{}", context.next_number());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let (id, model) = (json!(id), json!(ask.model));
        let shared =
            format!(r#""id":{id},"object":"{object}","created":{created},"model":{model}"#);
        Self { ask, shared, fingerprint: json!(format!("sim-{name}")).to_string() }
    }

    /// The output that is streamed.
    fn first(&self) -> Output {
        self.ask.outputs.first().copied().unwrap_or(Output { seed: 0, tokens: 1 })
    }

    /// The first chunk of a chat: the role, together with the first token as far as time is concerned.
    fn opening(&self) -> String {
        let choice = r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#;
        format!("data: {{{},\"choices\":[{choice}]}}\n\n", self.shared)
    }

    fn chunk(&self, token: &Token) -> String {
        let reason = match token.last {
            true => format!(r#""{}","stop_reason":null"#, self.ask.finish.name()),
            false => "null".to_owned(),
        };
        let word = self.first().word(token.index);
        let text = match self.ask.kind {
            Kind::Chat => format!(r#""delta":{{"content":" {word}"}}"#),
            Kind::Completion | Kind::Embedding => format!(r#""text":" {word}""#),
        };
        let shared = &self.shared;
        format!(
            "data: {{{shared},\"choices\":[{{\"index\":0,{text},\"logprobs\":null,\"finish_reason\":{reason}}}]}}\n\n"
        )
    }

    fn usage(&self) -> Value {
        let answer: u64 = match self.ask.kind {
            Kind::Embedding => 0,
            _ if self.ask.stream => self.first().tokens,
            _ => self.ask.outputs.iter().map(|output| output.tokens).sum(),
        };
        let prompt = self.ask.prompt_tokens;
        json!({"prompt_tokens": prompt, "total_tokens": prompt + answer, "completion_tokens": answer})
    }

    fn usage_chunk(&self) -> String {
        format!("data: {{{},\"choices\":[],\"usage\":{}}}\n\n", self.shared, self.usage())
    }

    fn whole(&self) -> String {
        let outputs = (0..).zip(&self.ask.outputs);
        let (name, items): (_, Vec<Value>) = match self.ask.kind {
            Kind::Embedding => ("data", outputs.map(|(i, o)| self.embedding(i, o)).collect()),
            Kind::Chat => ("choices", outputs.map(|(i, o)| self.choice(i, o, "message")).collect()),
            Kind::Completion => {
                ("choices", outputs.map(|(i, o)| self.choice(i, o, "text")).collect())
            }
        };
        let content = format!(r#""{name}":{}"#, json!(items));
        let (shared, usage, print) = (&self.shared, self.usage(), &self.fingerprint);
        format!(r#"{{{shared},{content},"usage":{usage},"system_fingerprint":{print}}}"#)
    }

    fn choice(&self, index: u64, output: &Output, key: &str) -> Value {
        let text: String = (1..=output.tokens).flat_map(|i| [" ", output.word(i)]).collect();
        let content = match self.ask.kind {
            Kind::Chat => json!({"role": "assistant", "content": text}),
            Kind::Completion | Kind::Embedding => json!(text),
        };
        let reason = self.ask.finish.name();
        json!({"index": index, key: content, "logprobs": null, "finish_reason": reason, "stop_reason": null})
    }

    fn embedding(&self, index: u64, output: &Output) -> Value {
        let Vectors { dimensions, base64: packed } = self.ask.vectors;
        let mut random = Random::new(output.seed);
        let vector: Vec<f64> = (0..dimensions).map(|_| random.unit() * 2.0 - 1.0).collect();
        let vector = if packed { json!(base64(&little_endian(&vector))) } else { json!(vector) };
        json!({"object": "embedding", "index": index, "embedding": vector})
    }
}

impl Output {
    fn word(self, index: u64) -> &'static str {
        let pick = Random::new(self.seed.wrapping_add(index)).below(WORDS.len() as u64);
        WORDS.get(pick as usize).copied().unwrap_or("reef")
    }
}

fn little_endian(vector: &[f64]) -> Vec<u8> {
    vector.iter().flat_map(|number| (*number as f32).to_le_bytes()).collect()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | usize::from(*three.get(i).unwrap_or(&0)));
        let digit = |i: usize| match i <= three.len() {
            true => char::from(ALPHABET[bits >> (18 - 6 * i) & 63]),
            false => '=',
        };
        [0, 1, 2, 3].map(digit)
    };
    bytes.chunks(3).flat_map(group).collect()
}

async fn complete(writer: &Writer, mut tokens: Paced) -> Response<SimBody> {
    tokens.last().await;
    json_text(StatusCode::OK, writer.whole())
}

/// As vLLM does, the head goes out at once and the first event with the first token.
fn stream(writer: Writer, paced: Paced) -> Response<SimBody> {
    let body = Events { writer, paced, due: None, held: None, opened: false, phase: Phase::Tokens };
    let mut response = Response::new(body.boxed_unsync());
    let kind = http::HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Tokens,
    Usage,
    Done,
    Over,
}

/// The body of a streamed answer: one event per token.
struct Events {
    writer: Writer,
    paced: Paced,
    due: Option<(Pin<Box<tokio::time::Sleep>>, Token)>,
    /// The first token of a chat, while the event with the role goes before it.
    held: Option<Token>,
    opened: bool,
    phase: Phase,
}

impl Events {
    fn poll_token(&mut self, cx: &mut Cx<'_>) -> Poll<Option<Token>> {
        if let Some(token) = self.held.take() {
            return Poll::Ready(Some(token));
        }
        if self.due.is_none() {
            let Some(token) = ready!(self.paced.tokens.poll_recv(cx)) else {
                return Poll::Ready(None);
            };
            if self.paced.slow <= 1.0 {
                return Poll::Ready(Some(token));
            }
            self.due = Some((Box::pin(tokio::time::sleep_until(self.paced.due(&token))), token));
        }
        if let Some((sleep, _)) = &mut self.due {
            ready!(sleep.as_mut().poll(cx));
        }
        Poll::Ready(self.due.take().map(|(_, token)| token))
    }

    fn event(&mut self, token: Token) -> String {
        if token.index == 1 && self.writer.ask.kind == Kind::Chat && !self.opened {
            self.opened = true;
            self.held = Some(token);
            return self.writer.opening();
        }
        if token.last {
            self.phase = if self.writer.ask.include_usage { Phase::Usage } else { Phase::Done };
        }
        self.writer.chunk(&token)
    }

    fn poll_event(&mut self, cx: &mut Cx<'_>) -> Poll<Option<String>> {
        let event = match self.phase {
            Phase::Tokens => match ready!(self.poll_token(cx)) {
                Some(token) => self.event(token),
                None => return Poll::Ready(None),
            },
            Phase::Usage => {
                self.phase = Phase::Done;
                self.writer.usage_chunk()
            }
            Phase::Done => {
                self.phase = Phase::Over;
                "data: [DONE]\n\n".to_owned()
            }
            Phase::Over => return Poll::Ready(None),
        };
        Poll::Ready(Some(event))
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let event = ready!(self.get_mut().poll_event(cx));
        Poll::Ready(event.map(|text| Ok(Frame::data(text.into()))))
    }
}

/// `GET /v1/models`.
pub(crate) fn models(context: &Context) -> Response<SimBody> {
    let listed = match &context.options.models {
        models if models.is_empty() => vec![context.model()],
        models => models.iter().map(String::as_str).collect(),
    };
    let length = context.options.engine.kv_tokens;
    let data: Vec<Value> = listed
        .into_iter()
        .map(|id| {
            json!({"id": id, "object": "model", "created": 0, "owned_by": "outrigger-sim",
                   "root": id, "parent": null, "max_model_len": length})
        })
        .collect();
    json_value(StatusCode::OK, &json!({"object": "list", "data": data}))
}

/// An error in the shape that vLLM gives it.
pub(crate) fn error(status: StatusCode, message: &str) -> Response<SimBody> {
    let kind = match status {
        StatusCode::NOT_FOUND => "NotFoundError",
        status if status.is_server_error() => "InternalServerError",
        _ => "BadRequestError",
    };
    let code = status.as_u16();
    let error = json!({"message": message, "type": kind, "param": null, "code": code});
    json_value(status, &json!({"error": error}))
}

/// An answer in JSON.
pub(crate) fn json_value(status: StatusCode, value: &Value) -> Response<SimBody> {
    json_text(status, value.to_string())
}

fn json_text(status: StatusCode, text: String) -> Response<SimBody> {
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
