//! Every metric of the proxy, declared once.
//!
//! Why: names, help and labels are an interface that dashboards are built on, so they stand
//! together in one table; and the hot path must not look anything up, so whoever handles requests
//! holds a handle ([`ArmMetrics`], [`EndpointMetrics`], …) whose fields are plain atomics.
//!
//! What it decides: a series exists as long as its handle is in the map here, and is written out by
//! walking the maps at a scrape. Forgetting an endpoint therefore removes all its series at once,
//! and a request that still holds the old handle can do no harm. Each map holds at most
//! [`MAX_HANDLES`] label sets; whatever comes after shares one handle whose labels all say `other`.
//!
//! What it leaves out: the text formats (`exposition`) and metrics of other modules, which can add
//! collectors to [`Metrics::registry`].

mod admission;
mod answers;
mod labels;
mod outcomes;
mod page;
mod probes;
mod table;
#[cfg(test)]
mod tests;
mod traces;
mod traffic;
mod upstream;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_config::validated::{RateKey, RetryReason};
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::instruments::{Bounds, Counter, Gauge, Histogram, Level, LocalHistogram};
use crate::outcome::Outcome;
use crate::outlier::Reason as EjectionReason;

pub use admission::*;
pub use answers::*;
pub use labels::*;
pub use probes::*;
pub use traces::*;
pub use traffic::*;
pub use upstream::*;

use outcomes::*;
use page::*;
use table::*;

/// Label sets per map before `other` takes over.
pub const MAX_HANDLES: usize = 1000;

/// The label value that stands for everything beyond [`MAX_HANDLES`].
pub const OTHER: &str = "other";

/// The label value for "none": the arm of a request that matched no route, say.
pub const NONE: &str = "-";

/// The metrics of one proxy. Clones are the same metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    inner: Arc<Inner>,
}

struct Inner {
    version: String,
    process: ProcessMetrics,
    routes: Handles<1, RouteMetrics>,
    gates: Handles<2, GateMetrics>,
    rates: Handles<2, RateMetrics>,
    arms: Handles<2, ArmMetrics>,
    deadlines: Handles<2, DeadlineMetrics>,
    levels: Handles<1, LevelMetrics>,
    endpoints: Handles<2, EndpointMetrics>,
    backends: Handles<1, BackendMetrics>,
    listeners: Handles<1, ListenerMetrics>,
    mirrors: Handles<2, MirrorMetrics>,
    canaries: Handles<2, CanaryMetrics>,
    batches: Handles<1, BatchMetrics>,
    redis: Handles<0, RedisMetrics>,
    answers: Handles<1, AnswerMetrics>,
    store: Arc<StoreMetrics>,
    probes: [Gauge; ProbeName::ALL.len()],
    follow: Arc<FollowMetrics>,
    driver: Arc<DriverMetrics>,
    fences: Arc<FenceMetrics>,
    apps: Handles<2, AppMetrics>,
    namespace: Arc<NamespaceMetrics>,
    sockets: Handles<2, SocketMetrics>,
    gpu: Handles<0, GpuMetrics>,
    traces: Handles<0, TraceMetrics>,
}

impl Metrics {
    /// A new set in a registry of its own; nothing is global, so two proxies can live in a test.
    #[must_use]
    pub fn new(version: &str) -> Self {
        let inner = Arc::new(Inner {
            version: version.to_owned(),
            process: ProcessMetrics::default(),
            routes: Handles::default(),
            gates: Handles::default(),
            rates: Handles::default(),
            arms: Handles::default(),
            deadlines: Handles::default(),
            levels: Handles::default(),
            endpoints: Handles::default(),
            backends: Handles::default(),
            listeners: Handles::default(),
            mirrors: Handles::default(),
            canaries: Handles::default(),
            batches: Handles::default(),
            redis: Handles::default(),
            answers: Handles::default(),
            store: Arc::default(),
            probes: Default::default(),
            follow: Arc::default(),
            driver: Arc::default(),
            fences: Arc::default(),
            apps: Handles::default(),
            namespace: Arc::default(),
            sockets: Handles::default(),
            gpu: Handles::default(),
            traces: Handles::default(),
        });
        let registry = Registry::new();
        let descriptions = TABLE.iter().map(Declaration::describe).collect();
        let collector = Walker { inner: Arc::clone(&inner), descriptions };
        registry
            .register(Box::new(collector))
            .expect("an empty registry takes a table without repeated names, which a test checks");
        Self { registry, inner }
    }

    /// Where other modules add their collectors.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything, sorted by name and labels, for `exposition`.
    #[must_use]
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// What concerns the process as a whole.
    #[must_use]
    pub fn process(&self) -> &ProcessMetrics {
        &self.inner.process
    }

