//! What the kernel knows of requests and of those who work on them, seen by eBPF programs: nothing of the application is
//! changed or parsed. Each family of programs is a module here and a program of `ebpf/src/bin`; `sockets` has none, and asks.
//!
//! What it decides: a probe runs when it was asked for and this kernel lets it. Otherwise it is off, says exactly what
//! stands in its way ([`Obstacle`]), and everything else runs as if it had never been asked for.

mod cuda;
pub mod doctor;
mod driver;
mod fences;
mod kernel;
mod overlap;
mod pressure;
mod recent;
mod requests;
mod sockets;

use std::{net::SocketAddr, sync::Arc};

use outrigger_config::validated as config;

pub use cuda::{Cuda, Process};
pub use driver::Driver;
pub use fences::Fences;
pub use kernel::{Obstacle, Release, monotonic};
pub use overlap::{GpuWait, Method};
pub use requests::{Attendance, Follower, Span, Timeline, Told, Watch};
pub use sockets::Watched;

use crate::telemetry::{
    access_log::AccessLog,
    metrics::{Metrics, ProbeName},
};
use overlap::{Fetch, Waits};
use requests::Requests;
use sockets::Sockets;

/// The probes of one proxy.
#[derive(Default)]
pub struct Probes {
    requests: Option<Requests>,
    sockets: Option<Sockets>,
    driver: Option<Arc<Driver>>,
    cuda: Option<Arc<Cuda>>,
    fences: Option<Arc<Fences>>,
    /// What is seen has effect.
    feedback: bool,
}

impl Probes {
    /// Starts what is asked for. What cannot be is said in the log, and off. Requests may be traced, or none are.
    #[must_use]
    pub fn start(
        settings: &config::Probes,
        metrics: &Metrics,
        log: &AccessLog,
        is_traced: bool,
    ) -> Self {
        let driver = settings.driver.as_ref().map(|driver| Driver::start(driver, metrics));
        let driver = driver.and_then(|started| told(ProbeName::Driver, metrics, started));
        let driver = driver.map(Arc::new);
        let cuda = settings.cuda.map(|settings| Cuda::start(settings, metrics));
        let cuda = cuda.and_then(|started| told(ProbeName::Cuda, metrics, started)).map(Arc::new);
        let fences = settings.fences.then(|| Fences::start(metrics));
        let fences = fences.and_then(|started| told(ProbeName::Fences, metrics, started));
        let fences = fences.map(Arc::new);
        let waits = waits(cuda.as_ref(), driver.as_ref(), fences.as_ref());
        let requests = settings
            .requests
            .then(|| Requests::start(metrics, log, waits, settings.feedback, is_traced));
        let sockets = settings.sockets.then(|| Sockets::start(metrics));
        Probes {
            requests: requests.and_then(|started| told(ProbeName::Requests, metrics, started)),
            sockets: sockets.and_then(|started| told(ProbeName::Sockets, metrics, started)),
            driver,
            cuda,
            fences,
            feedback: settings.feedback,
        }
    }

    /// What follows the connections to an endpoint, if anything does.
    #[must_use]
    pub fn follower(&self, backend: &str, endpoint: &str) -> Option<Follower> {
        Some(self.requests.as_ref()?.follower(backend, endpoint))
    }

    /// Has the kernel asked about the sockets of an endpoint, as long as what this gives is kept.
    #[must_use]
    pub fn watch(
        &self,
        backend: &str,
        endpoint: &str,
        address: SocketAddr,
    ) -> Option<Arc<Watched>> {
        Some(self.sockets.as_ref()?.watch(backend, endpoint, address))
    }

    /// Why the pod should have no traffic, as far as the kernel knows and where that is to have effect: somebody has
    /// called the GPU's driver and does not come back.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        let stuck = self.driver.as_ref().filter(|_| self.feedback)?.stuck()?;
        Some(format!("a call into the GPU's driver has not returned for {} s", stuck.as_secs()))
    }

    /// What times calls of the GPU's library, if it runs.
    #[must_use]
    pub fn cuda(&self) -> Option<&Cuda> {
        self.cuda.as_deref()
    }

    /// Ends them: waits a moment for the last timelines, and takes the programs out of the kernel.
    pub fn finish(&self) {
        if let Some(requests) = &self.requests {
            requests.finish();
        }
        if let Some(sockets) = &self.sockets {
            sockets.finish();
        }
        if let Some(driver) = &self.driver {
            driver.finish();
        }
        if let Some(cuda) = &self.cuda {
            cuda.finish();
        }
        if let Some(fences) = &self.fences {
            fences.finish();
        }
    }
}

/// Which families tell of waits for the GPU. Who waits for it in its library waits for all that it does, also for what is
/// waited for in the kernel on the way: that family is enough by itself. Waits for fences lie inside calls into the driver
/// or outside of them, so where those two run both tell, and what both tell of is one wait.
fn waits(
    cuda: Option<&Arc<Cuda>>,
    driver: Option<&Arc<Driver>>,
    fences: Option<&Arc<Fences>>,
) -> Option<Waits> {
    if let Some(cuda) = cuda.map(Arc::clone) {
        let fetch: Fetch = Box::new(move |since| cuda.waits(since, u64::MAX));
        return Some(Waits::new(Method::Api, vec![fetch]));
    }
    let fences = fences.filter(|fences| fences.has_waits());
    let method = if driver.is_some() { Method::Driver } else { Method::Fence };
    let driver = driver.map(Arc::clone).map(|it| Box::new(move |since| it.calls(since)) as Fetch);
    let fences = fences.map(Arc::clone).map(|it| Box::new(move |since| it.waits(since)) as Fetch);
    let sources: Vec<Fetch> = driver.into_iter().chain(fences).collect();
    (!sources.is_empty()).then(|| Waits::new(method, sources))
}

/// Says in log and metrics whether a probe that was asked for runs.
fn told<T>(probe: ProbeName, metrics: &Metrics, started: Result<T, Obstacle>) -> Option<T> {
    metrics.probe(probe).set(started.is_ok().into());
    let probe = probe.as_str();
    match started {
        Ok(started) => {
            tracing::info!(probe, "the probe runs");
            Some(started)
        }
        Err(obstacle) => {
            let remedy = obstacle.remedy();
            tracing::warn!(probe, "the probe is off: {obstacle}; {remedy}");
            None
        }
    }
}
