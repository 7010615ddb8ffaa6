//! What is seen of a response while it passes.

use std::time::{Duration, Instant};

use crate::{
    stream::{Kind, Meter, Summary},
    telemetry::instruments::LocalHistogram,
};

/// The response of one request, as far as it has come.
pub struct Progress {
    event_stream: bool,
    first: Option<Instant>,
    last: Option<Instant>,
    bytes: u64,
    chunks: u64,
    meter: Meter,
    gaps: Option<LocalHistogram>,
    /// How many pauses there were between events, and how long all of them together.
    gap_count: u32,
    gap_sum: Duration,
    /// The longest pause between two pieces.
    longest_gap: Option<Duration>,
    /// Nothing was read for a while because the client was behind.
    held_up: bool,
}

impl Progress {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Progress {
            event_stream: false,
            first: None,
            last: None,
            bytes: 0,
            chunks: 0,
            meter: Meter::new(Kind::Other),
            gaps: None,
            gap_count: 0,
            gap_sum: Duration::ZERO,
            longest_gap: None,
            held_up: false,
        }
    }

    /// The response that begins is of this kind, and the pauses between its events, if it has any, are counted there.
    pub fn begin(&mut self, kind: Kind, gaps: LocalHistogram) {
        self.event_stream = kind == Kind::EventStream;
        self.meter = Meter::new(kind);
        self.gaps = Some(gaps);
    }

    /// The same for what several clients get of one response, whose pauses are counted once.
    pub fn begin_uncounted(&mut self, kind: Kind) {
        self.event_stream = kind == Kind::EventStream;
        self.meter = Meter::new(kind);
    }

    /// A piece of the body has come; `true` for the first one.
    pub fn data(&mut self, data: &[u8], now: Instant) -> bool {
        self.bytes += data.len() as u64;
        self.chunks += 1;
        let events = self.meter.feed(data);
        if let Some(last) = self.last.replace(now) {
            let gap = now.saturating_duration_since(last);
            if !std::mem::take(&mut self.held_up) {
                self.longest_gap = self.longest_gap.max(Some(gap));
            }
            if events > 0
                && let Some(gaps) = &mut self.gaps
            {
                gaps.observe(gap);
                self.gap_count += 1;
                self.gap_sum += gap;
            }
        }
        self.first.get_or_insert(now);
        self.chunks == 1
    }

    /// The client is behind, so nothing is read for a while: the pause that ends with the next piece says nothing.
    pub fn hold_up(&mut self) {
        self.held_up = true;
    }

    /// So many bytes of a body of our own were sent. They count as bytes, but tell nothing about an endpoint.
    pub fn own(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Whether the response is a stream of events.
    pub fn is_event_stream(&self) -> bool {
        self.event_stream
    }

    /// When the last piece came.
    pub fn last_data(&self) -> Option<Instant> {
        self.last
    }

    /// The mean pause between two events.
    pub fn mean_gap(&self) -> Option<Duration> {
        (self.gap_count > 0).then(|| self.gap_sum / self.gap_count)
    }

    /// The longest pause between two pieces that was the endpoint's.
    pub fn longest_gap(&self) -> Option<Duration> {
        self.longest_gap
    }

    /// From `start` to the first piece.
    pub fn first_byte_after(&self, start: Instant) -> Option<Duration> {
        self.first.map(|first| first.saturating_duration_since(start))
    }

    /// Bytes of the body.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Pieces of the body.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// What the body said about itself.
    pub fn summary(&self) -> Summary {
        self.meter.summary()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_the_endpoints_own() {
        let (mut progress, start) = (Progress::new(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        progress.data(b"a", at(500));
        assert_eq!(progress.longest_gap(), None, "one piece has no gap");
        progress.data(b"b", at(540));
        progress.hold_up();
        progress.data(b"c", at(9_000));
        progress.data(b"d", at(9_030));
        assert_eq!(progress.longest_gap(), Some(Duration::from_millis(40)));
    }
}
