//! How one line of the access log looks.
//!
//! Why by hand: a line is made for every request, and a general serializer would first copy what is
//! borrowed. Two layouts: JSON, one object per line with the chosen fields in their order, fields
//! without a value left out; and text for people, in columns, with the chosen fields in a fixed
//! order.
//!
//! What it decides: what comes from a client is cut at [`LONGEST`] bytes and escaped, so that no
//! request can break a line, forge another one, or send commands to a terminal. The path ends
//! before its query, which may hold secrets.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memchr::memchr;
use outrigger_config::validated::LogField;

use crate::outcome::Outcome;
use crate::probes::Timeline;

/// Longest text of one field in bytes, before escaping.
const LONGEST: usize = 1024;

/// What is known about a request that ended. Texts that are empty count as absent.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When the request head had come in.
    pub time: SystemTime,
    /// The `x-request-id`, accepted or made.
    pub request_id: &'a str,
    /// The trace id of `traceparent`, 32 hexadecimal digits.
    pub trace_id: &'a str,
    /// Who asked, as far as it is believed.
    pub client: Option<IpAddr>,
    /// The method.
    pub method: &'a str,
    /// The host, as the client wrote it.
    pub host: &'a [u8],
    /// The path; a query is cut off here if there is one.
    pub path: &'a [u8],
    /// The name of the route.
    pub route: &'a str,
    /// The name of the arm.
    pub arm: &'a str,
    /// The address that answered, or was tried last.
    pub endpoint: &'a str,
    /// The `model` of the request.
    pub model: &'a str,
    /// What the client spoke, such as `HTTP/1.1`.
    pub protocol: &'a str,
    /// The status sent, or 499 when the client had gone before.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// From the request head to the end.
    pub duration: Duration,
    /// From the request head to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// How long the first byte was waited for, where that was learned, or came of a load level.
    pub deadline: Option<Duration>,
    /// How long it took to connect to the endpoint; `None` on a connection used again.
    pub upstream_connect: Option<Duration>,
    /// How long it waited for a place; `None` when it did not have to.
    pub queued: Option<Duration>,
    /// Attempts made.
    pub attempts: u32,
    /// What became of the hedge.
    pub hedge: &'a str,
    /// Bytes of the request body.
    pub bytes_in: u64,
    /// Bytes of the response body.
    pub bytes_out: u64,
    /// Events of a streamed answer.
    pub chunks: u64,
    /// Tokens of the prompt.
    pub tokens_in: Option<u64>,
    /// Tokens of the answer.
    pub tokens_out: Option<u64>,
    /// The `user-agent`.
    pub user_agent: &'a [u8],
    /// What the kernel saw of it.
    pub app: Option<Timeline>,
}

impl Default for Record<'_> {
    /// Nothing known: no texts, no bytes, at the epoch, [`Outcome::Ok`] with status 0.
    fn default() -> Self {
        Self {
            time: UNIX_EPOCH,
            request_id: "",
            trace_id: "",
            client: None,
            method: "",
            host: b"",
            path: b"",
            route: "",
            arm: "",
            endpoint: "",
            model: "",
            protocol: "",
            status: 0,
            outcome: Outcome::Ok,
            duration: Duration::ZERO,
            first_byte: None,
            deadline: None,
            upstream_connect: None,
            queued: None,
            attempts: 0,
            hedge: "",
            bytes_in: 0,
            bytes_out: 0,
            chunks: 0,
            tokens_in: None,
            tokens_out: None,
            user_agent: b"",
            app: None,
        }
    }
}

/// How lines look, decided once at the start.
#[derive(Debug)]
pub(super) enum Layout {
    /// The fields, each with its key as it stands in the line: `,"key":`.
    Json(Box<[(LogField, Box<[u8]>)]>),
    Text {
        fields: Box<[LogField]>,
        colours: bool,
    },
}

impl Layout {
    pub(super) fn json(fields: &[LogField]) -> Self {
        let key = |field: &LogField| format!(",\"{}\":", field.name()).into_bytes().into();
        Self::Json(fields.iter().map(|field| (*field, key(field))).collect())
    }

