//! An endpoint and what is known about it right now.
//!
//! Lives outside the configuration and is keyed by backend and address, so that a reload loses no counter and an
//! endpoint that comes back within [`Registry::KEPT_FOR`] finds its history.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    balance::Cost,
    outlier::{self, Outlier, Transition},
    telemetry::metrics::{EjectionReason, EndpointMetrics, Metrics},
    upstream::pool::Pool,
};

/// One address that serves, with its live state.
pub struct Endpoint {
    /// The backend it belongs to.
    pub backend: Arc<str>,
    /// Where it is.
    pub address: SocketAddr,
    /// Its address as text: the value of labels and log fields.
    pub name: String,
    /// Connections that rest between requests.
    pub pool: Pool,
    /// Its series.
    pub metrics: Arc<EndpointMetrics>,
    weight: AtomicU32,
    in_flight: AtomicU32,
    load: AtomicU64,
    ready: AtomicBool,
    /// Passive health, once a backend wants it.
    outlier: OnceLock<Arc<Outlier>>,
}

impl Endpoint {
    fn new(backend: &str, address: SocketAddr, metrics: &Metrics) -> Self {
        let name = address.to_string();
        Endpoint {
            backend: backend.into(),
            address,
            pool: Pool::new(),
            metrics: metrics.endpoint(backend, &name),
            name,
            weight: AtomicU32::new(1),
            in_flight: AtomicU32::new(0),
            load: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            outlier: OnceLock::new(),
        }
    }

    /// Its passive health, from now on under these settings.
    pub(crate) fn outlier(&self, settings: outlier::Settings) -> Arc<Outlier> {
        let outlier = self.outlier.get_or_init(|| Outlier::new(settings, Instant::now()));
        outlier.configure(settings);
        Arc::clone(outlier)
    }

    /// Its share among the endpoints of the backend.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Relaxed);
    }

    /// Whether its active check, if it has one, says that it can serve.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Relaxed);
        self.metrics.ready.set(ready.into());
    }

    /// Attempts from the choice of this endpoint until their last byte or their abort.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// The work in flight, in the units of [`Cost`].
    pub fn load(&self) -> u64 {
        self.load.load(Relaxed)
    }

    /// Says in log and metrics what a verdict changed.
    pub(crate) fn announce(&self, transition: Option<Transition>) {
        let Some(transition) = transition else { return };
        let (backend, endpoint) = (&self.backend, &self.name);
        match transition {
            Transition::Ejected { until, reason } => {
                self.metrics.ejection(EjectionReason::Failures);
                self.metrics.ejected.set(1);
                let span = until.saturating_duration_since(Instant::now());
                let reason = reason.as_str();
                tracing::warn!(%backend, endpoint, reason, ?span, "endpoint ejected");
            }
            Transition::Restored => {
                self.metrics.ejected.set(0);
                tracing::info!(%backend, endpoint, "endpoint restored");
            }
            Transition::KeptAsLast { reason } => {
                let reason = reason.as_str();
                tracing::warn!(%backend, endpoint, reason, "endpoint fails but is the last one");
            }
        }
    }

    /// Counts an attempt in, unless `max` of them are in flight already.
    pub(crate) fn admit(self: &Arc<Self>, cost: Cost, max: Option<usize>) -> Option<InFlight> {
        let before = self.in_flight.fetch_add(1, Relaxed);
        if max.is_some_and(|max| before as usize >= max) {
            self.in_flight.fetch_sub(1, Relaxed);
            return None;
        }
        self.load.fetch_add(cost.total(), Relaxed);
        self.metrics.in_flight.inc();
        Some(InFlight { endpoint: Arc::clone(self), held: cost.total(), prefill: cost.prefill })
    }
}

/// One attempt's place at an endpoint; dropping it gives the place back, whatever path led there.
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    held: u64,
    prefill: u64,
}

impl InFlight {
    /// The first byte is there: the prompt has been worked off.
    pub fn release_prefill(&mut self) {
        let prefill = std::mem::take(&mut self.prefill);
        self.held -= prefill;
        self.endpoint.load.fetch_sub(prefill, Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.load.fetch_sub(self.held, Relaxed);
        self.endpoint.in_flight.fetch_sub(1, Relaxed);
        self.endpoint.metrics.in_flight.dec();
    }
}

/// Every endpoint there is or lately was.
pub struct Registry {
    metrics: Metrics,
    endpoints: Mutex<HashMap<(String, SocketAddr), Entry>>,
}

struct Entry {
    endpoint: Arc<Endpoint>,
    left: Option<Instant>,
}

impl Registry {
    /// How long the state of an endpoint that left is kept for its return.
    pub const KEPT_FOR: Duration = Duration::from_secs(600);

    /// A registry without endpoints.
    pub fn new(metrics: Metrics) -> Self {
        Registry { metrics, endpoints: Mutex::default() }
    }

    /// The series that endpoints are counted in.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The endpoint of `backend` at `address`: the one known, or a new one.
    pub fn join(&self, backend: &str, address: SocketAddr) -> (Arc<Endpoint>, Joined) {
        let mut endpoints = self.endpoints.lock();
        let mut joined = Joined::Again;
        let entry = endpoints.entry((backend.to_owned(), address)).or_insert_with(|| {
            joined = Joined::New;
            let endpoint = Arc::new(Endpoint::new(backend, address, &self.metrics));
            Entry { endpoint, left: None }
        });
        entry.left = None;
        entry.endpoint.pool.open();
        (Arc::clone(&entry.endpoint), joined)
    }

    /// The endpoint gets no new requests; those in flight go on. Its resting connections are closed.
    pub fn leave(&self, endpoint: &Endpoint, now: Instant) {
        endpoint.pool.close();
        let mut endpoints = self.endpoints.lock();
        if let Some(entry) = endpoints.get_mut(&(endpoint.backend.to_string(), endpoint.address)) {
            entry.left = Some(now);
        }
        endpoints.retain(|_, entry| {
            let gone = entry.left.is_some_and(|left| now.duration_since(left) > Self::KEPT_FOR);
            if gone {
                self.metrics.forget_endpoint(&entry.endpoint.backend, &entry.endpoint.name);
            }
            !gone
        });
    }

    /// Drops resting connections that have been idle for longer than their backend allows.
    pub fn sweep(&self, now: Instant) {
        let all: Vec<_> =
            self.endpoints.lock().values().map(|entry| Arc::clone(&entry.endpoint)).collect();
        for endpoint in all {
            endpoint.pool.sweep(now);
        }
    }
}

/// Whether an endpoint was known before it joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It is new.
    New,
    /// It was here before, and its state with it.
    Again,
}
