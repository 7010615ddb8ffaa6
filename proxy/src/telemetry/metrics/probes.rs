//! What the kernel sees of the applications behind endpoints.

use std::{collections::BTreeSet, sync::OnceLock};

use outrigger_probes::{Calls, Detail, FUNCTIONS};

use super::*;
use outrigger_probes::{DriverLoss, FenceLoss};

use crate::probes::{GpuWait, Method};

/// What is told of the probe that follows requests.
#[derive(Debug, Default)]
pub struct FollowMetrics {
    /// Bursts that the kernel had no room for.
    pub bursts_dropped: Counter,
    /// Single writes for which there was no room.
    pub writes_dropped: Counter,
    /// Connections that could not be registered.
    pub unregistered: Counter,
    /// Requests that could not be joined, because the reader was too slow.
    pub notes_dropped: Counter,
}

impl FollowMetrics {
    pub(super) fn write(&self, page: &mut Page) {
        let lost = [
            ("bursts", &self.bursts_dropped),
            ("writes", &self.writes_dropped),
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
    /// From the proxy beginning to send to the socket's first byte. This and the next three are observed by the thread alone
    /// that joins timelines.
    pub wire: Histogram,
    /// From the socket's first byte to the application's first read.
    pub socket_wait: Histogram,
    /// From there to its first write.
    pub first_byte: Histogram,
    /// From there to its last write.
    pub answer: Histogram,
    /// Between two of its writes in a row, as the kernel has counted it.
    write_gaps: Mutex<outrigger_probes::Histogram>,
    /// How many requests it may have at once, by what is seen in its socket; 0 for any number.
    pub limit: Gauge,
    timelines: [Counter; TimelineResult::ALL.len()],
    /// How much of requests was spent waiting for the GPU, once that was seen: by method, exact and shared.
    gpu_waits: [[OnceLock<Histogram>; 2]; Method::ALL.len()],
}

impl Default for AppMetrics {
    fn default() -> Self {
        Self {
            wire: Histogram::new(APP),
            socket_wait: Histogram::new(APP),
            first_byte: Histogram::new(APP),
            answer: Histogram::new(APP),
            write_gaps: Mutex::default(),
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

    /// So far apart its writes were since the probe runs.
    pub fn write_gaps(&self, gaps: outrigger_probes::Histogram) {
        *self.write_gaps.lock().unwrap_or_else(PoisonError::into_inner) = gaps;
    }

    /// So much of a request was spent waiting for the GPU.
    pub fn gpu_wait(&self, wait: &GpuWait) {
        let histogram = &self.gpu_waits[wait.method as usize][usize::from(wait.among > 1)];
        histogram.get_or_init(|| Histogram::new(APP)).observe(wait.took);
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        for (method, waits) in Method::ALL.into_iter().zip(&self.gpu_waits) {
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
        let gaps = self.write_gaps.lock().unwrap_or_else(PoisonError::into_inner);
        page.kernel_histogram(Id::AppWriteGap, labels, &gaps);
        let (all, name) = (TimelineResult::ALL, TimelineResult::as_str);
        page.by_value(Id::AppTimelines, labels, all, name, &self.timelines);
    }
}

/// What the kernel says of the network namespace as a whole when it is asked.
#[derive(Debug, Default)]
pub struct NamespaceMetrics {
    /// Connections that a listener had no room for.
    pub overflowed: Counter,
    /// Connections that a listener turned away, for want of room or for another reason.
    pub dropped: Counter,
    /// Rounds in which the kernel gave no answer.
    pub rounds_failed: Counter,
}

impl NamespaceMetrics {
    pub(super) fn write(&self, page: &mut Page) {
        page.counter(Id::AcceptOverflows, &[], self.overflowed.get());
        page.counter(Id::AcceptDrops, &[], self.dropped.get());
        page.counter(Id::ProbeLost, &["rounds"], self.rounds_failed.get());
    }
}

/// What the kernel says of an endpoint when it is asked. What is not known now has no series.
#[derive(Debug, Default)]
pub struct SocketMetrics {
    /// Mean of the smoothed round-trip times, in seconds.
    pub rtt: Level,
    /// The shortest round trip of late, in seconds.
    pub min_rtt: Level,
    /// Segments sent again.
    pub retransmits: Counter,
    /// Bytes that are not acknowledged.
    pub unacked: Level,
    /// Bytes that came to the application and were not read.
    pub unread_bytes: Level,
    /// Connections with such.
    pub unread_connections: Level,
    /// How long at least the oldest of them has lain there, in seconds.
    pub unread_for: Level,
    /// Connections that wait to be accepted.
    pub accept_queue: Level,
    /// How many may.
    pub accept_limit: Level,
    cpu_nanos: Counter,
    runnable_nanos: Counter,
    has_processes: AtomicBool,
}

impl SocketMetrics {
    /// The application's processes are seen, and ran and waited so many more nanoseconds.
    pub fn processes_ran(&self, cpu: u64, runnable: u64) {
        self.cpu_nanos.add(cpu);
        self.runnable_nanos.add(runnable);
        self.has_processes.store(true, Relaxed);
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        let levels = [
            (Id::UpstreamRtt, &self.rtt),
            (Id::UpstreamMinRtt, &self.min_rtt),
            (Id::UpstreamUnacked, &self.unacked),
            (Id::AppUnreadBytes, &self.unread_bytes),
            (Id::AppUnreadConnections, &self.unread_connections),
            (Id::AppUnreadFor, &self.unread_for),
            (Id::AppAcceptQueue, &self.accept_queue),
            (Id::AppAcceptLimit, &self.accept_limit),
        ];
        for (id, level) in levels {
            if let Some(value) = level.get() {
                page.level(id, labels, value);
            }
        }
        page.counter(Id::UpstreamRetransmits, labels, self.retransmits.get());
        if self.has_processes.load(Relaxed) {
            page.seconds(Id::AppCpu, labels, self.cpu_nanos.get());
            page.seconds(Id::AppRunnable, labels, self.runnable_nanos.get());
        }
    }
}

/// What the kernel sees of calls into the GPU's driver, when it was looked at last.
#[derive(Debug, Default)]
pub struct DriverMetrics {
    calls: Mutex<BTreeMap<[String; 2], outrigger_probes::Histogram>>,
    in_flight: Gauge,
    oldest: Level,
    stuck: Gauge,
    xids: Mutex<BTreeMap<u32, u64>>,
    lost: [AtomicU64; DriverLoss::ALL.len()],
}

impl DriverMetrics {
    /// How long calls took since the probe runs, by device and command.
    pub fn calls(&self, calls: BTreeMap<[String; 2], outrigger_probes::Histogram>) {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner) = calls;
    }

    /// So many calls are under way, the oldest for so long, and so many are stuck.
    pub fn standing(&self, in_flight: usize, oldest: Duration, stuck: usize) {
        let count = |calls| i64::try_from(calls).unwrap_or(i64::MAX);
        self.in_flight.set(count(in_flight));
        self.oldest.set(oldest.as_secs_f64());
        self.stuck.set(count(stuck));
    }

    /// NVIDIA's driver has reported an error of this number.
    pub fn xid(&self, number: u32) {
        let mut xids = self.xids.lock().unwrap_or_else(PoisonError::into_inner);
        *xids.entry(number).or_default() += 1;
    }

    /// There was no room for so much, in the order of [`DriverLoss::ALL`].
    pub fn lost(&self, lost: [u64; DriverLoss::ALL.len()]) {
        for (place, lost) in self.lost.iter().zip(lost) {
            place.store(lost, Relaxed);
        }
    }

    pub(super) fn write(&self, page: &mut Page) {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        for ([device, command], histogram) in calls.iter() {
            page.kernel_histogram(Id::DriverCalls, &[device, command], histogram);
        }
        // Few: the kernel's own log can be trusted with numbers.
        for (number, count) in self.xids.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            page.counter(Id::Xid, &[&number.to_string()], *count);
        }
        page.gauge(Id::DriverInFlight, &[], &self.in_flight);
        page.level(Id::DriverOldest, &[], self.oldest.get().unwrap_or_default());
        page.gauge(Id::DriverStuck, &[], &self.stuck);
        for (what, lost) in DriverLoss::ALL.iter().zip(&self.lost) {
            page.counter(Id::ProbeLost, &[loss(*what)], lost.load(Relaxed));
        }
    }
}

/// What the kernel sees of waits for fences and of jobs in the DRM scheduler, when it was looked at last. A part that does not
/// run has no series.
#[derive(Debug, Default)]
pub struct FenceMetrics {
    waits: Mutex<Option<outrigger_probes::Histogram>>,
    jobs: Mutex<BTreeMap<String, [outrigger_probes::Histogram; 2]>>,
    lost_waits: [AtomicU64; FenceLoss::ALL.len()],
    lost_jobs: AtomicU64,
}

impl FenceMetrics {
    /// How long waits took since the probe runs, and what there was no room for, in the order of [`FenceLoss::ALL`].
    pub fn waits(&self, times: outrigger_probes::Histogram, lost: [u64; FenceLoss::ALL.len()]) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(times);
        for (place, lost) in self.lost_waits.iter().zip(lost) {
            place.store(lost, Relaxed);
        }
    }

    /// How long jobs were queued and ran since the probe runs, by ring, and how many are not among them.
    pub fn jobs(&self, times: BTreeMap<String, [outrigger_probes::Histogram; 2]>, lost: u64) {
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = times;
        self.lost_jobs.store(lost, Relaxed);
    }

    pub(super) fn write(&self, page: &mut Page) {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waits) = &*waits {
            page.kernel_histogram(Id::FenceWait, &[], waits);
        }
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for (ring, [queued, run]) in jobs.iter() {
            page.kernel_histogram(Id::JobQueued, &[ring], queued);
            page.kernel_histogram(Id::JobRun, &[ring], run);
        }
        let names = FenceLoss::ALL.map(fence_loss);
        for (name, lost) in names.iter().zip(&self.lost_waits) {
            page.counter(Id::ProbeLost, &[name], lost.load(Relaxed));
        }
        page.counter(Id::ProbeLost, &["jobs"], self.lost_jobs.load(Relaxed));
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

fn loss(what: DriverLoss) -> &'static str {
    match what {
        DriverLoss::Counts => "driver_counts",
        DriverLoss::Flights => "driver_flights",
        DriverLoss::Calls => "driver_calls",
    }
}

fn fence_loss(what: FenceLoss) -> &'static str {
    match what {
        FenceLoss::Flights => "fence_flights",
        FenceLoss::Calls => "fence_calls",
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
