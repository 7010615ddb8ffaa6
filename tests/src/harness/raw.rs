//! A client for tests of the wire: sends exactly the bytes it is given and shows exactly what comes back.
//!
//! It understands HTTP/1.1 just far enough to find the end of heads, bodies and trailers, and accepts nothing that is
//! badly framed. Everything else (h2, ordinary requests) is what [`super::Call`] is for.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// A connection to the server.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    /// Received and not yet given out.
    buffer: Vec<u8>,
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct Head {
    /// When its last byte was read.
    pub at: Instant,
    /// Everything up to and with the empty line, as it came.
    pub text: String,
    /// `HTTP/1.1`
    pub version: String,
    /// The status code.
    pub status: u16,
    /// The fields as they came: order, case and duplicates.
    pub headers: Vec<(String, String)>,
}

/// A part of a body: one chunk, or what arrived together of a body that is not chunked.
#[derive(Clone, Debug)]
pub struct Piece {
    /// When it was complete.
    pub at: Instant,
    /// Its bytes, without framing.
    pub data: Vec<u8>,
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Message {
    /// Responses with a status of 1xx that came before.
    pub informational: Vec<Head>,
    /// Its head.
    pub head: Head,
    /// Its body in the parts in which it came.
    pub pieces: Vec<Piece>,
    /// Its trailer fields.
    pub trailers: Vec<(String, String)>,
}

/// Why a response could not be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The connection was closed in order (FIN) where more should have come.
    Closed,
    /// The connection was reset.
    Reset,
    /// What came is not HTTP, or badly framed.
    Malformed,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// By FIN, after these bytes that nobody had asked for.
    Fin(Vec<u8>),
    /// By RST.
    Reset,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    Close,
}

