//! Which requests may share a call.
//!
//! What it decides: a request is batchable when all it asks can be asked of a list as well, and
//! when what it says is beyond doubt. It is not batchable when it streams, when a name occurs twice
//! (two servers may then read two different requests), when its prompts are not of one kind, when
//! one of them is empty (some servers refuse that, and would refuse the whole batch), or when it
//! has a field whose effect is on one prompt only. Two batchable requests may meet when their
//! [`Key`]s are equal: same path, same kind of prompt, the same value of every other field, known
//! or not. A `seed` or a `user` that differs thus keeps them apart.
//!
//! What it leaves out: whether the values make sense to the server, and what the headers say
//! ([`Key::headers`]). A body in a content encoding is not JSON here.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::json::{self, Ids, Members, TextLength};
use super::key::Key;
use super::window::Size;

/// Longest sum of all values except the prompts, in bytes: it bounds the keys that are kept.
const MAX_FIELDS: usize = 16 * 1024;

/// Most choices for one prompt. OpenAI allows 128.
const MAX_CHOICES: u64 = 128;

/// Why a request goes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotBatchable {
    /// Neither embeddings nor completions.
    Path,
    /// The body is not one JSON object in UTF-8.
    NotJson,
    /// A member occurs twice; at the top level in any mixture of upper and lower case.
    Repeated,
    /// The answer is to be streamed.
    Streamed,
    /// The prompts are absent, empty, of mixed kinds, or neither text nor token ids.
    Prompt,
    /// A field has a value that cannot be shared or is not understood.
    Field,
    /// The fields other than the prompt are too long or too deeply nested to be compared.
    Long,
}

impl NotBatchable {
    /// The word for logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::NotJson => "not_json",
            Self::Repeated => "repeated",
            Self::Streamed => "streamed",
            Self::Prompt => "prompt",
            Self::Field => "field",
            Self::Long => "long",
        }
    }
}

impl fmt::Display for NotBatchable {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.as_str())
    }
}

/// What is asked of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `/v1/embeddings`: prompts in `input`, one item of `data` for each.
    Embeddings,
    /// `/v1/completions`: prompts in `prompt`, `n` items of `choices` for each.
    Completions,
}

impl Api {
    /// The API behind a path, with or without a prefix and a query.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        match path {
            _ if path.ends_with("/v1/embeddings") => Some(Self::Embeddings),
            _ if path.ends_with("/v1/completions") => Some(Self::Completions),
            _ => None,
        }
    }

    const fn prompt(self) -> &'static str {
        match self {
            Self::Embeddings => "input",
            Self::Completions => "prompt",
        }
    }

    /// The member of an answer that holds the outputs.
    pub(super) const fn outputs(self) -> &'static str {
        match self {
            Self::Embeddings => "data",
            Self::Completions => "choices",
        }
    }

    /// Fields that bring in prompts of their own, or whose effect is on one prompt.
    const fn unshareable(self) -> &'static [&'static str] {
        match self {
            Self::Embeddings => &["messages"],
            Self::Completions => &["prompt_embeds", "kv_transfer_params"],
        }
    }
}

/// What prompts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Tokens,
}

/// What a whole batch agrees on, as far as it matters for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) api: Api,
    pub(super) kind: Kind,
    /// Outputs for each prompt, from 1.
    pub(super) choices: usize,
    /// Whether the prompt is repeated at the head of each output.
    pub(super) echo: bool,
    pub(super) max_tokens: Option<u64>,
}

impl Terms {
    fn of(api: Api, kind: Kind, members: &Members<'_>) -> Result<Self, NotBatchable> {
        let completions = api == Api::Completions;
        let choices = if completions { choices(members)? } else { 1 };
        Ok(Self {
            api,
            kind,
            choices,
            echo: completions && members.get("echo").is_some_and(|echo| echo.get() == "true"),
            max_tokens: members.get("max_tokens").and_then(json::whole),
        })
    }
}