    /// The handle of a route; [`NONE`] for requests that matched none.
    #[must_use]
    pub fn route(&self, route: &str) -> Arc<RouteMetrics> {
        self.inner.routes.get([route], |_| RouteMetrics::default())
    }

    /// The handle of what stands in front of a route or a backend.
    #[must_use]
    pub fn gate(&self, scope: Scope, name: &str) -> Arc<GateMetrics> {
        self.inner.gates.get([scope.as_str(), name], |_| GateMetrics::default())
    }

    /// Removes the series of what stands there no longer.
    pub fn forget_gate(&self, scope: Scope, name: &str) {
        self.inner.gates.forget([scope.as_str(), name]);
    }

    /// The handle of a route's rules of one kind.
    #[must_use]
    pub fn rates(&self, route: &str, per: RateKey) -> Arc<RateMetrics> {
        self.inner.rates.get([route, per.name()], |_| RateMetrics::default())
    }

    /// The handle of an arm of a route; [`NONE`] where a request had none.
    #[must_use]
    pub fn arm(&self, route: &str, arm: &str) -> Arc<ArmMetrics> {
        self.inner.arms.get([route, arm], |[route, _]| ArmMetrics::new(self.route(route)))
    }

    /// The handle of the deadlines that an arm of a route learns.
    #[must_use]
    pub fn deadlines(&self, route: &str, arm: &str) -> Arc<DeadlineMetrics> {
        self.inner.deadlines.get([route, arm], |_| DeadlineMetrics::default())
    }

    /// The handle of the load levels of a route.
    #[must_use]
    pub fn levels(&self, route: &str) -> Arc<LevelMetrics> {
        self.inner.levels.get([route], |_| LevelMetrics::default())
    }

    /// Removes the series of a route that has no load levels any more.
    pub fn forget_levels(&self, route: &str) {
        self.inner.levels.forget([route]);
    }

    /// The handle of an endpoint.
    #[must_use]
    pub fn endpoint(&self, backend: &str, endpoint: &str) -> Arc<EndpointMetrics> {
        self.inner.endpoints.get([backend, endpoint], |_| EndpointMetrics::default())
    }

    /// Removes all series of an endpoint that is gone for good. Whoever still holds its handle may
    /// use it without effect.
    pub fn forget_endpoint(&self, backend: &str, endpoint: &str) {
        self.inner.endpoints.forget([backend, endpoint]);
        self.inner.apps.forget([backend, endpoint]);
        self.inner.sockets.forget([backend, endpoint]);
    }

    /// The handle of a backend.
    #[must_use]
    pub fn backend(&self, backend: &str) -> Arc<BackendMetrics> {
        self.inner.backends.get([backend], |_| BackendMetrics::default())
    }

    /// The handle of the mirror of a route, by the name of the backend that gets the copies.
    #[must_use]
    pub fn mirror(&self, route: &str, mirror: &str) -> Arc<MirrorMetrics> {
        self.inner.mirrors.get([route, mirror], |_| MirrorMetrics::default())
    }

    /// The handle of the guarded arm of a route.
    #[must_use]
    pub fn canary(&self, route: &str, arm: &str) -> Arc<CanaryMetrics> {
        self.inner.canaries.get([route, arm], |_| CanaryMetrics::default())
    }

    /// Removes the series of an arm that is not guarded any more.
    pub fn forget_canary(&self, route: &str, arm: &str) {
        self.inner.canaries.forget([route, arm]);
    }

    /// The handle of the micro-batching of a route.
    #[must_use]
    pub fn batches(&self, route: &str) -> Arc<BatchMetrics> {
        self.inner.batches.get([route], |_| BatchMetrics::default())
    }

    /// The handle of the stored answers of a route.
    #[must_use]
    pub fn answers(&self, route: &str) -> Arc<AnswerMetrics> {
        self.inner.answers.get([route], |_| AnswerMetrics::default())
    }

    /// What concerns all stored answers.
    #[must_use]
    pub fn store(&self) -> Arc<StoreMetrics> {
        Arc::clone(&self.inner.store)
    }

    /// The handle of the Redis of stored answers.
    #[must_use]
    pub fn redis(&self) -> Arc<RedisMetrics> {
        self.inner.redis.get([], |_| RedisMetrics::default())
    }

    /// Removes its series: there is none any more.
    pub fn forget_redis(&self) {
        self.inner.redis.forget([]);
    }

    /// 1 while the probe runs.
    #[must_use]
    pub fn probe(&self, probe: ProbeName) -> &Gauge {
        &self.inner.probes[probe as usize]
    }

