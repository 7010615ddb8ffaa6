//! What clients see: the process, its listeners, routes and arms, and what is done with whole requests.

use super::*;

/// What concerns the process as a whole.
#[derive(Debug, Default)]
pub struct ProcessMetrics {
    reloads: [Counter; Verdict::ALL.len()],
    reload_success: Gauge,
    reload_timestamp: Gauge,
    /// 1 while draining.
    pub draining: Gauge,
    /// Lost lines of the access log; shared with its writer.
    pub access_log_dropped: Arc<Counter>,
}

impl ProcessMetrics {
    /// The configuration the proxy starts with was loaded.
    pub fn config_loaded(&self, at: SystemTime) {
        self.set_config(Verdict::Success, at);
    }

    /// A reload was tried.
    pub fn config_reloaded(&self, verdict: Verdict, at: SystemTime) {
        self.reloads[verdict as usize].inc();
        self.set_config(verdict, at);
    }

    pub(super) fn set_config(&self, verdict: Verdict, at: SystemTime) {
        self.reload_success.set(i64::from(verdict == Verdict::Success));
        let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.reload_timestamp.set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    }

    pub(super) fn write(&self, page: &mut Page) {
        page.by_value(Id::ConfigReloads, &[], Verdict::ALL, Verdict::as_str, &self.reloads);
        page.gauge(Id::ConfigSuccess, &[], &self.reload_success);
        page.gauge(Id::ConfigTimestamp, &[], &self.reload_timestamp);
        page.gauge(Id::Draining, &[], &self.draining);
        page.counter(Id::AccessLogDropped, &[], self.access_log_dropped.get());
    }
}

/// What is counted per route.
#[derive(Debug, Default)]
pub struct RouteMetrics {
    /// Requests that have begun and not ended.
    pub in_flight: Gauge,
    /// Requests sent to an endpoint that has not begun to answer.
    pub awaiting_first_byte: Gauge,
    /// Bytes of response bodies before they were compressed here.
    pub compressed_in: Counter,
    /// Bytes of the same bodies after.
    pub compressed_out: Counter,
    retries: [Counter; RetryReason::ALL.len()],
    retries_denied: [Counter; RetryDenied::ALL.len()],
    hedges: [Counter; HedgeResult::ALL.len()],
    hedges_denied: [Counter; HedgeDenied::ALL.len()],
    budgets: [Counter; ClientBudget::ALL.len()],
}

impl RouteMetrics {
    /// Another attempt was made.
    pub fn retried(&self, reason: RetryReason) {
        self.retries[reason as usize].inc();
    }

    /// Another attempt was allowed by the policy but not made.
    pub fn retry_denied(&self, reason: RetryDenied) {
        self.retries_denied[reason as usize].inc();
    }

    /// A hedge ended so.
    pub fn hedged(&self, result: HedgeResult) {
        self.hedges[result as usize].inc();
    }

    /// A hedge was due but not made.
    pub fn hedge_denied(&self, reason: HedgeDenied) {
        self.hedges_denied[reason as usize].inc();
    }

    /// A client said how long it waits.
    pub fn budget(&self, result: ClientBudget) {
        self.budgets[result as usize].inc();
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::InFlight, labels, &self.in_flight);
        page.gauge(Id::AwaitingFirstByte, labels, &self.awaiting_first_byte);
        if self.compressed_in.get() > 0 {
            page.counter(Id::CompressedIn, labels, self.compressed_in.get());
            page.counter(Id::CompressedOut, labels, self.compressed_out.get());
        }
        page.by_value(Id::Retries, labels, &RetryReason::ALL, RetryReason::name, &self.retries);
        let denied = &self.retries_denied;
        page.by_value(Id::RetriesDenied, labels, RetryDenied::ALL, RetryDenied::as_str, denied);
        let (hedges, denied) = (&self.hedges, &self.hedges_denied);
        // Nothing is due where nothing is configured: no series that never move.
        if hedges.iter().chain(denied).any(|count| count.get() > 0) {
            page.by_value(Id::Hedges, labels, HedgeResult::ALL, HedgeResult::as_str, hedges);
            page.by_value(Id::HedgesDenied, labels, HedgeDenied::ALL, HedgeDenied::as_str, denied);
        }
        if self.budgets.iter().any(|count| count.get() > 0) {
            let (all, name) = (ClientBudget::ALL, ClientBudget::as_str);
            page.by_value(Id::ClientBudgets, labels, all, name, &self.budgets);
        }
    }
}

/// What is counted per arm of a route.
#[derive(Debug)]
pub struct ArmMetrics {
    /// The route that the arm belongs to.
    pub route: Arc<RouteMetrics>,
    /// From the request head to the last byte of the answer.
    pub duration: Histogram,
    /// From the request head to the first byte of the answer.
    pub first_byte: Histogram,
    chunk_gap: Arc<Histogram>,
    /// Bytes of request bodies.
    pub request_bytes: Counter,
    /// Bytes of response bodies.
    pub response_bytes: Counter,
    /// Prompt tokens. To be added once, at the end of a request: only then are they known.
    pub tokens_in: Counter,
    /// Answer tokens, likewise.
    pub tokens_out: Counter,
    requests: OutcomeTable,
}