/// A request that may share a call.
#[derive(Clone)]
pub struct Ask {
    body: Bytes,
    /// Where the value of the prompt field lies in the body.
    field: Range<usize>,
    /// Where the prompts lie in the body: the same without the brackets of a list of prompts.
    prompts: Range<usize>,
    sizes: Vec<u64>,
    terms: Terms,
    key: Key,
}

impl Ask {
    /// Reads a request; `path` may have a query, which is compared with the path.
    ///
    /// # Errors
    ///
    /// Why the request has to go by itself.
    pub fn parse(path: &str, body: Bytes) -> Result<Self, NotBatchable> {
        let api = Api::of(path).ok_or(NotBatchable::Path)?;
        let (terms, prompts, key) = read(api, path, &body)?;
        let Prompts { field, prompts, sizes, .. } = prompts;
        Ok(Self { body, field, prompts, sizes, terms, key })
    }

    /// Under which it meets others, before anything is known of the tenant: the caller adds headers
    /// and whatever else tells tenants apart.
    #[must_use]
    pub const fn key(&self) -> &Key {
        &self.key
    }

    /// What is asked.
    #[must_use]
    pub const fn api(&self) -> Api {
        self.terms.api
    }

    /// How much of a batch it takes.
    #[must_use]
    pub fn size(&self) -> Size {
        Size { prompts: self.sizes.len(), bytes: self.prompts.len() as u64 }
    }

    /// The body as it came.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    pub(super) const fn terms(&self) -> Terms {
        self.terms
    }

    /// The prompts as written, with commas between them.
    pub(super) fn prompts(&self) -> &[u8] {
        &self.body[self.prompts.clone()]
    }

    /// The body before and after the value of the prompt field.
    pub(super) fn around(&self) -> (&[u8], &[u8]) {
        (&self.body[..self.field.start], &self.body[self.field.end..])
    }

    /// The size of each prompt: bytes of decoded text, or token ids.
    pub(super) fn sizes(&self) -> &[u64] {
        &self.sizes
    }
}

/// Prompts are nobody's business, so they are not printed.
impl fmt::Debug for Ask {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ask = to.debug_struct("Ask");
        ask.field("terms", &self.terms).field("size", &self.size()).field("key", &self.key);
        ask.finish_non_exhaustive()
    }
}

fn read(api: Api, path: &str, body: &[u8]) -> Result<(Terms, Prompts, Key), NotBatchable> {
    let members = Members::parse(body).ok_or(NotBatchable::NotJson)?;
    if members.repeated(|name| Cow::Owned(name.to_ascii_lowercase())) {
        return Err(NotBatchable::Repeated);
    }
    check(api, &members)?;
    let field = members.get(api.prompt()).ok_or(NotBatchable::Prompt)?;
    let prompts = Prompts::of(field, json::offset(body, field.get()))?;
    let terms = Terms::of(api, prompts.kind, &members)?;
    let key = key(path, terms, members)?;
    Ok((terms, prompts, key))
}

/// Refuses what cannot be shared, whoever the others are.
fn check(api: Api, members: &Members<'_>) -> Result<(), NotBatchable> {
    let given = |name: &str| members.get(name).filter(|value| !json::is_null(value));
    match given("stream").map(RawValue::get) {
        None | Some("false") => {}
        Some("true") => return Err(NotBatchable::Streamed),
        Some(_) => return Err(NotBatchable::Field),
    }
    if api.unshareable().iter().any(|name| given(name).is_some()) {
        return Err(NotBatchable::Field);
    }
    let encoding = given("encoding_format").map(json::text);
    let known = |text: Option<Cow<'_, str>>| matches!(text.as_deref(), Some("float" | "base64"));
    // Others, of vLLM, make the answer something else than JSON.
    if api == Api::Embeddings && !encoding.is_none_or(known) {
        return Err(NotBatchable::Field);
    }
    Ok(())
}

