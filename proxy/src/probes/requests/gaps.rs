//! How far apart the application's writes are: the pace of a stream before anything between it and its client had a say.
//!
//! The kernel counts them by endpoint, for there may be thousands in one answer. Here endpoints have the numbers that it
//! knows them by, and what it has counted is fetched once a second.

use std::{
    sync::{Arc, Weak},
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

/// The endpoints that have a number, in the order of their numbers; `None` where a number is free. Those that share a series
/// share a number, so that there are no more of them than of series.
#[derive(Default)]
pub(super) struct Numbers(Mutex<Vec<Option<Weak<AppMetrics>>>>);

impl Numbers {
    /// The number of the endpoint that has these metrics.
    pub(super) fn of(&self, metrics: &Arc<AppMetrics>) -> u64 {
        let mut known = self.0.lock();
        let own = Arc::downgrade(metrics);
        let is_own = |other: &Option<Weak<_>>| other.as_ref().is_some_and(|it| it.ptr_eq(&own));
        let number = known.iter().position(is_own);
        let number = number.or_else(|| known.iter().position(Option::is_none));
        let number = number.unwrap_or(known.len());
        match known.get_mut(number) {
            Some(place) => *place = Some(own),
            None => known.push(Some(own)),
        }
        number as u64
    }

    fn metrics(&self, number: u64) -> Option<Arc<AppMetrics>> {
        self.0.lock().get(usize::try_from(number).ok()?)?.as_ref()?.upgrade()
    }

    /// Gives the numbers of endpoints that are gone free; what was counted for one is cleared before another has it.
    fn sweep(&self, mut clear: impl FnMut(u64)) {
        for (number, place) in self.0.lock().iter_mut().enumerate() {
            if place.as_ref().is_some_and(|metrics| metrics.strong_count() == 0) {
                clear(number as u64);
                *place = None;
            }
        }
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
        self.numbers.sweep(|number| {
            // Nothing may ever have been counted.
            let _ = self.counts.remove(&number);
        });
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

    #[test]
    fn a_number_is_free_again_when_what_was_counted_for_it_is_cleared() {
        let numbers = Numbers::default();
        let [gone, stays, new] = std::array::from_fn(|_| Arc::new(AppMetrics::default()));
        assert_eq!((numbers.of(&gone), numbers.of(&stays)), (0, 1));
        drop(gone);
        assert_eq!(numbers.of(&new), 2, "not before");
        drop(new);
        let mut cleared = Vec::new();
        numbers.sweep(|number| cleared.push(number));
        numbers.sweep(|number| cleared.push(number));
        assert_eq!(cleared, [0, 2]);
        let next = Arc::new(AppMetrics::default());
        assert_eq!((numbers.of(&next), numbers.of(&stays)), (0, 1));
        assert!(numbers.metrics(2).is_none());
    }
}
