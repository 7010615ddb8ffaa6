//! What the kernel knows of requests: when the application's socket received one, when the application read it, when it
//! wrote the answer. eBPF programs follow the sockets; nothing of the application is changed or parsed.
//!
//! Why it can be exact: the proxy is in the path. It knows each request's connection and which bytes of it the request was,
//! so that what the kernel saw of the connection is joined with the request by numbers, without a guess.
//!
//! What it decides: a probe runs when it was asked for and this kernel lets it. Otherwise it is off, says exactly what
//! stands in its way ([`Obstacle`]), and everything else runs as if it had never been asked for.
//!
//! Left out so far: HTTP/2 to endpoints (one connection carries many requests at once: those are said to be unattributed),
//! applications in another network namespace, the GPU driver.

mod btf;
pub mod doctor;
mod facts;
mod fold;
mod follow;
mod load;
mod obstacle;
mod read;
mod timeline;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{Builder, JoinHandle},
};

use outrigger_config::validated as config;
use parking_lot::Mutex;

pub use fold::Span;
pub use follow::{Follower, Watch};
pub use obstacle::Obstacle;
pub use timeline::Timeline;

use crate::telemetry::{access_log::AccessLog, metrics::Metrics};
use follow::Shared;
use read::Reader;

/// The probes of one proxy.
#[derive(Default)]
pub struct Probes {
    requests: Option<Requests>,
}

/// The probe that follows requests, while it runs.
struct Requests {
    shared: Arc<Shared>,
    metrics: Metrics,
    stop: Arc<AtomicBool>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Probes {
    /// Starts what is asked for. What cannot be is said in the log, and off.
    #[must_use]
    pub fn start(settings: &config::Probes, metrics: &Metrics, log: &AccessLog) -> Self {
        if !settings.requests {
            return Self::default();
        }
        let requests = match Requests::start(metrics, log) {
            Ok(requests) => Some(requests),
            Err(obstacle) => {
                let remedy = obstacle.remedy();
                tracing::warn!(probe = "requests", "the probe is off: {obstacle}; {remedy}");
                None
            }
        };
        metrics.follow().running.set(requests.is_some().into());
        Probes { requests }
    }

    /// What follows the connections to an endpoint, if anything does.
    #[must_use]
    pub fn follower(&self, backend: &str, endpoint: &str) -> Option<Follower> {
        let requests = self.requests.as_ref()?;
        let metrics = requests.metrics.app(backend, endpoint);
        Some(Follower::new(Arc::clone(&requests.shared), metrics))
    }

    /// Ends them: waits a moment for the last timelines, and takes the programs out of the kernel.
    pub fn finish(&self) {
        let Some(requests) = &self.requests else { return };
        requests.stop.store(true, SeqCst);
        if let Some(reader) = requests.reader.lock().take() {
            reader.thread().unpark();
            // A reader that panicked has said so.
            let _ = reader.join();
        }
    }
}

impl Requests {
    fn start(metrics: &Metrics, log: &AccessLog) -> Result<Self, Obstacle> {
        let loaded = load::requests()?;
        let stop = Arc::new(AtomicBool::new(false));
        let reader = Reader::new(loaded, metrics.follow(), log.clone(), Arc::clone(&stop));
        let shared = reader.shared();
        let reader = Builder::new().name("probes".to_owned()).spawn(move || reader.run());
        let reader = reader.map_err(|error| Obstacle::Refused { why: error.to_string() })?;
        tracing::info!(probe = "requests", "the probe runs");
        Ok(Requests { shared, metrics: metrics.clone(), stop, reader: Mutex::new(Some(reader)) })
    }
}
