//! Finds chosen top-level fields of a JSON request body while the body is still arriving.
//!
//! Why: routing by `model` needs one short string out of a prompt that may be hundreds of kilobytes
//! long and reaches us in pieces. Parsing the whole document would build a tree nobody wants, and
//! waiting for its end would delay the first byte upstream.
//!
//! What it decides: where a wanted value starts and ends (so that it can be replaced in place),
//! what it says, and whether the document names a wanted field more than once. The last point is a
//! safety matter: of two `model` members most parsers keep the last, some keep the first, and some
//! compare names without regard to case. Whoever sends both could be routed (or limited, or
//! billed) under one name and served under the other, so [`Scanner::ambiguous`] reports it and the
//! caller refuses the request with 400.
//!
//! What it leaves out: it is no validator. It knows strings, brackets and the grammar of the
//! outermost object, which is enough never to mistake a nested member or the inside of a prompt for
//! a field; a document it accepts can still be refused by the model server. Memory is bounded by
//! the wanted names and [`MAX_TEXT`], whatever the input.

use std::ops::Range;

use memchr::{memchr, memchr2};

/// Longest text value that is kept, in bytes after unescaping. A longer one is reported as
/// [`Value::TooLong`].
pub const MAX_TEXT: usize = 1024;

/// One character can be written as `\u0061`: six bytes for one.
const ESCAPE_GROWTH: usize = 6;

/// Longest raw value that is kept until its end is known, in bytes.
const MAX_RAW: usize = MAX_TEXT * ESCAPE_GROWTH;

const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// What is known after the bytes fed so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The object has not ended and a wanted field is still missing.
    More,
    /// Every wanted field was seen; the object goes on. Feeding more can only reveal a repeated
    /// field.
    Found,
    /// The object has ended.
    Done,
    /// The bytes are not one JSON object. Final: further bytes are ignored.
    NotJson {
        /// Offset in the whole body at, or shortly before, the first byte that does not fit.
        at: usize,
        /// What was wrong with it, for a log line or an error message.
        reason: &'static str,
    },
}

/// The value of a wanted field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string, unescaped; at most [`MAX_TEXT`] bytes.
    Text(String),
    /// A number, as it was written.
    Number(String),
    /// `true` or `false`.
    Bool(bool),
    /// `null`.
    Null,
    /// An object or an array; only its span is known.
    Nested,
    /// A string or number too long to keep; only its span is known.
    TooLong,
}

impl Value {
    /// The text, if it is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(_) | Self::Bool(_) | Self::Null | Self::Nested | Self::TooLong => None,
        }
    }

    /// A number that is a whole one between 0 and `u64::MAX`.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(digits) => digits.parse().ok(),
            Self::Text(_) | Self::Bool(_) | Self::Null | Self::Nested | Self::TooLong => None,
        }
    }
}

/// A wanted field that was found. Of several the last one, as most parsers have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it says.
    pub value: Value,
    /// Where the raw value lies in the whole body, in bytes; quotes included.
    pub span: Range<usize>,
}

#[derive(Debug)]
struct Field {
    name: Box<str>,
    found: Option<Found>,
    /// How many members had this name, in any mixture of upper and lower case.
    sightings: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first byte.
    Start,
    /// So many bytes of a byte order mark were seen.
    Mark(u8),
    /// Before the opening brace.
    Lead,
    /// After the opening brace: a name or the end.
    NameOrEnd,
    /// After a comma: a name.
    Name,
    InName,
    Colon,
    Value,
    InText,
    InScalar,
    /// In an object or array that is the value of a top-level field.
    InNested,
    /// In a string inside such a value.
    InNestedText,
    CommaOrEnd,
    End,
    Broken {
        at: usize,
        reason: &'static str,
    },
}

