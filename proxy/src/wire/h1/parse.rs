//! Heads of HTTP/1.1 from bytes, and the framing rules that a proxy must not be lenient about.
//!
//! Refused with a reason rather than repaired: both `Content-Length` and `Transfer-Encoding` (RFC 9112, 6.1 allows
//! it and request smuggling lives on it), several lengths that differ, any coding but a single `chunked`, a missing
//! or repeated `Host`, an `Host` that contradicts an absolute target.

use http::Method;
use httparse::{EMPTY_HEADER, Header, Status};

use crate::wire::{
    BodyLength, Fields, RequestHead, ResponseHead, WireError,
    fields::{Span, has_token},
    head::never_has_body,
};

/// Fields that one head may have at most, whatever the configuration says.
pub const MAX_FIELDS: usize = 256;

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the whole head.
    pub bytes: usize,
    /// Number of fields, at most [`MAX_FIELDS`].
    pub fields: usize,
}

/// A parsed head and the bytes it took.
pub type Parsed<T> = Option<(T, usize)>;

/// Whether `input` holds the empty line that ends a head, looking only at what came after `seen` bytes.
pub fn has_head_end(input: &[u8], seen: usize) -> bool {
    let from = seen.saturating_sub(3);
    memchr::memchr_iter(b'\n', &input[from..]).any(|at| {
        let rest = &input[from + at + 1..];
        rest.starts_with(b"\n") || rest.starts_with(b"\r\n")
    })
}

/// Parses the head of a request. `None` means that it is not complete.
///
/// # Errors
/// [`WireError::Invalid`] says which rule was broken, [`WireError::TooLarge`] which limit.
pub fn request(input: &[u8], limits: HeadLimits) -> Result<Parsed<RequestHead>, WireError> {
    let mut storage = [EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut storage[..limits.fields.min(MAX_FIELDS)]);
    let Status::Complete(len) = parsed.parse(input).map_err(|e| invalid_head(e, "request"))? else {
        return check_size(input, limits).map(|()| None);
    };
    check_size(&input[..len], limits)?;
    // A complete parse fills all three.
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(WireError::Invalid("malformed request line"));
    };
    let method = Method::from_bytes(method.as_bytes())
        .map_err(|_| WireError::Invalid("malformed request method"))?;
    let fields = fields(&input[..len], parsed.headers);
    let target = span_in(input, target.as_bytes());
    let mut head = RequestHead::new(method, fields, target, 10 + minor);
    normalise_target(&mut head)?;
    check_host(&head)?;
    head.body = request_length(&mut head)?;
    Ok(Some((head, len)))
}

/// Parses the head of a response to a request made with `method`.
///
/// # Errors
/// As [`request`].
pub fn response(
    input: &[u8],
    method: &Method,
    limits: HeadLimits,
) -> Result<Parsed<ResponseHead>, WireError> {
    let mut storage = [EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut storage[..limits.fields.min(MAX_FIELDS)]);
    let Status::Complete(len) = parsed.parse(input).map_err(|e| invalid_head(e, "response"))?
    else {
        return check_size(input, limits).map(|()| None);
    };
    check_size(&input[..len], limits)?;
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(WireError::Invalid("malformed status line"));
    };
    let fields = fields(&input[..len], parsed.headers);
    let mut head = ResponseHead { status, fields, body: BodyLength::Empty, version: 10 + minor };
    head.body = response_length(&mut head, method)?;
    Ok(Some((head, len)))
}

/// Parses trailer fields up to and including the empty line.
///
/// # Errors
/// As [`request`].
pub fn trailers(input: &[u8], limits: HeadLimits) -> Result<Parsed<Fields>, WireError> {
    let mut storage = [EMPTY_HEADER; MAX_FIELDS];
    let max = limits.fields.min(MAX_FIELDS);
    match httparse::parse_headers(input, &mut storage[..max]) {
        Ok(Status::Complete((len, headers))) => Ok(Some((fields(&input[..len], headers), len))),
        Ok(Status::Partial) => check_size(input, limits).map(|()| None),
        Err(error) => Err(invalid_head(error, "trailer section")),
    }
}

