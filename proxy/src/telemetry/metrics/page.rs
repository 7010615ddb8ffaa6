//! Handles by their labels, and the page that a scrape gets of them.

use super::*;

/// Handles by their label values. The lock is taken when configuration changes and at a scrape.
pub(super) struct Handles<const N: usize, T>(Mutex<BTreeMap<[String; N], Arc<T>>>);

impl<const N: usize, T> Default for Handles<N, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<const N: usize, T> Handles<N, T> {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<[String; N], Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle for these values, or the one for `other`. This is the only cap on label values.
    pub(super) fn get(&self, labels: [&str; N], make: impl FnOnce([&str; N]) -> T) -> Arc<T> {
        let mut map = self.lock();
        let key = labels.map(str::to_owned);
        if let Some(handle) = map.get(&key) {
            return Arc::clone(handle);
        }
        let labels = if map.len() < MAX_HANDLES { labels } else { [OTHER; N] };
        let handle = map.entry(labels.map(str::to_owned)).or_insert_with(|| Arc::new(make(labels)));
        Arc::clone(handle)
    }

    pub(super) fn forget(&self, labels: [&str; N]) {
        self.lock().remove(&labels.map(str::to_owned));
    }

    pub(super) fn for_each(&self, mut write: impl FnMut(&T, &[&str])) {
        for (labels, handle) in self.lock().iter() {
            write(handle, &labels.each_ref().map(String::as_str));
        }
    }
}

/// The families being written, by `Id`.
pub(super) struct Page(pub(super) Vec<MetricFamily>);

impl Page {
    pub(super) fn counter(&mut self, id: Id, labels: &[&str], value: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(as_float(value));
        self.add(id, labels, |metric| metric.set_counter(counter));
    }

    /// A counter of seconds, kept in nanoseconds.
    pub(super) fn seconds(&mut self, id: Id, labels: &[&str], nanos: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(as_float(nanos) / 1e9);
        self.add(id, labels, |metric| metric.set_counter(counter));
    }

    pub(super) fn gauge(&mut self, id: Id, labels: &[&str], gauge: &Gauge) {
        let mut value = proto::Gauge::default();
        value.set_value(signed_as_float(gauge.get()));
        self.add(id, labels, |metric| metric.set_gauge(value));
    }

    pub(super) fn level(&mut self, id: Id, labels: &[&str], level: f64) {
        let mut value = proto::Gauge::default();
        value.set_value(level);
        self.add(id, labels, |metric| metric.set_gauge(value));
    }

    /// A gauge that is always 1 and only there for its labels.
    pub(super) fn constant(&mut self, id: Id, labels: &[&str]) {
        let one = Gauge::default();
        one.set(1);
        self.gauge(id, labels, &one);
    }

    pub(super) fn histogram(&mut self, id: Id, labels: &[&str], histogram: &Histogram) {
        let view = histogram.view();
        let bucket = |(bound, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        let mut out = proto::Histogram::default();
        out.set_bucket(view.cumulative.into_iter().map(bucket).collect());
        out.set_sample_count(view.count);
        out.set_sample_sum(view.sum);
        self.add(id, labels, |metric| metric.set_histogram(out));
    }

    /// One that was counted in the kernel: every second of its buckets, from 1 us on.
    pub(super) fn kernel_histogram(
        &mut self,
        id: Id,
        labels: &[&str],
        histogram: &outrigger_probes::Histogram,
    ) {
        let buckets = histogram.cumulative().skip(2).step_by(2).map(|(nanos, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(as_float(nanos) / 1e9);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut out = proto::Histogram::default();
        out.set_bucket(buckets.collect());
        out.set_sample_count(histogram.count);
        out.set_sample_sum(as_float(histogram.sum) / 1e9);
        self.add(id, labels, |metric| metric.set_histogram(out));
    }

    /// One counter per value of a closed list, which becomes the last label.
    pub(super) fn by_value<T: Copy>(
        &mut self,
        id: Id,
        labels: &[&str],
        values: &[T],
        name: impl Fn(T) -> &'static str,
        counters: &[Counter],
    ) {
        for (value, counter) in values.iter().zip(counters) {
            self.counter(id, &[labels, &[name(*value)]].concat(), counter.get());
        }
    }

    pub(super) fn add(&mut self, id: Id, values: &[&str], fill: impl FnOnce(&mut Metric)) {
        let names = TABLE[id as usize].labels;
        debug_assert_eq!(names.len(), values.len(), "{}", TABLE[id as usize].name);
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        let mut metric = Metric::from_label(names.iter().zip(values).map(pair).collect());
        fill(&mut metric);
        self.0[id as usize].mut_metric().push(metric);
    }
}

/// Exact up to 2^53; beyond that a rate is exact enough.
#[expect(clippy::cast_precision_loss, reason = "samples are floats by definition")]
pub(super) fn as_float(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "samples are floats by definition")]
pub(super) fn signed_as_float(value: i64) -> f64 {
    value as f64
}