    pub(super) fn text(fields: &[LogField], colours: bool) -> Self {
        Self::Text { fields: fields.into(), colours }
    }

    /// Appends one line with its end.
    pub(super) fn write(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Json(fields) => json(fields, record, out),
            Self::Text { fields, colours } => {
                Text { out, fields, colours: *colours }.line(record);
            }
        }
        out.push(b'\n');
    }
}

/// Appends how long a step took that the kernel saw.
fn app(
    record: &Record<'_>,
    step: impl Fn(&Timeline) -> Option<Duration>,
    out: &mut Vec<u8>,
) -> bool {
    record.app.as_ref().and_then(step).is_some_and(|took| millis(out, took))
}

fn json(fields: &[(LogField, Box<[u8]>)], record: &Record<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    for (field, key) in fields {
        let mark = out.len();
        out.extend_from_slice(key);
        if !value(*field, record, out) {
            out.truncate(mark);
        }
    }
    // The comma before the first field becomes the opening brace.
    match out.get_mut(start) {
        Some(comma) => *comma = b'{',
        None => out.push(b'{'),
    }
    out.push(b'}');
}

/// Appends the value of a field as JSON; returns whether there is one.
fn value(field: LogField, record: &Record<'_>, out: &mut Vec<u8>) -> bool {
    match field {
        LogField::Time => time(out, record.time),
        LogField::RequestId => text(out, record.request_id.as_bytes()),
        LogField::TraceId => text(out, record.trace_id.as_bytes()),
        LogField::Client => record.client.is_some_and(|client| address(out, client)),
        LogField::Method => text(out, record.method.as_bytes()),
        LogField::Host => text(out, record.host),
        LogField::Path => text(out, without_query(record.path)),
        LogField::Route => text(out, record.route.as_bytes()),
        LogField::Arm => text(out, record.arm.as_bytes()),
        LogField::Endpoint => text(out, record.endpoint.as_bytes()),
        LogField::Model => text(out, record.model.as_bytes()),
        LogField::Protocol => text(out, record.protocol.as_bytes()),
        LogField::Status => number(out, u64::from(record.status)),
        LogField::Outcome => text(out, record.outcome.as_str().as_bytes()),
        LogField::DurationMs => millis(out, record.duration),
        LogField::FirstByteMs => record.first_byte.is_some_and(|elapsed| millis(out, elapsed)),
        LogField::DeadlineMs => record.deadline.is_some_and(|limit| millis(out, limit)),
        LogField::UpstreamConnectMs => {
            record.upstream_connect.is_some_and(|elapsed| millis(out, elapsed))
        }
        LogField::QueuedMs => record.queued.is_some_and(|waited| millis(out, waited)),
        LogField::Attempts => number(out, u64::from(record.attempts)),
        LogField::Hedge => text(out, record.hedge.as_bytes()),
        LogField::BytesIn => number(out, record.bytes_in),
        LogField::BytesOut => number(out, record.bytes_out),
        LogField::Chunks => number(out, record.chunks),
        LogField::TokensIn => record.tokens_in.is_some_and(|tokens| number(out, tokens)),
        LogField::TokensOut => record.tokens_out.is_some_and(|tokens| number(out, tokens)),
        LogField::UserAgent => text(out, record.user_agent),
        LogField::AppWireMs => app(record, Timeline::wire, out),
        LogField::AppSocketWaitMs => app(record, Timeline::socket_wait, out),
        LogField::AppFirstByteMs => app(record, Timeline::first_byte, out),
        LogField::AppAnswerMs => app(record, Timeline::answer, out),
        LogField::AppWrites => record.app.is_some_and(|app| number(out, app.writes)),
        LogField::AppLongestGapMs => app(record, |app| Some(app.longest_gap), out),
        LogField::GpuWaitMs => app(record, |app| Some(app.gpu?.took), out),
        LogField::GpuWaitAmong => {
            let gpu = record.app.and_then(|app| app.gpu);
            gpu.is_some_and(|gpu| number(out, u64::from(gpu.among)))
        }
        LogField::GpuWaitMethod => {
            let gpu = record.app.and_then(|app| app.gpu);
            gpu.is_some_and(|gpu| text(out, gpu.method.as_str().as_bytes()))
        }
        LogField::AppPid => {
            let read = record.app.filter(|app| app.picked.is_some());
            read.is_some_and(|app| number(out, u64::from(app.process)))
        }
    }
}

