//! One answer for several requests into one for each.
//!
//! What it decides: whether the answer fits the plan exactly. Every output must carry its `index`,
//! each index once, none missing and none too many; otherwise nothing is dealt out at all. Outputs
//! may come in any order; they are given on in the order of the index, counted from zero for each
//! request. Their other members, known or not, are copied as they are written, so that a float or a
//! base64 text is the same to the byte.
//!
//! The other members of the answer go to each as they are, except:
//!
//! - `usage` is dealt out (see `usage`);
//! - `id`, when it is a text, gets `-` and the number of the request's first prompt. Clients take
//!   it for unique, it still begins with what the upstream logged, and vLLM names the parts of a
//!   call the same way;
//! - a list that is not empty could be one for the prompts in their order, which nobody can tell:
//!   the answer does not fit.
//!
//! What it leaves out: the headers, which go to each without `content-length`; and errors that
//! cannot be attributed. Of these, the statuses by which a server refuses one bad prompt make
//! [`Verdict::RetryAlone`], so that the others do not pay for it; every other one goes to each.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::StatusCode;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json::{self, Members, Text};
use super::merge::Plan;
use super::usage;

/// What becomes of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One body for each request, in the order in which they were merged.
    Split(Vec<Bytes>),
    /// The answer goes to each request as it is. An error of the server may speak of a prompt of
    /// another request; it is one of the same tenant, as far as the [`Key`](super::Key) tells.
    Same,
    /// The answer is of no use: each request has to be sent by itself, with its own body, and not
    /// through a batch again.
    RetryAlone(Cause),
}

/// Why an answer is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The call was refused, maybe because of one of its prompts.
    Refused,
    /// The server could not serve it now: whether another one can is for each request to find out.
    Unavailable,
    /// The answer is not JSON, or its outputs are not a list of objects.
    NotJson,
    /// A member occurs twice.
    Repeated,
    /// An output without an index, or with one that is no whole number.
    NoIndex,
    /// Two outputs of one index, one too many or one missing.
    Count,
    /// A list beside the outputs, or a usage that cannot be dealt out.
    Unclear,
}

impl Cause {
    /// The word for logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::NotJson => "not_json",
            Self::Repeated => "repeated",
            Self::NoIndex => "no_index",
            Self::Count => "count",
            Self::Unclear => "unclear",
        }
    }
}

/// The statuses by which a server may refuse a call because of one prompt in it. 413 is also a list
/// that is too long for it; 500 is what llama.cpp answers to a prompt that is too long. One of
/// these costs one call more than there would have been without batching.
const REFUSALS: [StatusCode; 4] = [
    StatusCode::BAD_REQUEST,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNPROCESSABLE_ENTITY,
    StatusCode::INTERNAL_SERVER_ERROR,
];

/// The statuses that say nothing of the call itself.
const UNAVAILABLE: [StatusCode; 4] = [
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];

/// Splits the answer to a merged call. The body has to be complete and in no content encoding. The
/// answer to a single request is its own, whatever it says.
#[must_use]
pub fn split(plan: &Plan, status: StatusCode, body: &[u8]) -> Verdict {
    if plan.requests() < 2 {
        return Verdict::Same;
    }
    if REFUSALS.contains(&status) {
        return Verdict::RetryAlone(Cause::Refused);
    }
    if UNAVAILABLE.contains(&status) {
        return Verdict::RetryAlone(Cause::Unavailable);
    }
    if !status.is_success() {
        return Verdict::Same;
    }
    answers(plan, body).map_or_else(Verdict::RetryAlone, Verdict::Split)
}

