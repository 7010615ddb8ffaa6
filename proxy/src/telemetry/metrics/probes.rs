//! What the kernel sees of the applications behind endpoints.

use super::*;
use outrigger_probes::DriverLoss;

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

fn loss(what: DriverLoss) -> &'static str {
    match what {
        DriverLoss::Counts => "driver_counts",
        DriverLoss::Flights => "driver_flights",
        DriverLoss::Calls => "driver_calls",
    }
}