/// The scanner. Feed it the body in pieces cut anywhere; ask it for fields at any time.
#[derive(Debug)]
pub struct Scanner {
    fields: Box<[Field]>,
    /// Longest raw name worth keeping: no longer one can be wanted.
    name_limit: usize,
    missing: usize,
    state: State,
    /// Brackets open inside the current top-level value.
    depth: usize,
    /// The next byte of a string follows a backslash.
    escaped: bool,
    /// Bytes consumed by earlier calls.
    offset: usize,
    /// The wanted field whose value is being read.
    current: Option<usize>,
    /// Offset of the first byte of that value.
    value_start: usize,
    /// Raw bytes of the current name, or of the current wanted string or scalar.
    raw: Vec<u8>,
    raw_too_long: bool,
}

type Step = Result<usize, &'static str>;

impl Scanner {
    /// A scanner for these fields of the outermost object. Names are compared after unescaping,
    /// exactly.
    #[must_use]
    pub fn new(fields: &[&str]) -> Self {
        let longest = fields.iter().map(|name| name.len()).max().unwrap_or(0);
        let fields: Box<[Field]> = fields
            .iter()
            .map(|name| Field { name: (*name).into(), found: None, sightings: 0 })
            .collect();
        Self {
            name_limit: longest * ESCAPE_GROWTH,
            missing: fields.len(),
            fields,
            state: State::Start,
            depth: 0,
            escaped: false,
            offset: 0,
            current: None,
            value_start: 0,
            raw: Vec::new(),
            raw_too_long: false,
        }
    }

    /// Makes it ready for another document with the same wanted fields.
    pub fn reset(&mut self) {
        for field in &mut self.fields {
            field.found = None;
            field.sightings = 0;
        }
        self.missing = self.fields.len();
        self.state = State::Start;
        self.depth = 0;
        self.escaped = false;
        self.offset = 0;
        self.current = None;
    }

    /// Reads the next piece of the body. Only white space may follow the end of the object.
    pub fn feed(&mut self, chunk: &[u8]) -> Progress {
        let used = self.feed_object(chunk);
        if self.state == State::End {
            let rest = &chunk[used..];
            if let Some(stray) = rest.iter().position(|byte| !is_space(*byte)) {
                let at = self.offset + stray;
                self.state = State::Broken { at, reason: "bytes after the end of the object" };
            }
            self.offset += rest.len();
        }
        self.progress()
    }

    /// Like [`Scanner::feed`], but stops behind the closing brace, or at the byte that does not
    /// fit. Returns how many bytes were used.
    pub(crate) fn feed_object(&mut self, chunk: &[u8]) -> usize {
        let mut at = 0;
        while at < chunk.len() && self.is_reading() {
            match self.step(chunk, at) {
                Ok(next) => at = next,
                Err(reason) => self.state = State::Broken { at: self.offset + at, reason },
            }
        }
        self.offset += at;
        at
    }