fn answers(plan: &Plan, body: &[u8]) -> Result<Vec<Bytes>, Cause> {
    let answer = Answer::parse(body, plan.terms.api.outputs())?;
    answer.check()?;
    let outputs = in_order(answer.outputs, plan.outputs())?;
    let of_each: Vec<&[Members<'_>]> =
        plan.shares.iter().map(|share| &outputs[plan.range(share)]).collect();
    let usages = match answer.usage {
        None => vec![Vec::new(); plan.requests()],
        Some(usage) => usage::attribute(usage, plan, &of_each).ok_or(Cause::Unclear)?,
    };
    let parts = plan.shares.iter().zip(of_each).zip(&usages);
    let parts = parts.map(|((share, outputs), usage)| Part { prompt: share.first, outputs, usage });
    Ok(parts.map(|part| part.write(&answer.members, plan.terms.api.outputs())).collect())
}

/// Puts every output in the place of its index.
fn in_order(outputs: Vec<Members<'_>>, expected: usize) -> Result<Vec<Members<'_>>, Cause> {
    if outputs.len() != expected {
        return Err(Cause::Count);
    }
    let mut places: Vec<Option<Members<'_>>> = Vec::new();
    places.resize_with(expected, || None);
    for output in outputs {
        let index = output.get("index").and_then(json::whole).ok_or(Cause::NoIndex)?;
        let place = usize::try_from(index).ok().and_then(|index| places.get_mut(index));
        match place {
            Some(place @ None) => *place = Some(output),
            Some(Some(_)) | None => return Err(Cause::Count),
        }
    }
    places.into_iter().collect::<Option<_>>().ok_or(Cause::Count)
}

/// The answer to a merged call, in slices.
struct Answer<'a> {
    /// All members; that of the outputs has no value.
    members: Vec<(Cow<'a, str>, Option<&'a RawValue>)>,
    outputs: Vec<Members<'a>>,
    usage: Option<&'a RawValue>,
}

impl<'a> Answer<'a> {
    /// Reads it in one pass; `list` is the name of the member with the outputs.
    fn parse(body: &'a [u8], list: &'static str) -> Result<Self, Cause> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let answer = AnswerSeed { list }.deserialize(&mut json).map_err(|_| Cause::NotJson)?;
        json.end().map_err(|_| Cause::NotJson)?;
        Ok(answer)
    }

    /// Whether there is no doubt about what it says.
    fn check(&self) -> Result<(), Cause> {
        let mut names: Vec<&str> = self.members.iter().map(|(name, _)| name.as_ref()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) || self.outputs.iter().any(repeated) {
            return Err(Cause::Repeated);
        }
        let values = self.members.iter().filter_map(|&(_, value)| value);
        let mut lists = values.filter(|value| value.get().starts_with('['));
        let all_empty = lists.all(|list| json::list_length(list) == Some(0));
        all_empty.then_some(()).ok_or(Cause::Unclear)
    }
}

fn repeated(output: &Members<'_>) -> bool {
    output.repeated(Cow::Borrowed)
}

struct AnswerSeed {
    list: &'static str,
}

impl<'de> DeserializeSeed<'de> for AnswerSeed {
    type Value = Answer<'de>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for AnswerSeed {
    type Value = Answer<'de>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "an object with a list named {}", self.list)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        let (mut outputs, mut usage) = (None, None);
        while let Some(Text(name)) = map.next_key()? {
            if name == self.list {
                outputs = Some(map.next_value()?);
                members.push((name, None));
                continue;
            }
            let value: &'de RawValue = map.next_value()?;
            if name == "usage" {
                usage = Some(value);
            }
            members.push((name, Some(value)));
        }
        let outputs = outputs.ok_or_else(|| A::Error::missing_field(self.list))?;
        Ok(Answer { members, outputs, usage })
    }
}

/// What one request gets.
struct Part<'a> {
    /// The number of its first prompt.
    prompt: usize,
    outputs: &'a [Members<'a>],
    usage: &'a [u8],
}

