//! Reads along in a response body: how many events, how many tokens, whether it came to its end.
//!
//! Why: the gap between chunks, tokens per second and "was this stream complete" are what operators
//! of model servers ask for, and only the body tells.
//!
//! What it decides: what an event is (a `data:` event of an event stream, apart from the closing
//! `[DONE]`), and which `usage` object counts (the last one; a later one overrides field by field).
//! It takes the names of both usual interfaces, `prompt_tokens`/`completion_tokens` and
//! `input_tokens`/`output_tokens`. The key `"usage"` followed by a colon and a brace cannot occur
//! inside a JSON string, because there its quotes would be escaped; that is why plain searching is
//! enough and no event is parsed unless it carries one.
//!
//! What it leaves out: it never changes or holds back a byte, allocates nothing until a usage
//! object appears, and knows nothing of compressed bodies ([`Kind::of`] turns itself off for them).
//! Lines must end in LF or CRLF; the lone CR that the standard also allows is not seen in the wild.

use std::sync::LazyLock;

use memchr::{memchr, memmem};

use crate::scan::{Progress, Scanner};

const USAGE: &[u8] = b"\"usage\"";
static FIND_USAGE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(USAGE));

const TOKENS_IN: [&str; 2] = ["prompt_tokens", "input_tokens"];
const TOKENS_OUT: [&str; 2] = ["completion_tokens", "output_tokens"];

/// Bytes of a line that are enough to tell what it is: `data: [DONE]` and some space around it.
const HEAD: usize = 24;

/// How to read a response body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `text/event-stream`.
    EventStream,
    /// `application/json` or another type ending in `+json`.
    Json,
    /// Anything else: only counted by others, not read.
    Other,
}

impl Kind {
    /// From the `content-type` and `content-encoding` of the response. A body that is compressed is
    /// [`Kind::Other`].
    #[must_use]
    pub fn of(content_type: Option<&[u8]>, content_encoding: Option<&[u8]>) -> Self {
        let plain = content_encoding.is_none_or(|coding| coding.eq_ignore_ascii_case(b"identity"));
        let Some(content_type) = content_type.filter(|_| plain) else { return Self::Other };
        let end = memchr(b';', content_type).unwrap_or(content_type.len());
        let media = content_type[..end].trim_ascii();
        if media.eq_ignore_ascii_case(b"text/event-stream") {
            Self::EventStream
        } else if media.eq_ignore_ascii_case(b"application/json") || has_json_suffix(media) {
            Self::Json
        } else {
            Self::Other
        }
    }
}

fn has_json_suffix(media: &[u8]) -> bool {
    let suffix = b"+json";
    media.len() > suffix.len() && media[media.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
}

/// What a body said, as far as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Complete events with data, apart from `[DONE]`. Zero unless an event stream.
    pub events: u64,
    /// Tokens of the prompt, if the server told.
    pub tokens_in: Option<u64>,
    /// Tokens of the answer: as the server told, else for an event stream with events their number,
    /// which is close to, but not exactly, one token each.
    pub tokens_out: Option<u64>,
    /// Whether the closing `[DONE]` was seen.
    pub done: bool,
}

/// Reads one response body, in pieces cut anywhere.
#[derive(Debug)]
pub struct Meter {
    kind: Kind,
    lines: Lines,
    usage: Usage,
}

impl Meter {
    /// A meter for one body.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { kind, lines: Lines::default(), usage: Usage::default() }
    }

    /// Reads the next piece; returns how many events ended in it.
    pub fn feed(&mut self, chunk: &[u8]) -> u64 {
        match self.kind {
            Kind::Other => 0,
            Kind::Json => {
                self.usage.feed(chunk);
                0
            }
            Kind::EventStream => {
                self.usage.feed(chunk);
                let before = self.lines.events;
                self.lines.feed(chunk);
                self.lines.events - before
            }
        }
    }

    /// What was seen so far. To be asked at the end, or at any time before.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let events = self.lines.events;
        let counted = (events > 0).then_some(events);
        Summary {
            events,
            tokens_in: self.usage.tokens_in,
            tokens_out: self.usage.tokens_out.or(counted),
            done: self.lines.done || is_done(&self.lines.head[..self.lines.head_len]),
        }
    }
}