    /// What is known so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match self.state {
            State::Broken { at, reason } => Progress::NotJson { at, reason },
            State::End => Progress::Done,
            _ if self.missing == 0 => Progress::Found,
            _ => Progress::More,
        }
    }

    /// The field of this name, if it was wanted and its value has been read completely.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Found> {
        self.fields.iter().find(|field| &*field.name == name)?.found.as_ref()
    }

    /// The first wanted field that was named more than once so far, counting names that differ only
    /// in the case of ASCII letters. Parsers disagree about which one counts; see the module
    /// description.
    #[must_use]
    pub fn ambiguous(&self) -> Option<&str> {
        self.fields.iter().find(|field| field.sightings > 1).map(|field| &*field.name)
    }

    fn is_reading(&self) -> bool {
        !matches!(self.state, State::End | State::Broken { .. })
    }

    /// Consumes at least one byte, or changes the state; returns the new position.
    fn step(&mut self, chunk: &[u8], at: usize) -> Step {
        match self.state {
            State::InName | State::InText => self.in_string(chunk, at),
            State::InNestedText => Ok(self.in_nested_text(chunk, at)),
            State::InNested => self.in_nested(chunk, at),
            State::InScalar => self.in_scalar(chunk, at),
            State::Start | State::Mark(_) | State::Lead => self.lead(chunk[at]).map(|()| at + 1),
            _ if is_space(chunk[at]) => Ok(at + 1),
            State::Value => self.value(chunk[at], at),
            _ => self.structure(chunk[at]).map(|()| at + 1),
        }
    }

    /// Bytes before the opening brace.
    fn lead(&mut self, byte: u8) -> Result<(), &'static str> {
        self.state = match self.state {
            State::Mark(2) if byte == BYTE_ORDER_MARK[2] => State::Lead,
            State::Mark(1) if byte == BYTE_ORDER_MARK[1] => State::Mark(2),
            State::Mark(_) => return Err("a broken byte order mark"),
            State::Start if byte == BYTE_ORDER_MARK[0] => State::Mark(1),
            _ if byte == b'{' => State::NameOrEnd,
            _ if is_space(byte) => State::Lead,
            _ => return Err("the body is not a JSON object"),
        };
        Ok(())
    }

    fn structure(&mut self, byte: u8) -> Result<(), &'static str> {
        self.state = match (self.state, byte) {
            (State::NameOrEnd | State::Name, b'"') => {
                self.start_raw();
                State::InName
            }
            (State::Colon, b':') => State::Value,
            (State::CommaOrEnd, b',') => State::Name,
            (State::NameOrEnd | State::CommaOrEnd, b'}') => State::End,
            (State::NameOrEnd | State::Name, _) => return Err("expected a quoted name"),
            (State::Colon, _) => return Err("expected a colon"),
            (_, _) => return Err("expected a comma or a closing brace"),
        };
        Ok(())
    }

    /// The first byte of a top-level value.
    fn value(&mut self, byte: u8, at: usize) -> Step {
        self.value_start = self.offset + at;
        self.start_raw();
        self.state = match byte {
            b'"' => State::InText,
            b'{' | b'[' => {
                self.depth = 1;
                State::InNested
            }
            // `NaN` and `Infinity` are no JSON, but some servers take them, so they must not hide
            // what follows.
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'N' | b'I' => {
                self.state = State::InScalar;
                return Ok(at);
            }
            _ => return Err("expected a value"),
        };
        Ok(at + 1)
    }

    /// In a name or a top-level text value: both may have to be kept.
    fn in_string(&mut self, chunk: &[u8], at: usize) -> Step {
        let (end, closed) = self.skip_string(chunk, at);
        let is_name = self.state == State::InName;
        if is_name || self.current.is_some() {
            let limit = if is_name { self.name_limit } else { MAX_RAW };
            self.keep(&chunk[at..end - usize::from(closed)], limit);
        }
        if closed && is_name {
            self.name_ended();
        } else if closed {
            self.value_ended(Shape::Text, end)?;
        }
        Ok(end)
    }

    fn in_nested_text(&mut self, chunk: &[u8], at: usize) -> usize {
        let (end, closed) = self.skip_string(chunk, at);
        if closed {
            self.state = State::InNested;
        }
        end
    }

    fn in_nested(&mut self, chunk: &[u8], at: usize) -> Step {
        let Some(dull) = chunk[at..].iter().position(|byte| class(*byte) != Class::Dull) else {
            return Ok(chunk.len());
        };
        let at = at + dull;
        match class(chunk[at]) {
            Class::Dull => {}
            Class::Quote => self.state = State::InNestedText,
            Class::Open => self.depth += 1,
            Class::Close => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.value_ended(Shape::Nested, at + 1)?;
                }
            }
            Class::Foreign => return Err("a character that JSON has only inside strings"),
        }
        Ok(at + 1)
    }

    fn in_scalar(&mut self, chunk: &[u8], at: usize) -> Step {
        let rest = &chunk[at..];
        let end = rest.iter().position(|byte| is_space(*byte) || matches!(byte, b',' | b'}'));
        let taken = &rest[..end.unwrap_or(rest.len())];
        if taken.iter().any(|byte| class(*byte) != Class::Dull) {
            return Err("a number or literal with foreign characters");
        }
        if self.current.is_some() {
            self.keep(taken, MAX_RAW);
        }
        if end.is_some() {
            self.value_ended(Shape::Scalar, at + taken.len())?;
        }
        Ok(at + taken.len())
    }

    /// Finds the end of the string that `at` lies in: the position behind what was consumed, and
    /// whether that was the closing quote.
    fn skip_string(&mut self, chunk: &[u8], mut at: usize) -> (usize, bool) {
        loop {
            if self.escaped {
                if at == chunk.len() {
                    return (at, false);
                }
                self.escaped = false;
                at += 1;
            }
            let Some(hit) = memchr2(b'"', b'\\', &chunk[at..]) else {
                return (chunk.len(), false);
            };
            at += hit + 1;
            if chunk[at - 1] == b'"' {
                return (at, true);
            }
            self.escaped = true;
        }
    }

    fn start_raw(&mut self) {
        self.raw.clear();
        self.raw_too_long = false;
    }

    fn keep(&mut self, bytes: &[u8], limit: usize) {
        if self.raw.len() + bytes.len() > limit {
            self.raw_too_long = true;
        } else if !self.raw_too_long {
            self.raw.extend_from_slice(bytes);
        }
    }

    fn name_ended(&mut self) {
        self.state = State::Colon;
        self.current = None;
        if self.raw_too_long {
            return;
        }
        let unescaped;
        let name = if memchr(b'\\', &self.raw).is_none() {
            &self.raw[..]
        } else {
            // A name that cannot be unescaped is not a wanted one; the model server will refuse the
            // body.
            let Some(text) = unescape(&self.raw) else { return };
            unescaped = text;
            unescaped.as_bytes()
        };
        for (index, field) in self.fields.iter_mut().enumerate() {
            if field.name.as_bytes().eq_ignore_ascii_case(name) {
                field.sightings += 1;
                if field.name.as_bytes() == name {
                    self.current = Some(index);
                }
            }
        }
    }

    /// The current top-level value ended before position `end` of the current chunk.
    fn value_ended(&mut self, shape: Shape, end: usize) -> Result<(), &'static str> {
        self.state = State::CommaOrEnd;
        let Some(index) = self.current.take() else { return Ok(()) };
        let value = match shape {
            Shape::Nested => Value::Nested,
            Shape::Text => self.text()?,
            Shape::Scalar => self.scalar()?,
        };
        let span = self.value_start..self.offset + end;
        let before = self.fields[index].found.replace(Found { value, span });
        self.missing -= usize::from(before.is_none());
        Ok(())
    }

    fn text(&self) -> Result<Value, &'static str> {
        if self.raw_too_long {
            return Ok(Value::TooLong);
        }
        let text = unescape(&self.raw).ok_or("a string with a bad escape or encoding")?;
        Ok(if text.len() > MAX_TEXT { Value::TooLong } else { Value::Text(text) })
    }

    fn scalar(&self) -> Result<Value, &'static str> {
        Ok(match &self.raw[..] {
            b"true" => Value::Bool(true),
            b"false" => Value::Bool(false),
            b"null" => Value::Null,
            _ if self.raw_too_long || self.raw.len() > MAX_TEXT => Value::TooLong,
            digits if digits.iter().all(|byte| b"0123456789+-.eE".contains(byte)) => {
                Value::Number(String::from_utf8_lossy(digits).into_owned())
            }
            _ => return Err("an unknown literal"),
        })
    }
}

