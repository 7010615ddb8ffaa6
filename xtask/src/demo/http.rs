//! The least HTTP/1.1 client that the demo needs: one request at a time on one kept-alive connection.
//!
//! A client library would be most of what this package compiles. Everything outside of what our own proxy and
//! simulator answer with (trailers, 1xx, obsolete line folding) is left out.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// No answer of the demo takes longer; one that does is a failure to report, not to wait for.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Connection {
    peer: SocketAddr,
    stream: BufReader<TcpStream>,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// One GET on a connection of its own.
pub(crate) fn get(peer: SocketAddr, path: &str) -> Result<Response> {
    Connection::open(peer)?.exchange("GET", path, "")
}

impl Connection {
    pub(crate) fn open(peer: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&peer, PATIENCE)
            .with_context(|| format!("cannot connect to {peer}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { peer, stream: BufReader::new(stream) })
    }

    /// Sends a request and reads the whole answer, streamed or not.
    pub(crate) fn exchange(&mut self, method: &str, path: &str, json: &str) -> Result<Response> {
        let length = json.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n",
            self.peer
        );
        self.stream.get_mut().write_all(&[head.as_bytes(), json.as_bytes()].concat())?;
        read_response(&mut self.stream)
    }
}

fn read_response(stream: &mut impl BufRead) -> Result<Response> {
    let status_line = line(stream)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not an HTTP answer: `{status_line}`"))?;
    let mut length = None;
    let mut chunked = false;
    loop {
        let field = line(stream)?;
        let Some((name, value)) = field.split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.trim().parse()?),
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
    let mut body = Vec::new();
    match length {
        _ if chunked => read_chunks(stream, &mut body)?,
        Some(length) => read_exactly(stream, length, &mut body)?,
        None => drop(stream.read_to_end(&mut body)?),
    }
    Ok(Response { status, body: String::from_utf8_lossy(&body).into_owned() })
}

fn read_chunks(stream: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let size = line(stream)?;
        let length = u64::from_str_radix(&size, 16).with_context(|| format!("chunk `{size}`"))?;
        read_exactly(stream, length, body)?;
        line(stream)?;
        if length == 0 {
            return Ok(());
        }
    }
}

fn read_exactly(stream: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<()> {
    let read = stream.take(length).read_to_end(body)?;
    if (read as u64) < length {
        bail!("the answer was cut: {read} of {length} bytes");
    }
    Ok(())
}

fn line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        bail!("the connection was closed before the end of the answer");
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut text: &[u8]) -> Result<Response> {
        read_response(&mut text)
    }

    #[test]
    fn a_sized_answer_ends_where_it_says() {
        let mut text = &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 X\r\n"[..];
        let response = read_response(&mut text).unwrap();
        assert_eq!((response.status, response.body.as_str()), (200, "ok"));
        assert!(text.starts_with(b"HTTP/1.1 404"));
    }

    #[test]
    fn chunks_are_joined() {
        let head = "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n";
        let response = read(format!("{head}3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n").as_bytes());
        let response = response.unwrap();
        assert_eq!((response.status, response.body.as_str()), (503, "abc0123456789"));
    }

    #[test]
    fn an_answer_that_is_cut_is_an_error() {
        assert!(read(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc").is_err());
        assert!(
            read(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n").is_err()
        );
        assert!(read(b"HTTP/1.1 200 OK\r\n").is_err());
        assert!(read(b"").is_err());
    }
}