fn without_query(path: &[u8]) -> &[u8] {
    memchr(b'?', path).map_or(path, |query| &path[..query])
}

fn time(out: &mut Vec<u8>, time: SystemTime) -> bool {
    // Writing to a vector cannot fail, but a year beyond 9999 has no such form: then there is none.
    let time = humantime::format_rfc3339_millis(time.max(UNIX_EPOCH));
    write!(out, "\"{time}\"").is_ok()
}

fn address(out: &mut Vec<u8>, address: IpAddr) -> bool {
    let IpAddr::V4(v4) = address else { return write!(out, "\"{address}\"").is_ok() };
    let mut separator = b'"';
    for octet in v4.octets() {
        out.push(separator);
        number(out, u64::from(octet));
        separator = b'.';
    }
    out.push(b'"');
    true
}

fn number(out: &mut Vec<u8>, value: u64) -> bool {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    true
}

/// Milliseconds with three decimals.
fn millis(out: &mut Vec<u8>, elapsed: Duration) -> bool {
    let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    number(out, micros / 1000);
    let digit = |unit: u64| b"0123456789"[usize::try_from(micros / unit % 10).unwrap_or(0)];
    out.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
    true
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        return false;
    }
    out.push(b'"');
    escape(out, bytes);
    out.push(b'"');
    true
}

/// Appends text as it may stand in a JSON string: cut, escaped, with U+FFFD for what is not UTF-8.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.len() <= LONGEST && is_plain(bytes) {
        out.extend_from_slice(bytes);
        return;
    }
    let mut rest = &bytes[..bytes.len().min(LONGEST)];
    while !rest.is_empty() {
        let Err(error) = std::str::from_utf8(rest) else {
            escape_valid(out, rest);
            break;
        };
        let (valid, after) = rest.split_at(error.valid_up_to());
        escape_valid(out, valid);
        // No length: the end is missing. At the cut that is no reason to complain.
        let invalid = error.error_len().unwrap_or(after.len());
        if error.error_len().is_some() || bytes.len() <= LONGEST {
            out.extend_from_slice("\u{FFFD}".as_bytes());
        }
        rest = &after[invalid..];
    }
    if bytes.len() > LONGEST {
        out.extend_from_slice("…".as_bytes());
    }
}

/// Whether it is printable ASCII without quotes and backslashes, as nearly all texts are. Looks at
/// every byte without stopping, which the compiler turns into wide instructions.
fn is_plain(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |plain, &byte| {
        plain & (0x20..0x7F).contains(&byte) & (byte != b'"') & (byte != b'\\')
    })
}

fn escape_valid(out: &mut Vec<u8>, mut rest: &[u8]) {
    while let Some(at) = rest.iter().position(|byte| NEEDS_CARE[usize::from(*byte)]) {
        out.extend_from_slice(&rest[..at]);
        let used = escape_one(out, &rest[at..]);
        rest = &rest[at + used..];
    }
    out.extend_from_slice(rest);
}

/// Appends the first character, which may need escaping; returns its length.
fn escape_one(out: &mut Vec<u8>, rest: &[u8]) -> usize {
    match *rest {
        [byte @ (b'"' | b'\\'), ..] => {
            out.extend_from_slice(&[b'\\', byte]);
            1
        }
        [C1_LEAD, second @ 0x80..0xA0, ..] => {
            unicode(out, second);
            2
        }
        [C1_LEAD, second, ..] => {
            out.extend_from_slice(&[C1_LEAD, second]);
            2
        }
        [byte, ..] => {
            unicode(out, byte);
            1
        }
        [] => 0,
    }
}

