//! The heads of requests and responses, the same for both protocol versions.

use http::Method;

use super::fields::{Fields, Span};

/// How long a body is, as its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    Empty,
    /// Exactly so many bytes.
    Exact(u64),
    /// It ends where the protocol says so: last chunk, `END_STREAM`, or the close of the connection.
    Unknown,
}

/// The head of a request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Header fields; `host` holds the authority in every protocol version.
    pub fields: Fields,
    /// The body that follows.
    pub body: BodyLength,
    /// HTTP version the client speaks: 10, 11 or 20.
    pub version: u8,
    target: Span,
}

impl RequestHead {
    pub(crate) fn new(method: Method, fields: Fields, target: Span, version: u8) -> Self {
        RequestHead { method, fields, body: BodyLength::Empty, version, target }
    }

    /// A head for this target, which must be visible ASCII.
    pub fn for_target(method: Method, mut fields: Fields, target: &str, version: u8) -> Self {
        let target = fields.store(target.as_bytes());
        Self::new(method, fields, target, version)
    }

    /// Path and query, as sent.
    pub fn target(&self) -> &str {
        // Every constructor checks the target to be ASCII.
        std::str::from_utf8(self.target.of(self.fields.bytes())).unwrap_or("/")
    }

    /// The path without its query.
    pub fn path(&self) -> &str {
        let target = self.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// The query without its question mark; empty when there is none.
    pub fn query(&self) -> &str {
        self.target().split_once('?').map_or("", |(_, query)| query)
    }

    /// The authority asked for, with its port.
    pub fn host(&self) -> &str {
        self.fields.get_str("host").unwrap_or("")
    }

    /// Replaces path and query. The value must be visible ASCII.
    pub fn set_target(&mut self, target: &str) {
        self.target = self.fields.store(target.as_bytes());
    }

    /// Whether the client asks to leave HTTP for another protocol on this connection. An offer of `h2c` is none: it
    /// concerns the connection to us, and we speak that only from the start (RFC 9113, 3.1).
    pub fn is_upgrade(&self) -> bool {
        let offer = self.fields.get("upgrade");
        self.version == 11
            && offer.is_some_and(|protocol| !protocol.eq_ignore_ascii_case(b"h2c"))
            && super::fields::has_token(self.fields.get_all("connection"), "upgrade")
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.version >= 11
            && self.fields.get("expect").is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"))
    }
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// Status code, 100 to 999.
    pub status: u16,
    /// Header fields.
    pub fields: Fields,
    /// The body that follows.
    pub body: BodyLength,
    /// HTTP version of the sender: 10, 11 or 20.
    pub version: u8,
}

impl ResponseHead {
    /// A response of our own making.
    pub fn new(status: u16) -> Self {
        ResponseHead { status, fields: Fields::new(), body: BodyLength::Empty, version: 11 }
    }

    /// 1xx: another head follows. `101` is the last one, though.
    pub fn is_informational(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

/// Whether a response to `method` with this status has no body whatever its fields say (RFC 9110, 6.4.1).
pub fn never_has_body(method: &Method, status: u16) -> bool {
    method == Method::HEAD || status < 200 || status == 204 || status == 304
}
