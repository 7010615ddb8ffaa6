//! `/echo`: tells the client exactly what arrived, so that a test can see what a proxy made of its request.

use http::HeaderMap;
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::Body;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What `/echo` received.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    /// The simulator's name.
    pub name: String,
    /// The method.
    pub method: String,
    /// The target as it came: on h2, `:path`.
    pub target: String,
    /// `HTTP/1.1`, `HTTP/1.0` or `HTTP/2.0`.
    pub version: String,
    /// The header fields, duplicates included. On HTTP/1 in the order and case of the wire; on h2 grouped by name, with
    /// `:authority` first.
    pub headers: Vec<(String, String)>,
    /// The whole head as it came, on HTTP/1 without pipelining.
    pub head: Option<String>,
    /// Length of the body.
    pub bytes: u64,
    /// SHA-256 of the body in lower-case hex.
    pub sha256: String,
    /// The trailer fields.
    pub trailers: Vec<(String, String)>,
}

impl Echo {
    /// The first value of the header called `name`, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// Every value of the header called `name`, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }
}

/// Reads the body to its end and tells what came. None when it ended in an error.
pub(crate) async fn receive<B>(
    name: &str,
    parts: &Parts,
    head: Option<String>,
    body: B,
) -> Option<Echo>
where
    B: Body<Data = bytes::Bytes> + Unpin,
{
    let (mut body, mut hash, mut bytes) = (body, Sha256::new(), 0);
    let mut trailers = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.ok()?;
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            hash.update(data);
        } else if let Some(fields) = frame.trailers_ref() {
            trailers = list(fields);
        }
    }
    let written = head.as_deref().and_then(|head| head.split(' ').nth(1)).map(str::to_owned);
    let path = || parts.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let target = written.unwrap_or_else(path);
    Some(Echo {
        name: name.to_owned(),
        method: parts.method.to_string(),
        target,
        version: format!("{:?}", parts.version),
        headers: head.as_deref().map_or_else(|| fields(parts), lines),
        head,
        bytes,
        sha256: hex(&hash.finalize()),
        trailers,
    })
}

/// SHA-256 in lower-case hex, to compare with [`Echo::sha256`].
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fields(parts: &Parts) -> Vec<(String, String)> {
    let authority = parts.uri.authority().map(|host| (":authority".to_owned(), host.to_string()));
    authority.into_iter().chain(list(&parts.headers)).collect()
}

fn list(map: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    map.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

fn lines(head: &str) -> Vec<(String, String)> {
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}
