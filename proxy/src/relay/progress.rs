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
        if let Some(last) = self.last.replace(now)
            && events > 0
            && let Some(gaps) = &mut self.gaps
        {
            let gap = now.saturating_duration_since(last);
            gaps.observe(gap);
            self.gap_count += 1;
            self.gap_sum += gap;
        }
        self.first.get_or_insert(now);
        self.chunks == 1
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