fn choices(members: &Members<'_>) -> Result<usize, NotBatchable> {
    match members.get("n").filter(|n| !json::is_null(n)).map(json::whole) {
        None => Ok(1),
        Some(Some(n @ 1..=MAX_CHOICES)) => Ok(n as usize),
        Some(_) => Err(NotBatchable::Field),
    }
}

fn key(path: &str, terms: Terms, mut members: Members<'_>) -> Result<Key, NotBatchable> {
    members.0.retain(|(name, _)| name != terms.api.prompt());
    let length = |(name, value): &json::Member<'_>| name.len() + value.get().len();
    if members.0.iter().map(length).sum::<usize>() > MAX_FIELDS {
        return Err(NotBatchable::Long);
    }
    members.0.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut key = Key::new();
    key.part(path.as_bytes());
    key.part(match terms.kind {
        Kind::Text => b"text",
        Kind::Tokens => b"tokens",
    });
    members.0.iter().try_for_each(|(name, value)| key.member(name, value))?;
    Ok(key)
}

/// The prompts of one request.
struct Prompts {
    kind: Kind,
    field: Range<usize>,
    prompts: Range<usize>,
    sizes: Vec<u64>,
}

impl Prompts {
    /// Reads the value of the prompt field, which begins at `start`.
    fn of(field: &RawValue, start: usize) -> Result<Self, NotBatchable> {
        let text = field.get();
        let (kind, single, sizes) = shape(text).ok_or(NotBatchable::Prompt)?;
        if sizes.is_empty() || sizes.contains(&0) {
            return Err(NotBatchable::Prompt);
        }
        let field = start..start + text.len();
        let prompts = if single { field.clone() } else { inside(text, start) };
        Ok(Self { kind, field, prompts, sizes })
    }
}

/// The kind of prompts, whether it is one that is no list of prompts, and the size of each.
fn shape(text: &str) -> Option<(Kind, bool, Vec<u64>)> {
    let Some(list) = text.strip_prefix('[') else {
        let TextLength(bytes) = serde_json::from_str(text).ok()?;
        return Some((Kind::Text, true, vec![bytes]));
    };
    match list.trim_start_matches(WHITE).as_bytes().first()? {
        b'"' => {
            let list: Vec<TextLength> = serde_json::from_str(text).ok()?;
            Some((Kind::Text, false, list.iter().map(|text| text.0).collect()))
        }
        b'[' => {
            let list: Vec<Ids> = serde_json::from_str(text).ok()?;
            Some((Kind::Tokens, false, list.iter().map(|ids| ids.0).collect()))
        }
        _ => {
            let Ids(count) = serde_json::from_str(text).ok()?;
            Some((Kind::Tokens, true, vec![count]))
        }
    }
}

/// White space between the tokens of JSON.
const WHITE: [char; 4] = [' ', '\t', '\n', '\r'];