/// Cuts an event stream into lines and counts the events.
#[derive(Debug, Default)]
struct Lines {
    events: u64,
    done: bool,
    /// The event being read has data other than `[DONE]`.
    has_data: bool,
    /// The first bytes of a line whose end has not come yet.
    head: [u8; HEAD],
    head_len: usize,
}

impl Lines {
    fn feed(&mut self, mut rest: &[u8]) {
        while let Some(end) = memchr(b'\n', rest) {
            if self.head_len == 0 {
                self.line(&rest[..end]);
            } else {
                self.keep(&rest[..end]);
                let head = self.head;
                let len = std::mem::take(&mut self.head_len);
                self.line(&head[..len]);
            }
            rest = &rest[end + 1..];
        }
        self.keep(rest);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(HEAD - self.head_len);
        self.head[self.head_len..self.head_len + len].copy_from_slice(&bytes[..len]);
        self.head_len += len;
    }

    /// A whole line, or at least its first [`HEAD`] bytes.
    fn line(&mut self, line: &[u8]) {
        if line.is_empty() || line == b"\r" {
            self.events += u64::from(std::mem::take(&mut self.has_data));
        } else if is_done(line) {
            self.done = true;
        } else if line.starts_with(b"data:") {
            self.has_data = true;
        }
    }
}

fn is_done(line: &[u8]) -> bool {
    line.strip_prefix(b"data:").is_some_and(|value| value.trim_ascii() == b"[DONE]")
}

/// Where the search for a usage object stands.
#[derive(Clone, Copy, Debug)]
enum Hunt {
    /// So many bytes of the key were the last ones seen.
    Key(usize),
    /// Behind the key; whether the colon came.
    Opening { colon: bool },
    /// Inside the object.
    Object,
}

/// Finds usage objects.
#[derive(Debug)]
struct Usage {
    hunt: Hunt,
    /// Made when first needed, kept because some servers send usage with every event.
    scanner: Option<Box<Scanner>>,
    tokens_in: Option<u64>,
    tokens_out: Option<u64>,
}

impl Default for Usage {
    fn default() -> Self {
        Self { hunt: Hunt::Key(0), scanner: None, tokens_in: None, tokens_out: None }
    }
}

impl Usage {
    fn feed(&mut self, chunk: &[u8]) {
        let mut at = 0;
        while at < chunk.len() {
            at = match self.hunt {
                Hunt::Key(0) => self.find_key(chunk, at),
                Hunt::Key(matched) => self.match_key(chunk[at], at, matched),
                Hunt::Opening { colon } => self.opening(chunk[at], at, colon),
                Hunt::Object => self.object(chunk, at),
            };
        }
    }

    fn find_key(&mut self, chunk: &[u8], at: usize) -> usize {
        let rest = &chunk[at..];
        if let Some(hit) = FIND_USAGE.find(rest) {
            self.hunt = Hunt::Opening { colon: false };
            return at + hit + USAGE.len();
        }
        let cut = (1..USAGE.len()).rev().find(|len| rest.ends_with(&USAGE[..*len]));
        self.hunt = Hunt::Key(cut.unwrap_or(0));
        chunk.len()
    }

    /// Goes on byte by byte with a key that was cut. No end of a part of it is also its beginning.
    fn match_key(&mut self, byte: u8, at: usize, matched: usize) -> usize {
        if byte != USAGE[matched] {
            self.hunt = Hunt::Key(0);
            return at;
        }
        self.hunt = if matched + 1 == USAGE.len() {
            Hunt::Opening { colon: false }
        } else {
            Hunt::Key(matched + 1)
        };
        at + 1
    }

