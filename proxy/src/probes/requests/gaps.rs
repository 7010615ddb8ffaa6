//! How far apart the application's writes are: the pace of a stream before anything between it and its client had a say.
//!
//! The kernel counts them by endpoint, for there may be thousands in one answer. Here endpoints have the numbers that it
//! knows them by, and what it has counted is fetched once a second.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{MapData, PerCpuHashMap};
use outrigger_probes::Histogram;
use parking_lot::Mutex;

use crate::telemetry::metrics::AppMetrics;

/// Between two readings.
const REST: Duration = Duration::from_secs(1);

/// Entries that are read of a map that changes meanwhile: twice what it can hold.
const ENTRIES_MOST: usize = 2048;

/// The endpoints that have a number, in the order of their numbers. Those that share a series share a number, so that there
/// are no more of them than of series.
#[derive(Default)]
pub(super) struct Numbers(Mutex<Vec<Arc<AppMetrics>>>);

impl Numbers {
    /// The number of the endpoint that has these metrics.
    pub(super) fn of(&self, metrics: &Arc<AppMetrics>) -> u64 {
        let mut known = self.0.lock();
        let number = known.iter().position(|other| Arc::ptr_eq(other, metrics));
        let number = number.unwrap_or_else(|| {
            known.push(Arc::clone(metrics));
            known.len() - 1
        });
        number as u64
    }

    fn metrics(&self, number: u64) -> Option<Arc<AppMetrics>> {
        self.0.lock().get(usize::try_from(number).ok()?).cloned()
    }
}

/// The words of a [`Histogram`].
pub(super) type Words = [u64; Histogram::WORDS];

/// The user's end of what is counted.
pub(super) struct Gaps {
    counts: PerCpuHashMap<MapData, u64, Words>,
    numbers: Arc<Numbers>,
    read: Instant,
}

impl Gaps {
    pub(super) fn new(counts: PerCpuHashMap<MapData, u64, Words>, numbers: Arc<Numbers>) -> Self {
        Gaps { counts, numbers, read: Instant::now() }
    }

    /// Tells metrics what was counted, if that is due.
    pub(super) fn look(&mut self) {
        if self.read.elapsed() < REST {
            return;
        }
        self.read = Instant::now();
        for (number, processors) in self.counts.iter().take(ENTRIES_MOST).filter_map(Result::ok) {
            let mut sum = Histogram::default();
            processors.iter().for_each(|words| sum.merge(&Histogram::from_words(words)));
            if let Some(metrics) = self.numbers.metrics(number) {
                metrics.write_gaps(sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_shares_a_series_shares_a_number() {
        let numbers = Numbers::default();
        let [one, other] = std::array::from_fn(|_| Arc::new(AppMetrics::default()));
        assert_eq!((numbers.of(&one), numbers.of(&other), numbers.of(&one)), (0, 1, 0));
        assert!(numbers.metrics(1).is_some_and(|found| Arc::ptr_eq(&found, &other)));
        assert!(numbers.metrics(2).is_none());
    }
}
