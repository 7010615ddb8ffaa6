//! Bodies for tests of plain HTTP: a known pattern of any length, and events at a fixed pace.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context as Cx, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Interval, interval};

use super::random::Random;

/// The pattern repeats after so many bytes; a prime, so that a shifted or swapped block shows.
const PERIOD: usize = 251;
const BLOCK: usize = PERIOD * 256;

fn block() -> &'static Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    BYTES.get_or_init(|| (0..BLOCK).map(|i| (i % PERIOD) as u8).collect())
}

/// The `length` bytes that `/bytes/LENGTH` answers with: byte `i` is `i` modulo 251.
pub fn pattern(length: usize) -> Vec<u8> {
    block().iter().copied().cycle().take(length).collect()
}

/// The body of `/bytes/LENGTH`.
pub(crate) struct Pattern {
    left: u64,
    chunked: bool,
}

impl Pattern {
    pub(crate) fn new(length: u64, chunked: bool) -> Self {
        Self { left: length, chunked }
    }
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Cx<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let size = self.left.min(BLOCK as u64);
        self.left -= size;
        Poll::Ready(Some(Ok(Frame::data(block().slice(..size as usize)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        if self.chunked { SizeHint::default() } else { SizeHint::with_exact(self.left) }
    }
}

/// The `length` bytes that `/text/LENGTH` answers with: letters at random, always the same, which shrink by a quarter.
pub fn text(length: usize) -> Vec<u8> {
    let blocks = length.div_ceil(TEXT_BLOCK) as u64;
    let mut text: Vec<u8> = (0..blocks).flat_map(text_block).collect();
    text.truncate(length);
    text
}

const TEXT_BLOCK: usize = 64 * 1024;

fn text_block(index: u64) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 \n";
    let mut random = Random::new(index);
    let eight = |_| {
        let bits = random.bits();
        [0, 8, 16, 24, 32, 40, 48, 56].map(|shift| LETTERS[(bits >> shift) as usize % 64])
    };
    (0..TEXT_BLOCK / 8).flat_map(eight).collect()
}

/// The body of `/text/LENGTH`.
pub(crate) struct Text {
    left: usize,
    next: u64,
    chunked: bool,
}

impl Text {
    pub(crate) fn new(length: usize, chunked: bool) -> Self {
        Self { left: length, next: 0, chunked }
    }
}

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Cx<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let mut block = text_block(self.next);
        block.truncate(self.left);
        self.left -= block.len();
        self.next += 1;
        Poll::Ready(Some(Ok(Frame::data(block.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        if self.chunked { SizeHint::default() } else { SizeHint::with_exact(self.left as u64) }
    }
}

/// The body of `/events/COUNT`: numbered events, then `[DONE]`.
pub(crate) struct Beat {
    next: u64,
    count: u64,
    pad: String,
    beat: Option<Interval>,
}

impl Beat {
    pub(crate) fn new(count: u64, gap: Duration, pad: usize) -> Self {
        let beat = (!gap.is_zero()).then(|| interval(gap));
        Self { next: 0, count, pad: "x".repeat(pad), beat }
    }
}

impl Body for Beat {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.next > self.count {
            return Poll::Ready(None);
        }
        let (index, more) = (self.next, self.next < self.count);
        if let Some(beat) = self.beat.as_mut().filter(|_| more) {
            ready!(beat.poll_tick(cx));
        }
        self.next += 1;
        let text = match more {
            true => format!("data: {{\"index\":{index},\"pad\":\"{}\"}}\n\n", self.pad),
            false => "data: [DONE]\n\n".to_owned(),
        };
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}