fn fields(head: &[u8], headers: &[Header<'_>]) -> Fields {
    let mut fields = Fields::from_head(head, headers.len());
    for header in headers {
        fields.push_span(span_in(head, header.name.as_bytes()), span_in(head, header.value));
    }
    fields
}

/// Where `part`, a slice of `whole`, lies in it.
fn span_in(whole: &[u8], part: &[u8]) -> Span {
    Span::new(part.as_ptr() as usize - whole.as_ptr() as usize, part.len())
}

fn check_size(head: &[u8], limits: HeadLimits) -> Result<(), WireError> {
    if head.len() > limits.bytes {
        return Err(WireError::TooLarge("message head larger than the configured header_bytes"));
    }
    Ok(())
}

fn invalid_head(error: httparse::Error, part: &'static str) -> WireError {
    match (error, part) {
        (httparse::Error::TooManyHeaders, _) => {
            WireError::TooLarge("more header fields than the configured headers")
        }
        (_, "request") => WireError::Invalid("malformed request head"),
        (_, "response") => WireError::Invalid("malformed response head"),
        _ => WireError::Invalid("malformed trailer section"),
    }
}

/// Brings `http://host/path` to `/path`, with the authority in `host` (RFC 9112, 3.2.2).
fn normalise_target(head: &mut RequestHead) -> Result<(), WireError> {
    let target = head.target();
    if !target.is_ascii() {
        return Err(WireError::Invalid("request target is not ASCII"));
    }
    if target.starts_with('/') || head.method == Method::CONNECT {
        return Ok(());
    }
    if target == "*" && head.method == Method::OPTIONS {
        return Ok(());
    }
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        target.get(..scheme.len()).filter(|s| s.eq_ignore_ascii_case(scheme))?;
        target.get(scheme.len()..)
    });
    let Some(rest) = rest else {
        return Err(WireError::Invalid("request target is neither a path nor an http URL"));
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = (rest[..end].to_owned(), rest[end..].to_owned());
    if authority.is_empty() || authority.contains('@') {
        return Err(WireError::Invalid("request target has no usable authority"));
    }
    head.set_target(&if path.starts_with('/') { path } else { format!("/{path}") });
    head.fields.set("host", authority);
    Ok(())
}

fn check_host(head: &RequestHead) -> Result<(), WireError> {
    let mut hosts = head.fields.get_all("host");
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version >= 11 => Err(WireError::Invalid("request without Host")),
        (Some(_), Some(_)) => Err(WireError::Invalid("request with more than one Host")),
        (Some(host), None) if !is_authority(host) => Err(WireError::Invalid("malformed Host")),
        (_, None) | (None, Some(_)) => Ok(()),
    }
}

/// `host` or `host:port` (RFC 9112, 3.2), or nothing: letters, digits and what a name, an address or a port may hold.
fn is_authority(host: &[u8]) -> bool {
    let of_host = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(b);
    host.iter().all(of_host)
}

fn request_length(head: &mut RequestHead) -> Result<BodyLength, WireError> {
    let length = content_length(&mut head.fields)?;
    if !head.fields.contains("transfer-encoding") {
        return Ok(length.map_or(BodyLength::Empty, exact));
    }
    if length.is_some() {
        return Err(WireError::Invalid("both Content-Length and Transfer-Encoding"));
    }
    if head.version == 10 {
        return Err(WireError::Invalid("Transfer-Encoding in an HTTP/1.0 request"));
    }
    check_codings(&head.fields)?;
    Ok(BodyLength::Unknown)
}

fn response_length(head: &mut ResponseHead, method: &Method) -> Result<BodyLength, WireError> {
    let chunked = head.fields.contains("transfer-encoding");
    if chunked {
        check_codings(&head.fields)?;
    }
    let length = content_length(&mut head.fields)?;
    if chunked && length.is_some() {
        return Err(WireError::Invalid("both Content-Length and Transfer-Encoding"));
    }
    if never_has_body(method, head.status) {
        return Ok(BodyLength::Empty);
    }
    Ok(length.map_or(BodyLength::Unknown, exact))
}

fn exact(length: u64) -> BodyLength {
    if length == 0 { BodyLength::Empty } else { BodyLength::Exact(length) }
}

fn check_codings(fields: &Fields) -> Result<(), WireError> {
    let mut values = fields.get_all("transfer-encoding");
    let only = values.next().is_some_and(|v| v.trim_ascii().eq_ignore_ascii_case(b"chunked"));
    if only && values.next().is_none() {
        return Ok(());
    }
    Err(WireError::Invalid("a Transfer-Encoding other than chunked"))
}