impl Part<'_> {
    fn write(&self, members: &[(Cow<'_, str>, Option<&RawValue>)], list: &str) -> Bytes {
        let mut out = Vec::with_capacity(self.room(members));
        out.push(b'{');
        for (i, (name, value)) in members.iter().enumerate() {
            json::put_name(&mut out, name, i == 0);
            match (name.as_ref(), value) {
                (name, None) if name == list => self.write_outputs(&mut out),
                ("usage", Some(_)) => out.extend_from_slice(self.usage),
                ("id", Some(id)) => self.write_id(&mut out, id),
                (_, value) => out.extend_from_slice(value.map_or("null", RawValue::get).as_bytes()),
            }
        }
        out.push(b'}');
        out.into()
    }

    /// At least as many bytes as will be written, nearly always.
    fn room(&self, members: &[(Cow<'_, str>, Option<&RawValue>)]) -> usize {
        let member = |name: &str, value: Option<&RawValue>| {
            name.len() + value.map_or(0, |value| value.get().len()) + 8
        };
        let outer = members.iter().map(|(name, value)| member(name, *value));
        let outputs = self.outputs.iter().flat_map(|output| &output.0);
        let inner = outputs.map(|(name, value)| member(name, Some(value)));
        outer.chain(inner).sum::<usize>() + self.usage.len() + 2 * self.outputs.len() + 32
    }

    fn write_outputs(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for (index, output) in self.outputs.iter().enumerate() {
            out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
            for (i, (name, value)) in output.0.iter().enumerate() {
                json::put_name(out, name, i == 0);
                match name.as_ref() {
                    "index" => out.extend_from_slice(index.to_string().as_bytes()),
                    _ => out.extend_from_slice(value.get().as_bytes()),
                }
            }
            out.push(b'}');
        }
        out.push(b']');
    }

    fn write_id(&self, out: &mut Vec<u8>, id: &RawValue) {
        match id.get().strip_suffix('"') {
            Some(open) => {
                out.extend_from_slice(open.as_bytes());
                out.extend_from_slice(format!("-{}\"", self.prompt).as_bytes());
            }
            None => out.extend_from_slice(id.get().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compatible::Ask;
    use super::super::merge::merge;
    use super::*;

    fn plan(path: &str, bodies: &[&str]) -> Plan {
        let parse =
            |body: &&str| Ask::parse(path, Bytes::copy_from_slice(body.as_bytes())).unwrap();
        let asks: Vec<Ask> = bodies.iter().map(parse).collect();
        merge(&asks).unwrap().plan
    }

    fn embeddings() -> Plan {
        plan("/v1/embeddings", &[r#"{"input":"a"}"#, r#"{"input":["b","c"]}"#])
    }

    fn parts(plan: &Plan, body: &str) -> Vec<String> {
        match split(plan, StatusCode::OK, body.as_bytes()) {
            Verdict::Split(parts) => {
                parts.iter().map(|part| String::from_utf8(part.to_vec()).unwrap()).collect()
            }
            other => panic!("{other:?} for {body}"),
        }
    }

    fn cause(plan: &Plan, body: &str) -> Cause {
        match split(plan, StatusCode::OK, body.as_bytes()) {
            Verdict::RetryAlone(cause) => cause,
            other => panic!("{other:?} for {body}"),
        }
    }

    #[test]
    fn embeddings_are_dealt_out_by_index() {
        let body = r#"{"id":"embd-1","object":"list","data":[
            {"object":"embedding","index":2,"embedding":[3.10e-05,-0.0]},
            {"embedding":"AACAPwAA\/==","index":0},
            {"index":1,"embedding":[1E+2], "extra" : {"index":2} }],
            "model":"m","usage":{"prompt_tokens":6,"total_tokens":6},"x":1.0}"#;
        let expected = [
            r#"{"id":"embd-1-0","object":"list","data":[{"embedding":"AACAPwAA\/==","index":0}],"#
                .to_owned()
                + r#""model":"m","usage":{"prompt_tokens":2,"total_tokens":2},"x":1.0}"#,
            r#"{"id":"embd-1-1","object":"list","data":["#.to_owned()
                + r#"{"index":0,"embedding":[1E+2],"extra":{"index":2}},"#
                + r#"{"object":"embedding","index":1,"embedding":[3.10e-05,-0.0]}],"#
                + r#""model":"m","usage":{"prompt_tokens":4,"total_tokens":4},"x":1.0}"#,
        ];
        assert_eq!(parts(&embeddings(), body), expected);
    }

    #[test]
    fn completions_are_dealt_out_by_prompt_and_choice() {
        let bodies = [r#"{"prompt":["a","b"],"n":2}"#, r#"{"prompt":"c","n":2}"#];
        let plan = plan("/v1/completions", &bodies);
        let body = r#"{"choices":[{"index":5,"text":"c1"},{"index":4,"text":"c0"},
            {"index":3,"text":"b1"},{"index":2,"text":"b0"},{"index":0,"text":"a0"},
            {"index":1,"text":"a1"}],"id":null}"#;
        let choice =
            |index: usize, text: &str| format!("{{\"index\":{index},\"text\":\"{text}\"}}");
        let expected = [
            format!(
                "{{\"choices\":[{},{},{},{}],\"id\":null}}",
                choice(0, "a0"),
                choice(1, "a1"),
                choice(2, "b0"),
                choice(3, "b1")
            ),
            format!("{{\"choices\":[{},{}],\"id\":null}}", choice(0, "c0"), choice(1, "c1")),
        ];
        assert_eq!(parts(&plan, body), expected);
    }

    #[test]
    fn an_answer_that_does_not_fit_is_not_dealt_out() {
        let plan = embeddings();
        let data = |items: &str| format!("{{\"data\":[{items}]}}");
        let three = |third: &str| data(&format!(r#"{{"index":0}},{{"index":1}},{third}"#));
        assert_eq!(parts(&plan, &three(r#"{"index":2}"#)).len(), 2);
        let wrong = [
            (three(r#"{"index":3}"#), Cause::Count),
            (three(r#"{"index":1}"#), Cause::Count),
            (three(r#"{"index":2},{"index":3}"#), Cause::Count),
            (three(r#"{"index":18446744073709551615}"#), Cause::Count),
            (data(r#"{"index":0},{"index":1}"#), Cause::Count),
            (data(""), Cause::Count),
            (three("{}"), Cause::NoIndex),
            (three(r#"{"index":"2"}"#), Cause::NoIndex),
            (three(r#"{"index":-2}"#), Cause::NoIndex),
            (three(r#"{"index":2.0}"#), Cause::NoIndex),
            (three(r#"{"index":null}"#), Cause::NoIndex),
            (three(r#"{"Index":2}"#), Cause::NoIndex),
            (three(r#"{"index":2,"index":2}"#), Cause::Repeated),
            (three(r#"{"index":2,"\u0069ndex":2}"#), Cause::Repeated),
            (three("2"), Cause::NotJson),
            (three("[2]"), Cause::NotJson),
            (three("null"), Cause::NotJson),
        ];
        for (body, expected) in wrong {
            assert_eq!(cause(&plan, &body), expected, "{body}");
        }
    }

    #[test]
    fn an_answer_of_another_kind_is_not_dealt_out() {
        let good = r#"{"data":[{"index":0},{"index":1},{"index":2}]}"#;
        let with = |member: &str| good.replace("]}", &format!("],{member}}}"));
        let wrong = [
            (String::new(), Cause::NotJson),
            ("data: {}\n\n".into(), Cause::NotJson),
            ("[]".into(), Cause::NotJson),
            ("{}".into(), Cause::NotJson),
            (format!("{good}{good}"), Cause::NotJson),
            (good[..good.len() - 1].into(), Cause::NotJson),
            (good.replace("data", "choices"), Cause::NotJson),
            (r#"{"data":{}}"#.into(), Cause::NotJson),
            (with(r#""data":[]"#), Cause::Repeated),
            (with(r#""model":"a","model":"b""#), Cause::Repeated),
            (with(r#""warnings":["first"]"#), Cause::Unclear),
            (with(r#""usage":{"prompt_tokens":1,"prompt_tokens":1}"#), Cause::Unclear),
            (with(r#""usage":"much""#), Cause::Unclear),
        ];
        for (body, expected) in wrong {
            assert_eq!(cause(&embeddings(), &body), expected, "{body}");
        }
        assert_eq!(parts(&embeddings(), &with(r#""warnings":[ ],"meta":{"a":[1]}"#)).len(), 2);
    }

    #[test]
    fn errors_go_to_each_or_send_each_alone() {
        let verdict =
            |status: u16| split(&embeddings(), StatusCode::from_u16(status).unwrap(), b"{}");
        for status in [400, 413, 422, 500] {
            assert_eq!(verdict(status), Verdict::RetryAlone(Cause::Refused), "{status}");
        }
        for status in [301, 401, 403, 404] {
            assert_eq!(verdict(status), Verdict::Same, "{status}");
        }
        for status in [429, 502, 503, 504] {
            assert_eq!(verdict(status), Verdict::RetryAlone(Cause::Unavailable), "{status}");
        }
        assert_eq!(verdict(200), Verdict::RetryAlone(Cause::NotJson));
    }

    #[test]
    fn the_answer_to_one_request_is_its_own() {
        let plan = plan("/v1/embeddings", &[r#"{"input":["a","b"]}"#]);
        for status in [200, 204, 400, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(split(&plan, status, b"whatever"), Verdict::Same);
        }
    }
}

/// Random batches against a server that answers each prompt with something of its own.
#[cfg(test)]
mod properties {
    use rand::rngs::SmallRng;
    use rand::seq::SliceRandom;
    use rand::{Rng, RngExt, SeedableRng};
    use serde_json::Value;

    use super::super::compatible::{Api, Ask};
    use super::super::merge::{Merged, merge};
    use super::*;

    /// A request, and what each of its prompts is called.
    struct Request {
        body: String,
        names: Vec<String>,
    }

    struct World {
        api: Api,
        choices: usize,
        requests: Vec<Request>,
    }

    impl World {
        fn random(rng: &mut SmallRng) -> Self {
            let api = if rng.random() { Api::Embeddings } else { Api::Completions };
            let choices = if api == Api::Completions { rng.random_range(1..4) } else { 1 };
            let tokens = rng.random();
            let count = rng.random_range(2..9);
            let requests = (0..count).map(|_| request(rng, api, choices, tokens)).collect();
            Self { api, choices, requests }
        }

        fn path(&self) -> &'static str {
            match self.api {
                Api::Embeddings => "/v1/embeddings",
                Api::Completions => "/v1/completions",
            }
        }

        fn merged(&self) -> Merged {
            let parse = |request: &Request| {
                Ask::parse(self.path(), request.body.clone().into_bytes().into()).unwrap()
            };
            let asks: Vec<Ask> = self.requests.iter().map(parse).collect();
            merge(&asks).unwrap()
        }
    }

    /// A prompt that is called by a random word, so that no two are alike by chance.
    fn prompt(rng: &mut SmallRng, tokens: bool) -> (String, String) {
        if tokens {
            let ids: [u32; 3] = rng.random();
            let name = ids.map(|id| id.to_string()).join("_");
            (format!("[{}, {},{}]", ids[0], ids[1], ids[2]), name)
        } else {
            let name = format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64());
            (format!("\"{}\"", name.replace('a', "\\u0061")), name)
        }
    }

    fn request(rng: &mut SmallRng, api: Api, choices: usize, tokens: bool) -> Request {
        let count = if rng.random() { 1 } else { rng.random_range(1..5) };
        let (prompts, names): (Vec<_>, Vec<_>) = (0..count).map(|_| prompt(rng, tokens)).unzip();
        let single = count == 1 && rng.random();
        let value = if single { prompts[0].clone() } else { format!("[ {} ]", prompts.join(" ,")) };
        let field = if api == Api::Embeddings { "input" } else { "prompt" };
        let mut members = vec![format!("\"{field}\":{value}"), "\"model\":\"m\"".to_owned()];
        if api == Api::Completions {
            members.push(format!("\"n\":{choices}"));
        }
        members.shuffle(rng);
        Request { body: format!("{{{}}}", members.join(",")), names }
    }

    /// The prompts of a body, read by another parser, by their names.
    fn names(api: Api, body: &[u8]) -> Vec<String> {
        let body: Value = serde_json::from_slice(body).unwrap();
        let field = if api == Api::Embeddings { "input" } else { "prompt" };
        let name = |prompt: &Value| match prompt {
            Value::String(text) => text.clone(),
            ids => {
                ids.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join("_")
            }
        };
        body[field].as_array().unwrap().iter().map(name).collect()
    }

    /// The server: one output for each prompt and choice, in random order.
    fn answer(rng: &mut SmallRng, world: &World, body: &[u8]) -> Vec<String> {
        let output = |(i, name): (usize, &String)| {
            (0..world.choices).map(|k| output(i * world.choices + k, name, k)).collect::<Vec<_>>()
        };
        let names = names(world.api, body);
        let mut outputs: Vec<String> = names.iter().enumerate().flat_map(output).collect();
        outputs.shuffle(rng);
        outputs
    }

    fn output(index: usize, name: &str, k: usize) -> String {
        format!("{{\"text\":\"{name}/{k}\",\"index\":{index}}}")
    }

    fn document(world: &World, outputs: &[String]) -> String {
        let list = world.api.outputs();
        let usage = "{\"prompt_tokens\":100,\"completion_tokens\":77,\"total_tokens\":177}";
        format!("{{\"id\":\"x\",\"{list}\":[{}],\"usage\":{usage}}}", outputs.join(","))
    }

    /// What a request gets has to be its own, complete and in order, and the tokens add up.
    fn check(world: &World, parts: &[Bytes], context: &str) {
        assert_eq!(parts.len(), world.requests.len(), "{context}");
        let mut sums = [0; 3];
        for (request, part) in world.requests.iter().zip(parts) {
            let part: Value = serde_json::from_slice(part).unwrap();
            let wanted = request
                .names
                .iter()
                .flat_map(|name| (0..world.choices).map(move |k| format!("{name}/{k}")));
            let outputs = part[world.api.outputs()].as_array().unwrap();
            let texts = outputs.iter().map(|output| output["text"].as_str().unwrap().to_owned());
            assert_eq!(texts.collect::<Vec<_>>(), wanted.collect::<Vec<_>>(), "{context}");
            let indices = outputs.iter().map(|output| output["index"].as_u64().unwrap());
            assert!(indices.eq(0..outputs.len() as u64), "{context}");
            let usage = ["prompt_tokens", "completion_tokens", "total_tokens"]
                .map(|name| part["usage"][name].as_u64().unwrap());
            assert_eq!(usage[0] + usage[1], usage[2], "{context}");
            sums = [0, 1, 2].map(|i| sums[i] + usage[i]);
        }
        assert_eq!(sums, [100, 77, 177], "{context}");
    }

    #[test]
    fn everybody_gets_their_own() {
        for seed in 0..2_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let world = World::random(&mut rng);
            let Merged { body, plan } = world.merged();
            let outputs = answer(&mut rng, &world, &body);
            let answer = document(&world, &outputs);
            match split(&plan, StatusCode::OK, answer.as_bytes()) {
                Verdict::Split(parts) => check(&world, &parts, &format!("seed {seed}")),
                other => panic!("seed {seed}: {other:?}"),
            }
        }
    }

    /// Breaks the list of outputs so that it cannot be right any more.
    fn break_list(rng: &mut SmallRng, outputs: &mut Vec<String>) {
        let i = rng.random_range(0..outputs.len());
        let count = outputs.len();
        match rng.random_range(0..6) {
            0 => drop(outputs.remove(i)),
            1 => outputs.push(outputs[i].clone()),
            2 => outputs.push(output(count, "more", 0)),
            3 => outputs[i] = outputs[i].replace("index", "number"),
            4 => outputs[i] = output(count + rng.random_range(0..3), "far", 0),
            _ => outputs[i] = outputs[(i + 1) % count].clone(),
        }
    }

    #[test]
    fn a_broken_list_is_never_dealt_out() {
        for seed in 0..2_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let world = World::random(&mut rng);
            let Merged { body, plan } = world.merged();
            let mut outputs = answer(&mut rng, &world, &body);
            break_list(&mut rng, &mut outputs);
            let answer = document(&world, &outputs);
            let verdict = split(&plan, StatusCode::OK, answer.as_bytes());
            assert!(matches!(verdict, Verdict::RetryAlone(_)), "seed {seed}: {answer}");
        }
    }

    /// No request sees the name of another's prompt, whatever happens to the bytes on their way.
    #[test]
    fn damage_never_mixes_answers_up() {
        let mut dealt = 0;
        for seed in 0..8_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let world = World::random(&mut rng);
            let Merged { body, plan } = world.merged();
            let outputs = answer(&mut rng, &world, &body);
            let mut answer = document(&world, &outputs).into_bytes();
            damage(&mut rng, &mut answer);
            if let Verdict::Split(parts) = split(&plan, StatusCode::OK, &answer) {
                dealt += 1;
                assert_apart(&world, &parts, seed);
            }
        }
        assert!(dealt > 500, "the damage is too great to test anything: {dealt}");
    }

    fn damage(rng: &mut SmallRng, answer: &mut Vec<u8>) {
        let at = rng.random_range(0..answer.len());
        match rng.random_range(0..4) {
            0 => answer.truncate(at),
            1 => drop(answer.remove(at)),
            2 => answer[at] = b" \",:{}[]0123456789ex"[rng.random_range(0..20)],
            _ => answer.insert(at, b" \",:{}[]0123456789ex"[rng.random_range(0..20)]),
        }
    }

    fn assert_apart(world: &World, parts: &[Bytes], seed: u64) {
        for (i, part) in parts.iter().enumerate() {
            let part = std::str::from_utf8(part).unwrap();
            let others = world.requests.iter().enumerate().filter(|&(j, _)| j != i);
            for name in others.flat_map(|(_, request)| &request.names) {
                assert!(!part.contains(name.as_str()), "seed {seed}: {name} in {part}");
            }
        }
    }
}