/// What a value looks like from its first byte.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Scalar,
    Nested,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// What a byte outside strings means to someone who only counts brackets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Dull,
    Quote,
    Open,
    Close,
    Foreign,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Foreign; 256];
    let dull = b" \t\n\r,:+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut index = 0;
    while index < dull.len() {
        classes[dull[index] as usize] = Class::Dull;
        index += 1;
    }
    classes[b'"' as usize] = Class::Quote;
    classes[b'{' as usize] = Class::Open;
    classes[b'[' as usize] = Class::Open;
    classes[b'}' as usize] = Class::Close;
    classes[b']' as usize] = Class::Close;
    classes
};

fn class(byte: u8) -> Class {
    CLASSES[usize::from(byte)]
}

/// The text that the inside of a JSON string stands for; `None` if it is not a legal one.
fn unescape(raw: &[u8]) -> Option<String> {
    let raw = std::str::from_utf8(raw).ok()?;
    if raw.bytes().any(|byte| byte < 0x20) {
        return None;
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(hit) = memchr(b'\\', rest.as_bytes()) {
        text.push_str(&rest[..hit]);
        let (character, after) = unescape_one(&rest[hit + 1..])?;
        text.push(character);
        rest = after;
    }
    text.push_str(rest);
    Some(text)
}

/// Reads what follows a backslash.
fn unescape_one(rest: &str) -> Option<(char, &str)> {
    let plain = match rest.as_bytes().first()? {
        b'u' => return unescape_unicode(&rest[1..]),
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        _ => return None,
    };
    Some((plain, &rest[1..]))
}

/// Reads what follows `\u`: four hexadecimal digits, or a surrogate pair.
fn unescape_unicode(rest: &str) -> Option<(char, &str)> {
    let (first, rest) = hex4(rest)?;
    if !(0xD800..0xDC00).contains(&first) {
        return Some((char::from_u32(first)?, rest));
    }
    let (second, rest) = hex4(rest.strip_prefix("\\u")?)?;
    if !(0xDC00..0xE000).contains(&second) {
        return None;
    }
    let code = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    Some((char::from_u32(code)?, rest))
}

fn hex4(rest: &str) -> Option<(u32, &str)> {
    let digits = rest.get(..4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some((u32::from_str_radix(digits, 16).ok()?, &rest[4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: [&str; 3] = ["model", "user", "stream"];

    fn scan(body: &[u8]) -> Scanner {
        let mut scanner = Scanner::new(&FIELDS);
        scanner.feed(body);
        scanner
    }

    fn text(scanner: &Scanner, name: &str) -> Option<String> {
        scanner.get(name).and_then(|found| found.value.as_text()).map(str::to_owned)
    }

    /// Everything a caller can see.
    fn view(scanner: &Scanner) -> (Progress, Vec<Option<Found>>, Option<String>) {
        let found = FIELDS.iter().map(|name| scanner.get(name).cloned()).collect();
        (scanner.progress(), found, scanner.ambiguous().map(str::to_owned))
    }

    #[test]
    fn finds_values_of_every_kind_with_their_spans() {
        let body = br#"{"a":{"model":"no"},"model":"llama-3","stream":true,"user":-1.5e3}"#;
        let scanner = scan(body);
        assert_eq!(scanner.progress(), Progress::Done);
        let spans = FIELDS.map(|name| &body[scanner.get(name).expect(name).span.clone()]);
        assert_eq!(spans, [&b"\"llama-3\""[..], b"-1.5e3", b"true"]);
        assert_eq!(text(&scanner, "model").as_deref(), Some("llama-3"));
        assert_eq!(scanner.get("stream").expect("seen").value, Value::Bool(true));
        assert_eq!(scanner.get("user").expect("seen").value, Value::Number("-1.5e3".into()));
        assert_eq!(scanner.ambiguous(), None);
    }

    #[test]
    fn tells_when_all_is_found_before_the_end() {
        let mut scanner = Scanner::new(&["model"]);
        assert_eq!(scanner.feed(br#"{"x":1,"mod"#), Progress::More);
        assert_eq!(scanner.feed(br#"el":"m"#), Progress::More);
        assert_eq!(scanner.feed(br#"","prompt":"#), Progress::Found);
        assert_eq!(scanner.feed(b"[1,2]}\n"), Progress::Done);
        assert_eq!(scanner.feed(b" \r\n"), Progress::Done);
        assert!(matches!(scanner.feed(b"{"), Progress::NotJson { at: 38, .. }));
    }

    #[test]
    fn reports_a_field_named_twice_and_keeps_the_last() {
        for second in ["model", "Model", "mod\\u0065l", "MODE\\u004c"] {
            let body = format!(r#"{{"model":"cheap","{second}":"dear"}}"#);
            let scanner = scan(body.as_bytes());
            assert_eq!(scanner.ambiguous(), Some("model"), "{body}");
            let exact = second.starts_with('m');
            let kept = if exact { "dear" } else { "cheap" };
            assert_eq!(text(&scanner, "model").as_deref(), Some(kept), "{body}");
        }
        assert_eq!(scan(br#"{"Model":"x"}"#).get("model"), None);
    }

    #[test]
    fn nested_names_are_not_fields() {
        let body = br#"{"m":[{"model":"a","content":"\"model\":\"b\" }]"}],"n":[[]]}"#;
        let scanner = scan(body);
        assert_eq!(view(&scanner), (Progress::Done, vec![None, None, None], None));
    }

    #[test]
    fn a_long_value_is_measured_but_not_kept() {
        let exact = "x".repeat(MAX_TEXT);
        let body = format!(r#"{{"model":"{exact}","user":"{exact}y"}}"#);
        let scanner = scan(body.as_bytes());
        assert_eq!(text(&scanner, "model"), Some(exact));
        let user = scanner.get("user").expect("seen");
        assert_eq!((&user.value, user.span.len()), (&Value::TooLong, MAX_TEXT + 3));
        let huge = format!(r#"{{"user":{}}}"#, "1".repeat(100_000));
        assert_eq!(scan(huge.as_bytes()).get("user").expect("seen").value, Value::TooLong);
    }

    #[test]
    fn memory_does_not_grow_with_the_input() {
        let mut scanner = Scanner::new(&["model"]);
        scanner.feed(b"{\"model\":\"");
        for _ in 0..1000 {
            scanner.feed(&[b'x'; 1000]);
        }
        scanner.feed(b"\",\"");
        for _ in 0..1000 {
            scanner.feed(&[b'k'; 1000]);
        }
        assert!(scanner.raw.capacity() <= 2 * MAX_RAW, "{}", scanner.raw.capacity());
        assert_eq!(scanner.feed(b"\":null}"), Progress::Done);
    }

    #[test]
    fn depth_costs_nothing() {
        let mut scanner = Scanner::new(&["model"]);
        scanner.feed(b"{\"a\":");
        scanner.feed(&vec![b'['; 1_000_000]);
        scanner.feed(&vec![b']'; 1_000_000]);
        assert_eq!(scanner.feed(b",\"model\":\"m\"}"), Progress::Done);
        assert_eq!(text(&scanner, "model").as_deref(), Some("m"));
    }

    #[test]
    fn a_byte_order_mark_and_white_space_may_come_first() {
        for lead in [&b"\xEF\xBB\xBF"[..], b" \r\n\t", b"\xEF\xBB\xBF \n"] {
            let body = [lead, br#"{ "model" : "m" }"#].concat();
            let scanner = scan(&body);
            assert_eq!(scanner.progress(), Progress::Done, "{lead:?}");
            assert_eq!(&body[scanner.get("model").expect("seen").span.clone()], b"\"m\"");
        }
    }

    #[test]
    fn what_is_not_one_object_is_refused_where_it_breaks() {
        let cases: [(&[u8], usize); 18] = [
            (b"[]", 0),
            (b"\"model\"", 0),
            (b" \xEF\xBB\xBF{}", 1),
            (b"\xEF\xBB{}", 2),
            (b"\xEF\xBB\xBF\xEF\xBB\xBF{}", 3),
            (b"{model:1}", 1),
            (b"{,}", 1),
            (b"{\"a\":1,}", 7),
            (b"{\"a\" 1}", 5),
            (b"{\"a\":}", 5),
            (b"{\"a\":1 2}", 7),
            (b"{\"a\":tr\"ue}", 5),
            (b"{\"a\":[/*\"*/]}", 6),
            (b"{\"a\":['x']}", 6),
            (b"{\"model\":\"\\q\"}", 10),
            (b"{\"model\":\"\\ud800\"}", 10),
            (b"{\"model\":truth}", 9),
            (b"{} {}", 3),
        ];
        for (body, at) in cases {
            let mut scanner = Scanner::new(&FIELDS);
            let progress = scanner.feed(body);
            let shown = String::from_utf8_lossy(body);
            let Progress::NotJson { at: told, .. } = progress else {
                panic!("{shown}: {progress:?}")
            };
            assert_eq!(told, at, "{shown}");
            assert_eq!(scanner.feed(b"{}"), progress, "{shown}: final");
        }
    }

    #[test]
    fn every_cut_gives_the_same_result() {
        let samples: [&[u8]; 6] = [
            b"\xEF\xBB\xBF { \"mod\\u0065l\" : \"a\\\"\\\\\\u00e9\\ud83d\\ude00\" ,\
              \"x\":[{\"model\":\"}\\\\\"},[]], \"stream\" : false } \n",
            br#"{"prompt":"\\","user":12.5,"model":"m","model":"n","Stream":null,"stream":[]}"#,
            br#"{"a":NaN,"model":"m"} trailing"#,
            br#"{"model":"m","user":"u","x":{"y":"z"#,
            br#"{"model":tru}"#,
            b"{}",
        ];
        for sample in samples {
            let whole = view(&scan(sample));
            for cut in 0..=sample.len() {
                for second in cut..=sample.len() {
                    let mut scanner = Scanner::new(&FIELDS);
                    scanner.feed(&sample[..cut]);
                    scanner.feed(&sample[cut..second]);
                    scanner.feed(&sample[second..]);
                    assert_eq!(view(&scanner).1, whole.1, "cut at {cut} and {second}");
                    assert_eq!(view(&scanner).2, whole.2, "cut at {cut} and {second}");
                    let same = std::mem::discriminant(&scanner.progress())
                        == std::mem::discriminant(&whole.0);
                    assert!(same, "cut at {cut} and {second}");
                }
            }
            let mut bytewise = Scanner::new(&FIELDS);
            for byte in sample {
                bytewise.feed(&[*byte]);
            }
            assert_eq!(view(&bytewise).1, whole.1);
        }
    }

    /// A small generator (an xorshift), so that a failure can be repeated from its seed.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }

        fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
            of[usize::try_from(self.roll(of.len() as u64)).expect("small")]
        }

        fn space(&mut self) -> &'static str {
            self.pick(&["", "", "", " ", "\n\t", " \r\n"])
        }

        fn string(&mut self) -> String {
            let parts = [
                "a",
                "é",
                "\\n",
                "\\\"",
                "\\\\",
                "\\u0041",
                "\\ud83d\\ude00",
                "{",
                "]",
                "model",
                ",",
            ];
            let inside: String = (0..self.roll(6)).map(|_| self.pick(&parts)).collect();
            format!("\"{inside}\"")
        }

        fn name(&mut self) -> String {
            let names =
                ["\"model\"", "\"mod\\u0065l\"", "\"user\"", "\"stream\"", "\"\"", "\"Model\""];
            if self.roll(3) == 0 { self.string() } else { self.pick(&names).to_owned() }
        }

        fn value(&mut self, depth: u32) -> String {
            match self.roll(if depth > 3 { 3 } else { 5 }) {
                0 => self.string(),
                1 => self.pick(&["0", "-1", "2.5", "1e3", "123456789"]).to_owned(),
                2 => self.pick(&["true", "false", "null"]).to_owned(),
                3 => self.object(depth + 1),
                _ => self.list("[", "]", |dice| dice.value(depth + 1)),
            }
        }

        fn object(&mut self, depth: u32) -> String {
            self.list("{", "}", |dice| {
                let (name, value) = (dice.name(), dice.value(depth));
                format!("{name}{}:{}{value}", dice.space(), dice.space())
            })
        }

        fn list(&mut self, open: &str, close: &str, item: impl Fn(&mut Self) -> String) -> String {
            let items: Vec<String> = (0..self.roll(6))
                .map(|_| format!("{}{}{}", self.space(), item(self), self.space()))
                .collect();
            format!("{open}{}{}{close}", self.space(), items.join(","))
        }
    }

    /// What this scanner must say about a body that a real parser accepted.
    fn agrees(body: &[u8], parsed: &serde_json::Map<String, serde_json::Value>, cut: usize) {
        let mut scanner = Scanner::new(&FIELDS);
        scanner.feed(&body[..cut]);
        let shown = String::from_utf8_lossy(body);
        assert_eq!(scanner.feed(&body[cut..]), Progress::Done, "{shown}");
        for name in FIELDS {
            let found = scanner.get(name);
            assert_eq!(found.is_some(), parsed.contains_key(name), "{name} in {shown}");
            let Some(found) = found else { continue };
            let expected = &parsed[name];
            let raw: serde_json::Value =
                serde_json::from_slice(&body[found.span.clone()]).expect("a span is a value");
            assert_eq!(&raw, expected, "{name} in {shown}");
            match &found.value {
                Value::Text(text) => assert_eq!(Some(&**text), expected.as_str()),
                Value::Number(digits) => assert_eq!(digits.parse().ok(), expected.as_f64()),
                Value::Bool(yes) => assert_eq!(Some(*yes), expected.as_bool()),
                Value::Null => assert!(expected.is_null()),
                Value::Nested => assert!(expected.is_object() || expected.is_array()),
                Value::TooLong => assert!(expected.is_string(), "{shown}"),
            }
        }
    }

    #[test]
    fn agrees_with_a_full_parser_on_random_documents() {
        let mut dice = Dice(0x5EED_0001);
        for _ in 0..4000 {
            let body = format!("{}{}{}", dice.space(), dice.object(0), dice.space());
            let parsed = serde_json::from_str(&body).expect("the generator writes JSON");
            let cut = usize::try_from(dice.roll(body.len() as u64 + 1)).expect("small");
            agrees(body.as_bytes(), &parsed, cut);
        }
    }

    #[test]
    fn agrees_with_a_full_parser_on_damaged_documents_it_still_accepts() {
        let mut dice = Dice(0x5EED_0002);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut body = dice.object(0).into_bytes();
            for _ in 0..=dice.roll(2) {
                let at = usize::try_from(dice.roll(body.len() as u64)).expect("small");
                let byte = *b"\"\\{}[],:x1 \x80\x01"
                    .get(usize::try_from(dice.roll(13)).expect("small"))
                    .expect("in range");
                body[at] = byte;
            }
            // A surrogate without its partner inside a wanted string is the one thing refused that
            // others may take.
            if let Ok(parsed) = serde_json::from_slice(&body) {
                accepted += 1;
                agrees(&body, &parsed, body.len() / 2);
            }
        }
        assert!(accepted > 1000, "{accepted} documents survived: too few to tell");
    }

    /// Prints what a long prompt costs; run with `--nocapture` in a build with optimisation.
    #[test]
    fn time_of_a_long_prompt() {
        let line = "All work and no play makes a dull boy, said the caption.\\n";
        for (label, prompt) in [("plain", "x".repeat(220_000)), ("lines", line.repeat(3800))] {
            let body = format!(r#"{{"messages":[{{"content":"{prompt}"}}],"model":"m"}}"#);
            let rounds = 200;
            let start = std::time::Instant::now();
            for _ in 0..rounds {
                assert_eq!(scan(std::hint::black_box(body.as_bytes())).progress(), Progress::Done);
            }
            println!("scan of {} bytes, {label}: {:?}", body.len(), start.elapsed() / rounds);
        }
    }
}