/// The declared length; repeated equal values become one (RFC 9110, 8.6).
fn content_length(fields: &mut Fields) -> Result<Option<u64>, WireError> {
    let (mut found, mut count) = (None, 0);
    for value in fields.get_all("content-length").flat_map(|v| v.split(|&b| b == b',')) {
        let value = parse_length(value.trim_ascii())?;
        if found.is_some_and(|known| known != value) {
            return Err(WireError::Invalid("several Content-Length values that differ"));
        }
        (found, count) = (Some(value), count + 1);
    }
    if let (Some(length), 2..) = (found, count) {
        fields.set("content-length", length.to_string());
    }
    Ok(found)
}

fn parse_length(value: &[u8]) -> Result<u64, WireError> {
    let invalid = WireError::Invalid("Content-Length is not a number");
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(invalid);
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Whether the sender of this head wants to use the connection again (RFC 9112, 9.3).
pub fn keeps_alive(version: u8, fields: &Fields) -> bool {
    if version >= 11 {
        return !has_token(fields.get_all("connection"), "close");
    }
    has_token(fields.get_all("connection"), "keep-alive")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 16 };

    fn parse(text: &str) -> Result<RequestHead, String> {
        match request(text.as_bytes(), LIMITS) {
            Ok(Some((head, len))) if len == text.len() => Ok(head),
            Ok(other) => Err(format!("not one head: {other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_plain_request_keeps_its_fields() {
        let head =
            parse("POST /v1/x?q=1 HTTP/1.1\r\nHost: h:1\r\nContent-Length: 5\r\n\r\n").unwrap();
        assert_eq!((head.path(), head.query(), head.host()), ("/v1/x", "q=1", "h:1"));
        assert_eq!(head.body, BodyLength::Exact(5));
    }

    #[test]
    fn ambiguous_framing_is_refused_with_its_reason() {
        let cases = [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked", "both Content-Length"),
            ("Content-Length: 5\r\nContent-Length: 6", "differ"),
            ("Content-Length: +5", "not a number"),
            ("Content-Length: 5, 6", "differ"),
            ("Content-Length: 99999999999999999999", "not a number"),
            ("Transfer-Encoding: gzip, chunked", "other than chunked"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "other than chunked"),
            ("Host: again", "more than one Host"),
        ];
        for (fields, reason) in cases {
            let error =
                parse(&format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n")).unwrap_err();
            assert!(error.contains(reason), "{fields}: {error}");
        }
    }

    #[test]
    fn equal_lengths_are_one() {
        let head = parse("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\n").unwrap();
        assert_eq!(head.body, BodyLength::Exact(5));
    }

    #[test]
    fn an_absolute_target_wins_over_host() {
        let head = parse("GET http://a.example:80?x HTTP/1.1\r\nHost: b\r\n\r\n").unwrap();
        assert_eq!((head.target(), head.host()), ("/?x", "a.example:80"));
        assert!(parse("GET ftp://a/ HTTP/1.1\r\nHost: b\r\n\r\n").is_err());
        assert!(parse("GET http://u@a/ HTTP/1.1\r\nHost: b\r\n\r\n").is_err());
    }

    #[test]
    fn limits_are_named() {
        let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(5000));
        assert!(parse(&long).unwrap_err().contains("header_bytes"));
        let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: 1\r\n".repeat(16));
        assert!(parse(&many).unwrap_err().contains("more header fields"));
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_it_is_split() {
        let head = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        for seen in 0..head.len() {
            assert!(has_head_end(head, seen), "seen {seen}");
            assert!(!has_head_end(&head[..seen], seen.saturating_sub(4)), "partial {seen}");
        }
    }

    #[test]
    fn responses_without_body_by_rule() {
        let parse = |text: &str, method: &Method| {
            response(text.as_bytes(), method, LIMITS).unwrap().unwrap().0.body
        };
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n";
        assert_eq!(parse(text, &Method::GET), BodyLength::Exact(7));
        assert_eq!(parse(text, &Method::HEAD), BodyLength::Empty);
        assert_eq!(
            parse("HTTP/1.1 304 X\r\nContent-Length: 7\r\n\r\n", &Method::GET),
            BodyLength::Empty
        );
        assert_eq!(parse("HTTP/1.1 200 OK\r\n\r\n", &Method::GET), BodyLength::Unknown);
    }
}