fn unicode(out: &mut Vec<u8>, code: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\u00");
    out.extend_from_slice(&[DIGITS[usize::from(code >> 4)], DIGITS[usize::from(code & 15)]]);
}

/// The first byte of the control characters U+0080 to U+009F, which some terminals obey.
const C1_LEAD: u8 = 0xC2;

const NEEDS_CARE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table[0x7F] = true;
    table[C1_LEAD as usize] = true;
    table
};

/// Writes the line for people. It allocates here and there: nobody reads a terminal at full load.
struct Text<'a> {
    out: &'a mut Vec<u8>,
    fields: &'a [LogField],
    colours: bool,
}

impl Text<'_> {
    fn line(&mut self, record: &Record<'_>) {
        let start = self.out.len();
        self.result(record);
        self.figures(record);
        self.request(record);
        self.upstream(record);
        self.rest(record);
        let end = self.out[start..].trim_ascii_end().len();
        self.out.truncate(start + end);
    }

    fn has(&self, field: LogField) -> bool {
        self.fields.contains(&field)
    }

    /// Adds a column of at least this width, and a space; from the right if the width is negative.
    fn column(&mut self, content: &str, width: isize) {
        let missing = width.unsigned_abs().saturating_sub(content.chars().count());
        let (before, after) = if width < 0 { (missing, 0) } else { (0, missing) };
        self.out.extend(std::iter::repeat_n(b' ', before));
        self.out.extend_from_slice(content.as_bytes());
        self.out.extend(std::iter::repeat_n(b' ', after + 1));
    }

    fn paint(&mut self, code: &str) {
        if self.colours {
            self.out.extend_from_slice(b"\x1b[");
            self.out.extend_from_slice(code.as_bytes());
            self.out.push(b'm');
        }
    }

    /// Time, status, outcome.
    fn result(&mut self, record: &Record<'_>) {
        if self.has(LogField::Time) {
            let time = humantime::format_rfc3339_millis(record.time.max(UNIX_EPOCH));
            self.paint("2");
            self.column(&time.to_string(), 24);
            self.paint("0");
        }
        self.paint(match record.status {
            0..400 => "32",
            400..500 => "33",
            500.. => "31",
        });
        if self.has(LogField::Status) {
            self.column(&record.status.to_string(), 3);
        }
        if self.has(LogField::Outcome) {
            self.column(record.outcome.as_str(), 18);
        }
        self.paint("0");
    }

    /// First byte, total, bytes, tokens.
    fn figures(&mut self, record: &Record<'_>) {
        if self.has(LogField::FirstByteMs) {
            self.column(&record.first_byte.map_or_else(|| "-".to_owned(), duration), -7);
        }
        if self.has(LogField::DurationMs) {
            self.column(&duration(record.duration), -7);
        }
        if self.has(LogField::BytesIn) {
            self.column(&bytes(record.bytes_in), -7);
        }
        if self.has(LogField::BytesOut) {
            self.column(&format!("→ {}", bytes(record.bytes_out)), 9);
        }
        if self.has(LogField::TokensIn) || self.has(LogField::TokensOut) {
            let show =
                |tokens: Option<u64>| tokens.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let tokens = format!("{}→{}", show(record.tokens_in), show(record.tokens_out));
            self.column(&tokens, 11);
        }
    }

    /// Method, host, path.
    fn request(&mut self, record: &Record<'_>) {
        if self.has(LogField::Method) {
            self.column(&plain(record.method.as_bytes()), 4);
        }
        let host = if self.has(LogField::Host) { plain(record.host) } else { String::new() };
        let path = without_query(record.path);
        let path = if self.has(LogField::Path) { plain(path) } else { String::new() };
        self.word(&(host + &path));
    }

    /// Route, arm, endpoint.
    fn upstream(&mut self, record: &Record<'_>) {
        let route = if self.has(LogField::Route) { record.route } else { "" };
        let arm = if self.has(LogField::Arm) { record.arm } else { "" };
        let arrow = if route.is_empty() || arm.is_empty() { "" } else { "→" };
        self.paint("36");
        self.word(&format!("{}{arrow}{}", plain(route.as_bytes()), plain(arm.as_bytes())));
        self.paint("0");
        if self.has(LogField::Endpoint) {
            self.word(&plain(record.endpoint.as_bytes()));
        }
    }

    fn word(&mut self, word: &str) {
        if !word.is_empty() {
            self.column(word, 0);
        }
    }

    /// Whatever else was chosen, with its name, as in JSON.
    fn rest(&mut self, record: &Record<'_>) {
        for field in NAMED.iter().filter(|field| self.fields.contains(field)) {
            let mark = self.out.len();
            self.out.extend_from_slice(field.name().as_bytes());
            self.out.push(b'=');
            if value(*field, record, self.out) {
                self.out.push(b' ');
            } else {
                self.out.truncate(mark);
            }
        }
    }
}