impl Raw {
    /// Connects.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn connect(to: SocketAddr) -> Self {
        let stream = within("connecting", TcpStream::connect(to)).await;
        let stream = stream.expect("the server accepts connections");
        stream.set_nodelay(true).expect("a fresh socket takes options");
        Self { stream, buffer: Vec::new() }
    }

    /// Sends these bytes.
    ///
    /// # Panics
    /// When the connection does not take them; where that may happen use [`Raw::try_send`].
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the server reads what is sent");
    }

    /// Sends these bytes.
    ///
    /// # Errors
    /// When the connection does not take them.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within("sending", self.stream.write_all(bytes.as_ref())).await
    }

    /// Sends a GET for `target`.
    pub async fn get(&mut self, target: &str) {
        self.send(format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    }

    /// Sends a POST with a body of known length.
    pub async fn post(&mut self, target: &str, body: impl AsRef<[u8]>) {
        let length = body.as_ref().len();
        let head =
            format!("POST {target} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n");
        self.send([head.as_bytes(), body.as_ref()].concat()).await;
    }

    /// Sends FIN; the other direction stays open.
    pub async fn close_write(&mut self) {
        self.stream.shutdown().await.expect("an open socket can be half-closed");
    }

    /// Ends the connection by RST.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("an open socket takes options");
    }

    /// The socket and what was received but not yet asked for: to go on in another protocol after a 101.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer)
    }

    /// Waits for the next response head, which may be a 1xx.
    ///
    /// # Errors
    /// When the connection ends first, or what comes is no head.
    pub async fn head(&mut self) -> Result<Head, Broken> {
        let text = self.take_until(b"\r\n\r\n").await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        parse(text).ok_or(Broken::Malformed)
    }

    /// Reads a whole response to anything but HEAD.
    ///
    /// # Panics
    /// When it does not come whole; where that may happen use [`Raw::try_response`].
    pub async fn response(&mut self) -> Message {
        match self.try_response("GET").await {
            Ok(message) => message,
            Err(why) => super::fail(&format!("the response did not come whole: {why:?}")),
        }
    }

    /// Reads a whole response to a request with this method.
    ///
    /// # Errors
    /// When it does not come whole.
    pub async fn try_response(&mut self, method: &str) -> Result<Message, Broken> {
        let mut informational = Vec::new();
        let head = loop {
            match self.head().await? {
                head if (100..200).contains(&head.status) && head.status != 101 => {
                    informational.push(head);
                }
                head => break head,
            }
        };
        let mut body = head.body(method);
        let mut pieces = Vec::new();
        while let Some(piece) = self.piece(&mut body).await? {
            pieces.push(piece);
        }
        Ok(Message { informational, head, pieces, trailers: body.trailers })
    }

    /// Waits for the next part of a body; none after its end.
    ///
    /// # Errors
    /// When the connection ends first, or the framing is wrong.
    pub async fn piece(&mut self, body: &mut Body) -> Result<Option<Piece>, Broken> {
        let data = match body.framing {
            Framing::Length(0) => return Ok(None),
            Framing::Length(left) => {
                let data = self.take_some(left).await?;
                body.framing = Framing::Length(left - data.len());
                data
            }
            Framing::Close => match self.take_some(usize::MAX).await {
                Err(Broken::Closed) => return Ok(None),
                data => data?,
            },
            Framing::Chunked => match self.chunk().await? {
                Some(data) => data,
                None => {
                    body.trailers = self.trailers().await?;
                    body.framing = Framing::Length(0);
                    return Ok(None);
                }
            },
        };
        Ok(Some(Piece { at: Instant::now(), data }))
    }

    /// Waits until the server closes the connection.
    pub async fn closed(&mut self) -> Closed {
        loop {
            match self.fill().await {
                Ok(()) => {}
                Err(Broken::Closed) => return Closed::Fin(std::mem::take(&mut self.buffer)),
                Err(_) => return Closed::Reset,
            }
        }
    }

    /// Waits for exactly `count` bytes, whatever they are.
    ///
    /// # Errors
    /// When the connection ends first.
    pub async fn take(&mut self, count: usize) -> Result<Vec<u8>, Broken> {
        while self.buffer.len() < count {
            self.fill().await?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    async fn take_some(&mut self, most: usize) -> Result<Vec<u8>, Broken> {
        if self.buffer.is_empty() {
            self.fill().await?;
        }
        let count = self.buffer.len().min(most);
        Ok(self.buffer.drain(..count).collect())
    }

    async fn take_until(&mut self, end: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut searched = 0;
        loop {
            let found = self.buffer[searched..].windows(end.len()).position(|part| part == end);
            if let Some(at) = found {
                return Ok(self.buffer.drain(..searched + at + end.len()).collect());
            }
            searched = self.buffer.len().saturating_sub(end.len() - 1);
            self.fill().await?;
        }
    }

    async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        let line = self.take_until(b"\r\n").await?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let digits = line.trim_end().split(';').next().unwrap_or_default().trim().to_owned();
        let size = usize::from_str_radix(&digits, 16).map_err(|_| Broken::Malformed)?;
        if size == 0 {
            return Ok(None);
        }
        let mut data = self.take(size + 2).await?;
        if !data.ends_with(b"\r\n") {
            return Err(Broken::Malformed);
        }
        data.truncate(size);
        Ok(Some(data))
    }

    async fn trailers(&mut self) -> Result<Vec<(String, String)>, Broken> {
        let mut trailers = Vec::new();
        loop {
            let line = self.take_until(b"\r\n").await?;
            if line == b"\r\n" {
                return Ok(trailers);
            }
            trailers.push(field(&String::from_utf8_lossy(&line)).ok_or(Broken::Malformed)?);
        }
    }

    async fn fill(&mut self) -> Result<(), Broken> {
        match within("waiting for bytes", self.stream.read_buf(&mut self.buffer)).await {
            Ok(0) => Err(Broken::Closed),
            Ok(_) => Ok(()),
            Err(_) => Err(Broken::Reset),
        }
    }
}

/// Where reading a body has got to.
#[derive(Debug)]
pub struct Body {
    framing: Framing,
    /// The trailer fields, once the body has been read.
    pub trailers: Vec<(String, String)>,
}

impl Head {
    /// The first value of the header called `name`, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// Every value of the header called `name`, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    /// Begins the body of this response to a request with `method`.
    pub fn body(&self, method: &str) -> Body {
        Body { framing: self.framing(method), trailers: Vec::new() }
    }

    fn framing(&self, method: &str) -> Framing {
        let chunked = self.header("transfer-encoding").is_some_and(|v| v.ends_with("chunked"));
        let length = self.header("content-length").and_then(|v| v.parse().ok());
        match self.status {
            _ if method == "HEAD" => Framing::Length(0),
            100..200 | 204 | 304 => Framing::Length(0),
            _ if chunked => Framing::Chunked,
            _ => length.map_or(Framing::Close, Framing::Length),
        }
    }
}

impl Message {
    /// The status code.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The first value of the header called `name`, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body in one piece.
    pub fn body(&self) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| piece.data.iter().copied()).collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body()).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not that type's JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body()).expect("the body is the JSON that was asked for")
    }
}

fn parse(text: String) -> Option<Head> {
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let mut first = lines.next()?.splitn(3, ' ');
    let version = first.next()?.to_owned();
    let status = first.next()?.parse().ok()?;
    let headers = lines.map(field).collect::<Option<_>>()?;
    let known = version == "HTTP/1.1" || version == "HTTP/1.0";
    known.then(|| Head { at: Instant::now(), version, status, headers, text })
}

fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.to_owned(), value.trim().to_owned()))
}