    /// What concerns the probe that follows requests.
    #[must_use]
    pub fn follow(&self) -> Arc<FollowMetrics> {
        Arc::clone(&self.inner.follow)
    }

    /// What the kernel sees of calls into the GPU's driver.
    #[must_use]
    pub fn driver(&self) -> Arc<DriverMetrics> {
        Arc::clone(&self.inner.driver)
    }

    /// What the kernel sees of waits for fences and jobs of the DRM scheduler.
    #[must_use]
    pub fn fences(&self) -> Arc<FenceMetrics> {
        Arc::clone(&self.inner.fences)
    }

    /// The handle of what is seen of the GPU's library.
    #[must_use]
    pub fn gpu(&self) -> Arc<GpuMetrics> {
        self.inner.gpu.get([], |_| GpuMetrics::default())
    }

    /// The handle of traces.
    #[must_use]
    pub fn traces(&self) -> Arc<TraceMetrics> {
        self.inner.traces.get([], |_| TraceMetrics::default())
    }

    /// The handle of what the kernel sees of an endpoint.
    #[must_use]
    pub fn app(&self, backend: &str, endpoint: &str) -> Arc<AppMetrics> {
        self.inner.apps.get([backend, endpoint], |_| AppMetrics::default())
    }

    /// What the probe that asks says of the network namespace.
    #[must_use]
    pub fn namespace(&self) -> Arc<NamespaceMetrics> {
        Arc::clone(&self.inner.namespace)
    }

    /// The handle of what the kernel says of an endpoint when it is asked.
    #[must_use]
    pub fn sockets(&self, backend: &str, endpoint: &str) -> Arc<SocketMetrics> {
        self.inner.sockets.get([backend, endpoint], |_| SocketMetrics::default())
    }

    /// The handle of a listener, by its address as configured.
    #[must_use]
    pub fn listener(&self, listener: &str) -> Arc<ListenerMetrics> {
        self.inner.listeners.get([listener], |_| ListenerMetrics::default())
    }
}

/// Writes all handles out when the registry asks.
struct Walker {
    inner: Arc<Inner>,
    descriptions: Vec<Desc>,
}

impl Collector for Walker {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut page = Page(TABLE.iter().map(Declaration::family).collect());
        page.constant(Id::BuildInfo, &[&self.inner.version]);
        self.inner.process.write(&mut page);
        self.inner.routes.for_each(|route, labels| route.write(labels, &mut page));
        self.inner.gates.for_each(|gate, labels| gate.write(labels, &mut page));
        self.inner.rates.for_each(|rates, labels| rates.write(labels, &mut page));
        self.inner.arms.for_each(|arm, labels| arm.write(labels, &mut page));
        self.inner.deadlines.for_each(|deadlines, labels| deadlines.write(labels, &mut page));
        self.inner.levels.for_each(|levels, labels| levels.write(labels, &mut page));
        self.inner.endpoints.for_each(|endpoint, labels| endpoint.write(labels, &mut page));
        self.inner.backends.for_each(|backend, labels| backend.write(labels, &mut page));
        self.inner.listeners.for_each(|listener, labels| listener.write(labels, &mut page));
        self.inner.mirrors.for_each(|mirror, labels| mirror.write(labels, &mut page));
        self.inner.canaries.for_each(|canary, labels| canary.write(labels, &mut page));
        self.inner.batches.for_each(|batches, labels| batches.write(labels, &mut page));
        self.inner.redis.for_each(|redis, _| redis.write(&mut page));
        self.inner.answers.for_each(|answers, labels| answers.write(labels, &mut page));
        for (probe, running) in ProbeName::ALL.iter().zip(&self.inner.probes) {
            page.gauge(Id::ProbeRunning, &[probe.as_str()], running);
        }
        if self.inner.probes[ProbeName::Requests as usize].get() > 0 {
            self.inner.follow.write(&mut page);
        }
        if self.inner.probes[ProbeName::Driver as usize].get() > 0 {
            self.inner.driver.write(&mut page);
        }
        if self.inner.probes[ProbeName::Fences as usize].get() > 0 {
            self.inner.fences.write(&mut page);
        }
        self.inner.apps.for_each(|app, labels| app.write(labels, &mut page));
        if self.inner.probes[ProbeName::Sockets as usize].get() > 0 {
            self.inner.namespace.write(&mut page);
        }
        self.inner.sockets.for_each(|sockets, labels| sockets.write(labels, &mut page));
        self.inner.gpu.for_each(|gpu, _| gpu.write(&mut page));
        self.inner.traces.for_each(|traces, _| traces.write(&mut page));
        // Nothing is told of a store where no route has one.
        if !self.inner.answers.lock().is_empty() {
            self.inner.store.write(&mut page);
        }
        page.0
    }
}