/// The fields without a column.
const NAMED: [LogField; 22] = [
    LogField::Model,
    LogField::Chunks,
    LogField::Attempts,
    LogField::Hedge,
    LogField::DeadlineMs,
    LogField::UpstreamConnectMs,
    LogField::QueuedMs,
    LogField::Protocol,
    LogField::Client,
    LogField::RequestId,
    LogField::TraceId,
    LogField::UserAgent,
    LogField::AppWireMs,
    LogField::AppSocketWaitMs,
    LogField::AppFirstByteMs,
    LogField::AppAnswerMs,
    LogField::AppWrites,
    LogField::AppLongestGapMs,
    LogField::AppPid,
    LogField::GpuWaitMs,
    LogField::GpuWaitAmong,
    LogField::GpuWaitMethod,
];

/// Escaped like JSON, without quotes.
fn plain(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    escape(&mut out, bytes);
    String::from_utf8_lossy(&out).into_owned()
}

/// At most seven characters, three digits that count.
fn duration(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    match elapsed.as_micros() {
        0..1000 => format!("{}us", elapsed.as_micros()),
        1000..100_000 => format!("{:.1}ms", seconds * 1e3),
        100_000..1_000_000 => format!("{:.0}ms", seconds * 1e3),
        1_000_000..100_000_000 => format!("{seconds:.2}s"),
        100_000_000.. => format!("{seconds:.0}s"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn bytes(count: u64) -> String {
    let count_as_float = count as f64;
    match count {
        0..1000 => format!("{count}B"),
        1000..1_000_000 => format!("{:.1}kB", count_as_float / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}MB", count_as_float / 1e6),
        1_000_000_000.. => format!("{:.1}GB", count_as_float / 1e9),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::probes::{GpuWait, Method};

    /// A record with everything in it.
    pub(in super::super) fn sample() -> Record<'static> {
        Record {
            time: UNIX_EPOCH + Duration::from_millis(1_795_201_257_045),
            request_id: "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
            trace_id: "4bf92f3577b34da6a3ce929d0e0e4736",
            client: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9))),
            method: "POST",
            host: b"api.example.com",
            path: b"/v1/chat/completions?api_key=secret",
            route: "chat",
            arm: "stable",
            endpoint: "127.0.0.1:8000",
            model: "llama-3-8b",
            protocol: "HTTP/1.1",
            status: 200,
            outcome: Outcome::Ok,
            duration: Duration::from_micros(1_234_567),
            first_byte: Some(Duration::from_micros(35_007)),
            deadline: Some(Duration::from_millis(1_250)),
            upstream_connect: Some(Duration::from_micros(90)),
            queued: Some(Duration::from_micros(12_500)),
            attempts: 2,
            hedge: "won",
            bytes_in: 1234,
            bytes_out: 45_678,
            chunks: 340,
            tokens_in: Some(12),
            tokens_out: Some(340),
            user_agent: b"OpenAI/Python 1.0",
            app: Some(Timeline {
                sent: Some(960_000),
                arrived: Some(1_000_000),
                picked: Some(26_104_000),
                read: Some(26_104_000),
                first_write: Some(30_104_500),
                last_write: Some(1_030_104_500),
                bytes_in: 1400,
                bytes_out: 46_000,
                writes: 340,
                longest_gap: Duration::from_millis(7),
                process: 4242,
                thread: 4243,
                gpu: Some(GpuWait {
                    took: Duration::from_millis(900),
                    method: Method::Api,
                    among: 3,
                }),
            }),
        }
    }

    fn render(layout: &Layout, record: &Record<'_>) -> String {
        let mut out = b"before\n".to_vec();
        layout.write(record, &mut out);
        let line = String::from_utf8(out).expect("UTF-8");
        line.strip_prefix("before\n").expect("appended").to_owned()
    }

    #[test]
    fn a_json_line_with_everything() {
        let expected = concat!(
            r#"{"time":"2026-11-20T19:00:57.045Z","#,
            r#""request_id":"0a1b2c3d4e5f60718293a4b5c6d7e8f9","#,
            r#""trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","client":"10.0.0.9","method":"POST","#,
            r#""host":"api.example.com","path":"/v1/chat/completions","route":"chat","#,
            r#""arm":"stable","endpoint":"127.0.0.1:8000","model":"llama-3-8b","#,
            r#""protocol":"HTTP/1.1","status":200,"outcome":"ok","duration_ms":1234.567,"#,
            r#""first_byte_ms":35.007,"deadline_ms":1250.000,"upstream_connect_ms":0.090,"queued_ms":12.500,"#,
            r#""attempts":2,"hedge":"won","bytes_in":1234,"#,
            r#""bytes_out":45678,"chunks":340,"tokens_in":12,"tokens_out":340,"#,
            r#""user_agent":"OpenAI/Python 1.0","app_wire_ms":0.040,"app_socket_wait_ms":25.104,"#,
            r#""app_first_byte_ms":4.000,"app_answer_ms":1000.000,"app_writes":340,"#,
            r#""app_longest_gap_ms":7.000,"app_pid":4242,"gpu_wait_ms":900.000,"gpu_wait_among":3,"#,
            r#""gpu_wait_method":"api"}"#,
            "\n",
        );
        assert_eq!(render(&Layout::json(LogField::ALL), &sample()), expected);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let expected = concat!(
            r#"{"time":"1970-01-01T00:00:00.000Z","status":0,"outcome":"ok","duration_ms":0.000,"#,
            r#""attempts":0,"bytes_in":0,"bytes_out":0,"chunks":0}"#,
            "\n",
        );
        assert_eq!(render(&Layout::json(LogField::ALL), &Record::default()), expected);
        assert_eq!(render(&Layout::json(&[LogField::Model]), &Record::default()), "{}\n");
    }

    #[test]
    fn fields_come_in_the_chosen_order() {
        let layout = Layout::json(&[LogField::Model, LogField::Status, LogField::Arm]);
        let expected = "{\"model\":\"llama-3-8b\",\"status\":200,\"arm\":\"stable\"}\n";
        assert_eq!(render(&layout, &sample()), expected);
    }

    #[test]
    fn a_text_line_with_everything() {
        let expected = "2026-11-20T19:00:57.045Z 200 ok                  35.0ms   1.23s   1.2kB \
            → 45.7kB  12→340      POST api.example.com/v1/chat/completions chat→stable \
            127.0.0.1:8000 model=\"llama-3-8b\" chunks=340 attempts=2 hedge=\"won\" deadline_ms=1250.000 \
            upstream_connect_ms=0.090 queued_ms=12.500 \
            protocol=\"HTTP/1.1\" client=\"10.0.0.9\" \
            request_id=\"0a1b2c3d4e5f60718293a4b5c6d7e8f9\" \
            trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\" user_agent=\"OpenAI/Python 1.0\" \
            app_wire_ms=0.040 app_socket_wait_ms=25.104 app_first_byte_ms=4.000 app_answer_ms=1000.000 \
            app_writes=340 app_longest_gap_ms=7.000 app_pid=4242 \
            gpu_wait_ms=900.000 gpu_wait_among=3 gpu_wait_method=\"api\"\n";
        assert_eq!(render(&Layout::text(LogField::ALL, false), &sample()), expected);
    }

    #[test]
    fn a_text_line_keeps_its_columns_without_values() {
        let fields = [LogField::Time, LogField::Status, LogField::Outcome, LogField::FirstByteMs]
            .into_iter()
            .chain([LogField::DurationMs, LogField::TokensIn, LogField::TokensOut])
            .chain([LogField::Route, LogField::Arm, LogField::Model])
            .collect::<Vec<_>>();
        let record = Record { status: 404, outcome: Outcome::NoRoute, ..Record::default() };
        let line = render(&Layout::text(&fields, false), &record);
        let expected = "1970-01-01T00:00:00.000Z 404 no_route                 -     0us -→-\n";
        assert_eq!(line, expected);
    }

    #[test]
    fn colours_follow_the_status() {
        let layout = Layout::text(&[LogField::Status, LogField::Arm], true);
        for (status, colour) in [(200, 32), (304, 32), (429, 33), (503, 31)] {
            let line = render(&layout, &Record { status, arm: "a", ..Record::default() });
            let expected = format!("\u{1b}[{colour}m{status} \u{1b}[0m\u{1b}[36ma \u{1b}[0m\n");
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn hostile_texts_stay_in_their_field() {
        let path = b"/\"},{\"status\":\"200\"}\n\r\t\x00\x7f\\ \x1b[2J \xff\xc3 \
            \xc2\x9b2J \xc3\xa9 \xc2\xa9";
        let record = Record { path, user_agent: path, host: path, ..sample() };
        let json = render(&Layout::json(LogField::ALL), &record);
        let text = render(&Layout::text(LogField::ALL, false), &record);
        for line in [&json, &text] {
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            let is_harmless = |character: char| character == '\n' || !character.is_control();
            assert!(line.chars().all(is_harmless), "{line:?}");
        }
        let parsed: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let meant = String::from_utf8_lossy(path).into_owned();
        assert_eq!(parsed["path"], meant.as_str());
        assert_eq!(parsed["status"], 200);
    }

    #[test]
    fn queries_are_never_logged() {
        for layout in [Layout::json(LogField::ALL), Layout::text(LogField::ALL, true)] {
            assert!(!render(&layout, &sample()).contains("secret"));
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        for lead in 0..4 {
            let long = "x".repeat(lead) + &"é€😀".repeat(1000);
            let record = Record { user_agent: long.as_bytes(), ..Record::default() };
            let line = render(&Layout::json(&[LogField::UserAgent]), &record);
            let parsed: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let kept = parsed["user_agent"].as_str().expect("text");
            let kept = kept.strip_suffix('…').expect("marked");
            assert!(long.starts_with(kept) && (LONGEST - 3..=LONGEST).contains(&kept.len()));
        }
        let exact = "x".repeat(LONGEST);
        let record = Record { user_agent: exact.as_bytes(), ..Record::default() };
        assert!(!render(&Layout::json(&[LogField::UserAgent]), &record).contains('…'));
    }

    #[test]
    fn figures_are_short() {
        let cases: [(u64, &str); 8] = [
            (0, "0us"),
            (999, "999us"),
            (1_000, "1.0ms"),
            (99_949, "99.9ms"),
            (350_400, "350ms"),
            (1_000_000, "1.00s"),
            (59_994_000, "59.99s"),
            (7_200_000_000, "7200s"),
        ];
        for (micros, shown) in cases {
            assert_eq!(duration(Duration::from_micros(micros)), shown);
        }
        let sizes = [0, 999, 1000, 999_900, 45_678_901, 7_000_000_000].map(bytes);
        assert_eq!(sizes, ["0B", "999B", "1.0kB", "999.9kB", "45.7MB", "7.0GB"]);
    }

    #[test]
    fn times_outside_the_calendar_do_no_harm() {
        let before = Record { time: UNIX_EPOCH - Duration::from_secs(1), ..Record::default() };
        let line = render(&Layout::json(&[LogField::Time]), &before);
        assert_eq!(line, "{\"time\":\"1970-01-01T00:00:00.000Z\"}\n");
    }
}
