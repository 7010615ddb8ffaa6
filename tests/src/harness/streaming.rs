//! An answer that is still coming: its parts and its server-sent events, each with the time at which it came.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::call::{Answer, chain};
use super::within;

/// A response whose head has come. Dropping it hangs up.
#[derive(Debug)]
pub struct Streaming {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// From the beginning of the call to the response head.
    pub head_after: Duration,
    version: String,
    body: Incoming,
    began: Instant,
    first_byte_after: Option<Duration>,
    trailers: HeaderMap,
    cut: Option<String>,
    /// Received and not yet a whole event.
    partial: BytesMut,
}

/// A server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// From the beginning of the call to the end of the event.
    pub after: Duration,
    /// Its `data` lines, joined by line feeds.
    pub data: String,
    /// Its lines as they came, without the empty one.
    pub text: String,
}

/// A stream of events that has ended.
#[derive(Clone, Debug)]
pub struct Transcript {
    /// The events.
    pub events: Vec<Event>,
    /// Why it broke off, when it did.
    pub cut: Option<String>,
}

impl Streaming {
    pub(crate) fn new(response: Response<Incoming>, began: Instant) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            head_after: began.elapsed(),
            version: format!("{:?}", parts.version),
            body,
            began,
            first_byte_after: None,
            trailers: HeaderMap::new(),
            cut: None,
            partial: BytesMut::new(),
        }
    }

    /// Waits for the next part of the body; none at its end, which may be a break ([`Streaming::cut`]).
    pub async fn part(&mut self) -> Option<Bytes> {
        loop {
            match within("the next part of a body", self.body.frame()).await? {
                // On h2 the end may come as a frame without data.
                Ok(frame) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                Ok(frame) if frame.is_data() => {
                    self.first_byte_after.get_or_insert(self.began.elapsed());
                    return frame.into_data().ok();
                }
                Ok(frame) => self.trailers = frame.into_trailers().unwrap_or_default(),
                Err(error) => {
                    self.cut = Some(chain(&error));
                    return None;
                }
            }
        }
    }

    /// Waits for the next event; none at the end.
    pub async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.partial.windows(2).position(|two| two == b"\n\n") {
                let event = self.partial.split_to(end + 2);
                return Some(Event::read(&event[..end], self.began.elapsed()));
            }
            let part = self.part().await?;
            self.partial.extend_from_slice(&part);
        }
    }

    /// Takes all events to the end.
    pub async fn events(mut self) -> Transcript {
        let mut events = Vec::new();
        while let Some(event) = self.event().await {
            events.push(event);
        }
        Transcript { events, cut: self.cut }
    }

    /// Why the body broke off, when it did.
    pub fn cut(&self) -> Option<&str> {
        self.cut.as_deref()
    }

    /// The first value of a header, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Takes the rest of the body. What was taken by [`Streaming::part`] is not in it again.
    pub async fn rest(mut self) -> Answer {
        let mut body = std::mem::take(&mut self.partial);
        while let Some(part) = self.part().await {
            body.extend_from_slice(&part);
        }
        Answer {
            status: self.status,
            version: self.version,
            headers: self.headers,
            body: body.freeze(),
            trailers: self.trailers,
            cut: self.cut,
            head_after: self.head_after,
            first_byte_after: self.first_byte_after,
            whole_after: self.began.elapsed(),
        }
    }
}

impl Event {
    fn read(bytes: &[u8], after: Duration) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        let data = data.map(|data| data.strip_prefix(' ').unwrap_or(data));
        Self { after, data: data.collect::<Vec<_>>().join("\n"), text }
    }

    /// Its data as JSON; null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_default()
    }

    /// Whether it is OpenAI's last event.
    pub fn is_done(&self) -> bool {
        self.data == "[DONE]"
    }
}

impl Transcript {
    /// Whether it ended with `[DONE]` and in order.
    pub fn is_complete(&self) -> bool {
        self.cut.is_none() && self.events.last().is_some_and(Event::is_done)
    }

    /// The times between events.
    pub fn gaps(&self) -> Vec<Duration> {
        let pairs = self.events.windows(2);
        pairs.map(|pair| pair[1].after.saturating_sub(pair[0].after)).collect()
    }

    /// The text of a chat or a completion, put together.
    pub fn text(&self) -> String {
        let text = |event: &Event| {
            let choice = &event.json()["choices"][0];
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            text.unwrap_or_default().to_owned()
        };
        self.events.iter().map(text).collect()
    }
}
