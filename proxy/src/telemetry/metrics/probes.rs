//! What the kernel sees of the applications behind endpoints.

use std::sync::OnceLock;

use super::*;
use crate::probes::{GpuWait, Method};

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
    /// From the proxy beginning to send to the socket's first byte.
    pub wire: Histogram,
    /// From the socket's first byte to the application's first read.
    pub socket_wait: Histogram,
    /// From there to its first write.
    pub first_byte: Histogram,
    /// From there to its last write.
    pub answer: Histogram,
    /// How many requests it may have at once, by what is seen in its socket; 0 for any number.
    pub limit: Gauge,
    timelines: [Counter; TimelineResult::ALL.len()],
    /// How much of requests was spent waiting for the GPU, once that was seen: by method, exact and shared.
    gpu_waits: [[OnceLock<Histogram>; 2]; 2],
}

impl Default for AppMetrics {
    fn default() -> Self {
        Self {
            wire: Histogram::new(APP),
            socket_wait: Histogram::new(APP),
            first_byte: Histogram::new(APP),
            answer: Histogram::new(APP),
            limit: Gauge::default(),
            timelines: Default::default(),
            gpu_waits: Default::default(),
        }
    }
}

impl AppMetrics {
    /// So much was seen of a request.
    pub fn timeline(&self, result: TimelineResult) {
        self.timelines[result as usize].inc();
    }

    /// So much of a request was spent waiting for the GPU.
    pub fn gpu_wait(&self, wait: &GpuWait) {
        let histogram = &self.gpu_waits[wait.method as usize][usize::from(wait.among > 1)];
        histogram.get_or_init(|| Histogram::new(APP)).observe(wait.took);
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        for (method, waits) in [Method::Api, Method::Driver].into_iter().zip(&self.gpu_waits) {
            for (attribution, waits) in ["exact", "shared"].into_iter().zip(waits) {
                if let Some(waits) = waits.get() {
                    let labels = [labels, &[method.as_str(), attribution]].concat();
                    page.histogram(Id::AppGpuWait, &labels, waits);
                }
            }
        }
        page.gauge(Id::AppLimit, labels, &self.limit);
        page.histogram(Id::AppWire, labels, &self.wire);
        page.histogram(Id::AppSocketWait, labels, &self.socket_wait);
        page.histogram(Id::AppFirstByte, labels, &self.first_byte);
        page.histogram(Id::AppAnswer, labels, &self.answer);
        let (all, name) = (TimelineResult::ALL, TimelineResult::as_str);
        page.by_value(Id::AppTimelines, labels, all, name, &self.timelines);
    }
}