/// Where the elements of a list lie that begins at `start`: without brackets and the space inside.
fn inside(list: &str, start: usize) -> Range<usize> {
    let elements = &list[1..list.len() - 1];
    let trimmed = elements.trim_start_matches(WHITE);
    let first = start + 1 + (elements.len() - trimmed.len());
    first..first + trimmed.trim_end_matches(WHITE).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMBEDDINGS: &str = "/v1/embeddings";
    const COMPLETIONS: &str = "/v1/completions";

    fn parse(path: &str, body: &str) -> Result<Ask, NotBatchable> {
        Ask::parse(path, Bytes::copy_from_slice(body.as_bytes()))
    }

    fn embeddings(body: &str) -> Ask {
        parse(EMBEDDINGS, body).unwrap()
    }

    fn refusal(path: &str, body: &str) -> NotBatchable {
        parse(path, body).unwrap_err()
    }

    #[test]
    fn all_four_shapes_are_read() {
        let read = |input: &str| {
            let ask = embeddings(&format!("{{\"input\": {input} ,\"model\":\"m\"}}"));
            let prompts = String::from_utf8(ask.prompts().to_vec()).unwrap();
            (ask.terms.kind, prompts, ask.sizes)
        };
        let text = |prompts: &str, sizes: &[u64]| (Kind::Text, prompts.into(), sizes.to_vec());
        assert_eq!(read(r#""h\u00e9""#), text(r#""h\u00e9""#, &[3]));
        assert_eq!(read(r#"[ "ab" , "c" ]"#), text(r#""ab" , "c""#, &[2, 1]));
        let tokens = |prompts: &str, sizes: &[u64]| (Kind::Tokens, prompts.into(), sizes.to_vec());
        assert_eq!(read("[1, 2,3 ]"), tokens("[1, 2,3 ]", &[3]));
        assert_eq!(read("[ [1,2],[3]\n]"), tokens("[1,2],[3]", &[2, 1]));
    }

    #[test]
    fn paths_are_known_by_their_end() {
        assert_eq!(Api::of("/v1/embeddings?api-version=1"), Some(Api::Embeddings));
        assert_eq!(Api::of("/team/v1/completions"), Some(Api::Completions));
        for path in ["/v1/chat/completions", "/v1/embeddings/x", "/embeddings", "/x?/v1/embeddings"]
        {
            assert_eq!(refusal(path, r#"{"input":"a"}"#), NotBatchable::Path, "{path}");
        }
    }

    #[test]
    fn requests_meet_by_their_fields() {
        let key = |body: &str| embeddings(body).key().clone();
        let one = key(r#"{"model":"m","input":"a","dimensions":64,"x":{"p":1,"q":2}}"#);
        let other =
            key(r#"{ "x":{"q":2,"p":1},"dimensions":64,"input":["b","c"],"model":"\u006d"}"#);
        assert_eq!(one, other);
    }

    #[test]
    fn requests_that_differ_never_meet() {
        let bodies = [
            r#"{"model":"m","prompt":"a"}"#,
            r#"{"model":"m","prompt":[1]}"#,
            r#"{"model":"M","prompt":"a"}"#,
            r#"{"Model":"m","prompt":"a"}"#,
            r#"{"prompt":"a"}"#,
            r#"{"model":"m","prompt":"a","max_tokens":1}"#,
            r#"{"model":"m","prompt":"a","max_tokens":2}"#,
            r#"{"model":"m","prompt":"a","temperature":0}"#,
            r#"{"model":"m","prompt":"a","temperature":0.0}"#,
            r#"{"model":"m","prompt":"a","n":1}"#,
            r#"{"model":"m","prompt":"a","n":2}"#,
            r#"{"model":"m","prompt":"a","seed":1}"#,
            r#"{"model":"m","prompt":"a","seed":2}"#,
            r#"{"model":"m","prompt":"a","user":"x"}"#,
            r#"{"model":"m","prompt":"a","user":null}"#,
            r#"{"model":"m","prompt":"a","unheard_of":[1]}"#,
            r#"{"model":"m","prompt":"a","input":"a"}"#,
        ];
        let mut keys: Vec<Key> =
            bodies.iter().map(|body| parse(COMPLETIONS, body).unwrap().key).collect();
        keys.push(parse("/x/v1/completions", bodies[0]).unwrap().key);
        keys.push(parse("/v1/completions?a=b", bodies[0]).unwrap().key);
        for (i, one) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|key| key == one), Some(i), "{i}");
        }
    }

    #[test]
    fn prompts_that_are_in_doubt_go_alone() {
        let prompts = [
            "null",
            "7",
            "true",
            "{}",
            "[]",
            "\"\"",
            "[\"\"]",
            "[\"a\",\"\"]",
            "[[]]",
            "[[1],[]]",
            "[\"a\",1]",
            "[1,\"a\"]",
            "[[1],2]",
            "[[\"a\"]]",
            "[{}]",
            "[1.5]",
            "[-1]",
            "[4294967296]",
            "[null]",
            "\"\\ud800\"",
            "[[[1]]]",
        ];
        for prompt in prompts {
            let body = format!("{{\"input\":{prompt}}}");
            assert_eq!(refusal(EMBEDDINGS, &body), NotBatchable::Prompt, "{prompt}");
        }
        assert_eq!(refusal(EMBEDDINGS, r#"{"prompt":"a"}"#), NotBatchable::Prompt);
        assert_eq!(refusal(COMPLETIONS, r#"{"input":"a"}"#), NotBatchable::Prompt);
        assert_eq!(refusal(EMBEDDINGS, r#"{"Input":"a"}"#), NotBatchable::Prompt);
    }

    #[test]
    fn ambiguous_bodies_go_alone() {
        let repeated = [
            r#"{"input":"a","input":"b"}"#,
            r#"{"input":"a","Input":"b"}"#,
            r#"{"input":"a","\u0069nput":"b"}"#,
            r#"{"input":"a","model":"x","MODEL":"y"}"#,
            r#"{"input":"a","x":[{"y":1,"y":1}]}"#,
        ];
        for body in repeated {
            assert_eq!(refusal(EMBEDDINGS, body), NotBatchable::Repeated, "{body}");
        }
        for body in ["", "[]", "{\"input\":\"a\"", "{\"input\":\"a\"}x", "\u{feff}{}"] {
            assert_eq!(refusal(EMBEDDINGS, body), NotBatchable::NotJson, "{body}");
        }
    }

    #[test]
    fn fields_that_cannot_be_shared_send_it_alone() {
        let with = |fields: &str| parse(COMPLETIONS, &format!("{{\"prompt\":\"a\",{fields}}}"));
        assert_eq!(with(r#""stream":true"#).unwrap_err(), NotBatchable::Streamed);
        let wrong = [
            r#""stream":1"#,
            r#""n":0"#,
            r#""n":129"#,
            r#""n":"2""#,
            r#""n":1.0"#,
            r#""prompt_embeds":"abc""#,
            r#""kv_transfer_params":{}"#,
        ];
        for fields in wrong {
            assert_eq!(with(fields).unwrap_err(), NotBatchable::Field, "{fields}");
        }
        for fields in [r#""stream":false"#, r#""stream":null,"n":null"#, r#""prompt_embeds":null"#]
        {
            assert!(with(fields).is_ok(), "{fields}");
        }
        assert_eq!(with(r#""n":3"#).unwrap().terms.choices, 3);
        let bytes = r#"{"input":"a","encoding_format":"bytes"}"#;
        assert_eq!(refusal(EMBEDDINGS, bytes), NotBatchable::Field);
        let chat = r#"{"input":"a","messages":[]}"#;
        assert_eq!(refusal(EMBEDDINGS, chat), NotBatchable::Field);
    }

    #[test]
    fn long_fields_send_it_alone() {
        let body = |length| format!("{{\"input\":\"a\",\"x\":\"{}\"}}", "y".repeat(length));
        assert!(parse(EMBEDDINGS, &body(MAX_FIELDS - 3)).is_ok());
        assert_eq!(refusal(EMBEDDINGS, &body(MAX_FIELDS)), NotBatchable::Long);
        let prompt = format!("{{\"input\":\"{}\"}}", "y".repeat(4 * MAX_FIELDS));
        assert_eq!(embeddings(&prompt).size().bytes as usize, 4 * MAX_FIELDS + 2);
    }

    #[test]
    fn prompts_are_not_printed() {
        let ask = embeddings(r#"{"input":"a secret","user":"someone"}"#);
        let shown = format!("{ask:?}");
        assert!(shown.contains("prompts: 1"), "{shown}");
        assert!(!shown.contains("secret") && !shown.contains("someone"), "{shown}");
    }
}