impl ArmMetrics {
    pub(super) fn new(route: Arc<RouteMetrics>) -> Self {
        Self {
            route,
            duration: Histogram::new(DURATION),
            first_byte: Histogram::new(FIRST_BYTE),
            chunk_gap: Arc::new(Histogram::new(CHUNK_GAP)),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
            tokens_in: Counter::default(),
            tokens_out: Counter::default(),
            requests: OutcomeTable::default(),
        }
    }

    /// A request ended so; `code` is the status the client got, or would have got.
    pub fn ended(&self, outcome: Outcome, code: u16) {
        self.requests.inc(outcome, code);
    }

    /// Where one request counts the gaps between its events; adds them up here by itself.
    #[must_use]
    pub fn gaps(&self) -> LocalHistogram {
        LocalHistogram::new(Arc::clone(&self.chunk_gap))
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        page.histogram(Id::RequestDuration, labels, &self.duration);
        page.histogram(Id::FirstByte, labels, &self.first_byte);
        page.histogram(Id::ChunkGap, labels, &self.chunk_gap);
        page.counter(Id::RequestBytes, labels, self.request_bytes.get());
        page.counter(Id::ResponseBytes, labels, self.response_bytes.get());
        let directions = [("in", &self.tokens_in), ("out", &self.tokens_out)];
        for (direction, tokens) in directions {
            page.counter(Id::Tokens, &[labels, &[direction]].concat(), tokens.get());
        }
        self.requests.for_each(|outcome, code, count| {
            let labels = [labels, &[outcome.as_str(), code]].concat();
            page.counter(Id::Requests, &labels, count);
        });
    }
}

/// What is counted per mirror of a route.
#[derive(Debug)]
pub struct MirrorMetrics {
    results: [Counter; MirrorResult::ALL.len()],
    copies: Histogram,
    originals: Histogram,
}

impl Default for MirrorMetrics {
    fn default() -> Self {
        Self {
            results: Default::default(),
            copies: Histogram::new(FIRST_BYTE),
            originals: Histogram::new(FIRST_BYTE),
        }
    }
}

impl MirrorMetrics {
    /// A copy ended so.
    pub fn ended(&self, result: MirrorResult) {
        self.results[result as usize].inc();
    }

    /// So long the first byte of the original took, if it had one, and that of the copy.
    pub fn compare(&self, original: Option<Duration>, copy: Duration) {
        self.copies.observe(copy);
        if let Some(original) = original {
            self.originals.observe(original);
        }
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        let (all, name) = (MirrorResult::ALL, MirrorResult::as_str);
        page.by_value(Id::Mirrored, labels, all, name, &self.results);
        for (answer, times) in [("copy", &self.copies), ("original", &self.originals)] {
            page.histogram(Id::MirrorFirstByte, &[labels, &[answer]].concat(), times);
        }
    }
}

/// What is counted of the micro-batching of a route.
#[derive(Debug, Default)]
pub struct BatchMetrics {
    /// Calls that served several requests.
    pub batches: Counter,
    requests: [Counter; Batched::ALL.len()],
}

impl BatchMetrics {
    /// So many requests travelled so.
    pub fn counted(&self, how: Batched, requests: u64) {
        self.requests[how as usize].add(requests);
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        page.counter(Id::Batches, labels, self.batches.get());
        let (all, name) = (Batched::ALL, Batched::as_str);
        page.by_value(Id::BatchedRequests, labels, all, name, &self.requests);
    }
}

/// What is told of a guarded arm.
#[derive(Debug, Default)]
pub struct CanaryMetrics {
    /// 1 when it was taken out.
    pub rolled_back: Gauge,
    /// Percent of the traffic that it gets now.
    pub weight: Gauge,
    verdicts: [Counter; CanaryVerdict::ALL.len()],
}

impl CanaryMetrics {
    /// The guard decided.
    pub fn decided(&self, verdict: CanaryVerdict) {
        self.verdicts[verdict as usize].inc();
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::CanaryRolledBack, labels, &self.rolled_back);
        page.gauge(Id::CanaryWeight, labels, &self.weight);
        let (all, name) = (CanaryVerdict::ALL, CanaryVerdict::as_str);
        page.by_value(Id::CanaryVerdicts, labels, all, name, &self.verdicts);
    }
}

/// What is counted per listener.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections open now.
    pub open: Gauge,
    /// Connections closed at once because there were too many.
    pub refused: Counter,
}

impl ListenerMetrics {
    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        page.counter(Id::Connections, labels, self.accepted.get());
        page.gauge(Id::ConnectionsOpen, labels, &self.open);
        page.counter(Id::ConnectionsRefused, labels, self.refused.get());
    }
}