    fn opening(&mut self, byte: u8, at: usize, colon: bool) -> usize {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return at + 1,
            b':' if !colon => {
                self.hunt = Hunt::Opening { colon: true };
                return at + 1;
            }
            b'{' if colon => self.start_object(),
            _ => self.hunt = Hunt::Key(0),
        }
        at
    }

    fn start_object(&mut self) {
        self.hunt = Hunt::Object;
        match &mut self.scanner {
            Some(scanner) => scanner.reset(),
            None => {
                let [prompt, input] = TOKENS_IN;
                let [completion, output] = TOKENS_OUT;
                let names = [prompt, input, completion, output];
                self.scanner = Some(Box::new(Scanner::new(&names)));
            }
        }
    }

    fn object(&mut self, chunk: &[u8], at: usize) -> usize {
        let Some(scanner) = &mut self.scanner else {
            self.hunt = Hunt::Key(0);
            return at;
        };
        let used = scanner.feed_object(&chunk[at..]);
        match scanner.progress() {
            Progress::More | Progress::Found => {}
            Progress::NotJson { .. } => self.hunt = Hunt::Key(0),
            Progress::Done => {
                self.hunt = Hunt::Key(0);
                self.tokens_in = first_number(scanner, TOKENS_IN).or(self.tokens_in);
                self.tokens_out = first_number(scanner, TOKENS_OUT).or(self.tokens_out);
            }
        }
        at + used
    }
}

