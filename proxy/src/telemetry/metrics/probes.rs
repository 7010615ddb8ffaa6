//! What the kernel sees of the applications behind endpoints.

use super::*;

/// What is told of the probe that follows requests.
#[derive(Debug, Default)]
pub struct FollowMetrics {
    /// Bursts that the kernel had no room for.
    pub bursts_dropped: Counter,
    /// Connections that could not be registered.
    pub unregistered: Counter,
    /// Requests that could not be joined, because the reader was too slow.
    pub notes_dropped: Counter,
}

impl FollowMetrics {
    pub(super) fn write(&self, page: &mut Page) {
        let lost = [
            ("bursts", &self.bursts_dropped),
            ("connections", &self.unregistered),
            ("requests", &self.notes_dropped),
        ];
        for (what, count) in lost {
            page.counter(Id::ProbeLost, &[what], count.get());
        }
    }
}

/// What the kernel sees of an endpoint.
#[derive(Debug)]
pub struct AppMetrics {
    /// From the socket's first byte to the application's first read.
    pub socket_wait: Histogram,
    /// From there to its first write.
    pub first_byte: Histogram,
    /// From there to its last write.
    pub answer: Histogram,
    timelines: [Counter; TimelineResult::ALL.len()],
}

impl Default for AppMetrics {
    fn default() -> Self {
        Self {
            socket_wait: Histogram::new(APP),
            first_byte: Histogram::new(APP),
            answer: Histogram::new(APP),
            timelines: Default::default(),
        }
    }
}

impl AppMetrics {
    /// So much was seen of a request.
    pub fn timeline(&self, result: TimelineResult) {
        self.timelines[result as usize].inc();
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        page.histogram(Id::AppSocketWait, labels, &self.socket_wait);
        page.histogram(Id::AppFirstByte, labels, &self.first_byte);
        page.histogram(Id::AppAnswer, labels, &self.answer);
        let (all, name) = (TimelineResult::ALL, TimelineResult::as_str);
        page.by_value(Id::AppTimelines, labels, all, name, &self.timelines);
    }
}
