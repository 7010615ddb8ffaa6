//! What the kernel sees of the applications behind endpoints.

use std::collections::BTreeSet;

use outrigger_probes::{Calls, Detail, FUNCTIONS};

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

/// What is seen of calls of the GPU's user-space driver.
#[derive(Debug, Default)]
pub struct GpuMetrics {
    /// Processes that are watched.
    pub processes: Gauge,
    /// How long the oldest call has been under way, in seconds.
    pub oldest_call: Level,
    /// Calls whose beginning was not there any more.
    pub lost_calls: Counter,
    /// Waits that the kernel had no room for.
    pub lost_waits: Counter,
    seen: Mutex<SeenFunctions>,
}

/// What is known of each function that was found, by its number.
#[derive(Debug, Default)]
struct SeenFunctions {
    /// Those that probes were put into.
    calls: BTreeMap<usize, Calls>,
    /// Those of which a variant was refused.
    refused: BTreeSet<usize>,
}

impl GpuMetrics {
    fn seen(&self) -> MutexGuard<'_, SeenFunctions> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Probes were put into these functions.
    pub fn attached(&self, functions: impl Iterator<Item = usize>) {
        let mut seen = self.seen();
        for function in functions {
            seen.calls.entry(function).or_default();
        }
    }

    /// And into these they were not.
    pub fn refused(&self, functions: impl Iterator<Item = usize>) {
        self.seen().refused.extend(functions);
    }

    /// Reads what the kernel has counted of each function that has probes; what cannot be read stays as it was.
    pub fn update(&self, read: impl Fn(usize) -> Option<Calls>) {
        for (function, calls) in &mut self.seen().calls {
            if let Some(now) = read(*function) {
                *calls = now;
            }
        }
    }

    pub(super) fn write(&self, page: &mut Page) {
        page.gauge(Id::GpuApiProcesses, &[], &self.processes);
        page.level(Id::GpuApiOldestCall, &[], self.oldest_call.get().unwrap_or(0.0));
        page.counter(Id::ProbeLost, &["gpu_calls"], self.lost_calls.get());
        page.counter(Id::ProbeLost, &["gpu_waits"], self.lost_waits.get());
        let SeenFunctions { calls, refused } = &*self.seen();
        for (function, calls) in calls {
            write_calls(*function, calls, page);
        }
        for function in refused {
            page.constant(Id::GpuApiRefused, &[FUNCTIONS[*function].name]);
        }
    }
}

fn write_calls(function: usize, calls: &Calls, page: &mut Page) {
    let function = FUNCTIONS[function];
    let name = [function.name];
    if function.detail == Detail::Counted {
        page.counter(Id::GpuApiLaunches, &name, calls.times.count);
        return;
    }
    page.kernel_histogram(Id::GpuApiCall, &[function.api.as_str(), function.name], &calls.times);
    page.counter(Id::GpuApiFailed, &name, calls.failed);
    if function.bytes > 0 {
        page.counter(Id::GpuApiBytes, &name, calls.bytes);
    }
}
