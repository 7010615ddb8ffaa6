//! A client of the chat API that can do what the openai package cannot: look at the head, count events as they come,
//! and hang up at a chosen moment. One request on one connection.

use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// No part of an answer takes longer; one that does is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) struct Chat<'a> {
    pub(super) model: &'a str,
    /// How long the answer is; the model never ends by itself.
    pub(super) tokens: u64,
    pub(super) streamed: bool,
    /// The arm that is forced, if any.
    pub(super) arm: Option<&'a str>,
}

/// A request that was sent and whose answer is read. Dropping it hangs up.
pub(super) struct Open {
    connection: TcpStream,
    received: Vec<u8>,
}

pub(super) struct Answer {
    head: String,
    body: String,
}

/// What the engine says it has read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt: u64,
    pub(super) completion: u64,
}

impl Chat<'_> {
    /// Sends the request and reads nothing yet.
    pub(super) fn open(&self, proxy: SocketAddr) -> Result<Open> {
        let mut connection = TcpStream::connect_timeout(&proxy, PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(self.request(proxy).as_bytes())?;
        Ok(Open { connection, received: Vec::new() })
    }

    /// Asks and reads the whole answer, which must be a 200.
    pub(super) fn ask(&self, proxy: SocketAddr) -> Result<Answer> {
        self.open(proxy)?.finish()
    }

    fn request(&self, proxy: SocketAddr) -> String {
        let Self { model, tokens, streamed, .. } = *self;
        let options = if streamed { r#","stream_options":{"include_usage":true}"# } else { "" };
        let body = format!(
            r#"{{"model":"{model}","max_tokens":{tokens},"stream":{streamed}{options},"messages":[{{"role":"user","content":"how deep is the lagoon?"}}]}}"#
        );
        let arm = self.arm.map(|arm| format!("x-outrigger-arm: {arm}\r\n")).unwrap_or_default();
        let length = body.len();
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {proxy}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n{arm}\r\n{body}"
        )
    }
}

impl Open {
    /// Reads until at least so many events have come.
    pub(super) fn events(&mut self, count: usize) -> Result<()> {
        let mut piece = [0; 4096];
        while String::from_utf8_lossy(&self.received).matches("data: {").count() < count {
            let length = self.read(&mut piece).context("no event came")?;
            ensure!(length > 0, "the stream ended early: {}", self.so_far());
            self.received.extend_from_slice(&piece[..length]);
        }
        Ok(())
    }

    /// Reads to the end.
    pub(super) fn finish(self) -> Result<Answer> {
        Ok(self.finish_timed()?.0)
    }

    /// The same, and the time from the first bytes that come to the last.
    pub(super) fn finish_timed(mut self) -> Result<(Answer, Duration)> {
        let mut piece = [0; 4096];
        let mut times = Vec::new();
        loop {
            let length = self.read(&mut piece).context("the answer did not end")?;
            if length == 0 {
                break;
            }
            times.push(Instant::now());
            self.received.extend_from_slice(&piece[..length]);
        }
        let took = times.last().zip(times.first()).map(|(last, first)| *last - *first);
        Ok((self.answer()?, took.unwrap_or_default()))
    }

    /// A read with a time limit is interrupted by what does not concern it, such as a child of this process that ends.
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.read(piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn answer(&self) -> Result<Answer> {
        let answer = answer(&self.received);
        let answer = answer.with_context(|| format!("answered: {}", self.so_far()))?;
        ensure!(answer.head.starts_with("HTTP/1.1 200 "), "answered: {}", self.so_far());
        Ok(answer)
    }

    /// In one line.
    fn so_far(&self) -> String {
        let text = String::from_utf8_lossy(&self.received);
        text.escape_debug().take(600).collect()
    }
}

impl Answer {
    /// The arm that served, as the proxy exposes it.
    pub(super) fn arm(&self) -> Result<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        let field = fields.find(|(name, _)| name.eq_ignore_ascii_case("x-outrigger-arm"));
        field.map(|(_, arm)| arm).context("the answer names no arm")
    }

    /// The engine's own count, from a plain answer or from the event that carries it.
    pub(super) fn usage(&self) -> Result<Usage> {
        let usage = self.last("usage")?;
        let count = |name| usage[name].as_u64().with_context(|| format!("usage without {name}"));
        Ok(Usage { prompt: count("prompt_tokens")?, completion: count("completion_tokens")? })
    }

    /// The last value of this name, of a plain answer or of the events of a stream.
    fn last(&self, name: &str) -> Result<Value> {
        let events = self.body.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
        let events = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
        let found = events.filter_map(|event| event.get(name).cloned()).next_back();
        found.with_context(|| format!("the answer has no {name}"))
    }

    /// One of the times that the engine tells with its answer, in milliseconds.
    pub(super) fn timing(&self, name: &str) -> Result<f64> {
        self.last("timings")?[name].as_f64().with_context(|| format!("timings without {name}"))
    }

    /// Whether a stream came to its proper end.
    pub(super) fn is_done(&self) -> bool {
        self.body.trim_end().ends_with("data: [DONE]")
    }
}

fn answer(received: &[u8]) -> Result<Answer> {
    let end = received.windows(4).position(|four| four == b"\r\n\r\n").context("no whole head")?;
    let head = String::from_utf8(received[..end].to_vec())?;
    let rest = &received[end + 4..];
    let is_chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let body = if is_chunked { joined(rest)? } else { rest.to_vec() };
    Ok(Answer { head, body: String::from_utf8(body)? })
}

/// Puts the chunks of a body together; one without its closing chunk was cut.
fn joined(mut chunks: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut size = String::new();
        chunks.read_line(&mut size)?;
        match usize::from_str_radix(size.trim_end(), 16) {
            Ok(0) => return Ok(body),
            Ok(length) if length + 2 <= chunks.len() => {
                body.extend_from_slice(&chunks[..length]);
                chunks = &chunks[length + 2..];
            }
            _ => bail!("the answer was cut"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "HTTP/1.1 200 OK\r\nX-Outrigger-Arm: canary\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn a_stream_is_put_together_and_its_usage_found() {
        let first = "data: {\"choices\":[]}\n\n";
        let last =
            "data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":9}}\n\ndata: [DONE]\n\n";
        let chunks: String =
            [first, last].iter().map(|text| format!("{:x}\r\n{text}\r\n", text.len())).collect();
        let whole = answer(format!("{HEAD}{chunks}0\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(whole.arm().unwrap(), "canary");
        assert_eq!(whole.usage().unwrap(), Usage { prompt: 3, completion: 9 });
        assert!(whole.is_done());
        assert!(answer(format!("{HEAD}{chunks}").as_bytes()).is_err(), "no closing chunk");
        assert!(answer(format!("{HEAD}5\r\nabc").as_bytes()).is_err(), "half a chunk");
    }
}