fn first_number(scanner: &Scanner, names: [&str; 2]) -> Option<u64> {
    names.iter().find_map(|name| scanner.get(name)?.value.as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(kind: Kind, body: &[u8]) -> Summary {
        let mut meter = Meter::new(kind);
        let events = meter.feed(body);
        assert_eq!(events, meter.summary().events);
        meter.summary()
    }

    fn summary(
        events: u64,
        tokens_in: Option<u64>,
        tokens_out: Option<u64>,
        done: bool,
    ) -> Summary {
        Summary { events, tokens_in, tokens_out, done }
    }

    const CHAT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n\
         : a comment\n\n\
         event: x\ndata:{\"content\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":1}\"}\r\n\r\n\
         data: {\"choices\":[],\"usage\":{\"prompt_tokens\": 11,\"d\":{\"completion_tokens\":5},\
         \"completion_tokens\":7}}\n\n\
         data: [DONE]\n\n";

    #[test]
    fn counts_events_and_reads_the_final_usage() {
        let expected = summary(3, Some(11), Some(7), true);
        assert_eq!(whole(Kind::EventStream, CHAT.as_bytes()), expected);
    }

    #[test]
    fn every_cut_gives_the_same_result() {
        let expected = whole(Kind::EventStream, CHAT.as_bytes());
        let body = CHAT.as_bytes();
        for first in 0..=body.len() {
            for second in (first..=body.len()).step_by(7) {
                let mut meter = Meter::new(Kind::EventStream);
                let parts = [&body[..first], &body[first..second], &body[second..]];
                let events: u64 = parts.iter().map(|part| meter.feed(part)).sum();
                assert_eq!(meter.summary(), expected, "cut at {first} and {second}");
                assert_eq!(events, expected.events);
            }
        }
        let mut bytewise = Meter::new(Kind::EventStream);
        for byte in body {
            bytewise.feed(&[*byte]);
        }
        assert_eq!(bytewise.summary(), expected);
    }

    #[test]
    fn without_usage_the_events_are_the_tokens() {
        let body = b"data: {}\n\ndata: {}\n\ndata: {\"cut";
        assert_eq!(whole(Kind::EventStream, body), summary(2, None, Some(2), false));
        assert_eq!(whole(Kind::EventStream, b": ping\n\n"), Summary::default());
    }

    #[test]
    fn an_event_of_several_lines_counts_once() {
        let body = b"id: 1\ndata: {\ndata: }\n\n\n\ndata: x\n\n";
        assert_eq!(whole(Kind::EventStream, body).events, 2);
    }

    #[test]
    fn done_is_seen_with_and_without_its_line_end() {
        for (text, done) in [
            ("data: [DONE]\n\n", true),
            ("data:[DONE]\r\n\r\n", true),
            ("data: [DONE]", true),
            ("data: [DONE] not quite\n\n", false),
            ("data: \"[DONE]\"\n\n", false),
            ("data: [DONE", false),
        ] {
            assert_eq!(whole(Kind::EventStream, text.as_bytes()).done, done, "{text:?}");
        }
        assert_eq!(whole(Kind::EventStream, b"data: [DONE]\n\n").events, 0);
    }

    #[test]
    fn reads_usage_from_a_json_answer_wherever_it_is_cut() {
        let body =
            br#"{"a":"usage","x":[1],"usage" : {"prompt_tokens":3,"completion_tokens":4},"z":0}"#;
        for cut in 0..=body.len() {
            let mut meter = Meter::new(Kind::Json);
            meter.feed(&body[..cut]);
            meter.feed(&body[cut..]);
            assert_eq!(meter.summary(), summary(0, Some(3), Some(4), false), "cut at {cut}");
        }
    }

    #[test]
    fn a_later_usage_overrides_field_by_field() {
        let body = b"event: message_start\n\
            data: {\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n\
            event: message_delta\ndata: {\"usage\":{\"output_tokens\":15}}\n\n";
        let got = whole(Kind::EventStream, body);
        assert_eq!((got.tokens_in, got.tokens_out), (Some(25), Some(15)));
    }

    #[test]
    fn what_only_looks_like_usage_is_passed_over() {
        for body in [
            r#"{"usage":12}"#,
            r#"{"usage":{"prompt_tokens":-1,"completion_tokens":"x"}}"#,
            r#"{"usage":{"prompt_tokens":1.5}}"#,
            r#"{"usage":{broken}}"#,
            r#"{"a":"usage"}"#,
            r#"{"usage"usage":{"prompt_tokens":1"#,
        ] {
            assert_eq!(whole(Kind::Json, body.as_bytes()), Summary::default(), "{body}");
        }
        let after = br#"{"usage":{broken},"usage":{"prompt_tokens":2}}"#;
        assert_eq!(whole(Kind::Json, after).tokens_in, Some(2));
    }

    #[test]
    fn other_bodies_are_not_read() {
        assert_eq!(whole(Kind::Other, CHAT.as_bytes()), Summary::default());
    }

    #[test]
    fn the_kind_follows_the_headers() {
        for (media, coding, kind) in [
            ("text/event-stream; charset=utf-8", None, Kind::EventStream),
            ("Text/Event-Stream", Some("identity"), Kind::EventStream),
            ("text/event-stream", Some("gzip"), Kind::Other),
            ("application/json", None, Kind::Json),
            ("application/problem+json;x=y", None, Kind::Json),
            ("application/jsonp", None, Kind::Other),
            ("+json", None, Kind::Other),
            ("application/grpc", None, Kind::Other),
        ] {
            let coding = coding.map(str::as_bytes);
            assert_eq!(Kind::of(Some(media.as_bytes()), coding), kind, "{media}");
        }
        assert_eq!(Kind::of(None, None), Kind::Other);
    }

    /// Prints what one event costs; run with `--nocapture` in a build with optimisation.
    #[test]
    fn time_of_an_event() {
        let plain =
            r#"{"id":"c-1","choices":[{"index":0,"delta":{"content":" word"}}],"created":1}"#;
        let null = plain.replace("}],", "}],\"usage\":null,");
        let usage =
            plain.replace("}],", "}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4},");
        for (label, event) in [("plain", plain), ("usage null", &null), ("usage", &usage)] {
            let event = format!("data: {event}\n\n");
            let rounds = 200_000;
            let mut meter = Meter::new(Kind::EventStream);
            let start = std::time::Instant::now();
            for _ in 0..rounds {
                meter.feed(std::hint::black_box(event.as_bytes()));
            }
            let each = start.elapsed() / rounds;
            assert_eq!(meter.summary().events, u64::from(rounds));
            println!("event of {} bytes, {label}: {each:?}", event.len());
        }
    }
}
