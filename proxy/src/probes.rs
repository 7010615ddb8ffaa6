//! What the kernel knows of requests and of those who work on them, seen by eBPF programs: nothing of the application is
//! changed or parsed. Each family of programs is a module here and a program of `ebpf/src/bin`.
//!
//! What it decides: a probe runs when it was asked for and this kernel lets it. Otherwise it is off, says exactly what
//! stands in its way ([`Obstacle`]), and everything else runs as if it had never been asked for.

mod cuda;
pub mod doctor;
mod kernel;
mod requests;

use outrigger_config::validated as config;

pub use cuda::{Cuda, Process};
pub use kernel::{Obstacle, Release};
pub use requests::{Follower, Span, Timeline, Watch};

use crate::telemetry::{
    access_log::AccessLog,
    metrics::{Metrics, ProbeName},
};
use requests::Requests;

/// The probes of one proxy.
#[derive(Default)]
pub struct Probes {
    requests: Option<Requests>,
    cuda: Option<Cuda>,
}

impl Probes {
    /// Starts what is asked for. What cannot be is said in the log, and off.
    #[must_use]
    pub fn start(settings: &config::Probes, metrics: &Metrics, log: &AccessLog) -> Self {
        let requests = settings.requests.then(|| Requests::start(metrics, log));
        let cuda = settings.cuda.map(|settings| Cuda::start(settings, metrics));
        Probes {
            requests: requests.and_then(|started| told(ProbeName::Requests, metrics, started)),
            cuda: cuda.and_then(|started| told(ProbeName::Cuda, metrics, started)),
        }
    }

    /// What follows the connections to an endpoint, if anything does.
    #[must_use]
    pub fn follower(&self, backend: &str, endpoint: &str) -> Option<Follower> {
        Some(self.requests.as_ref()?.follower(backend, endpoint))
    }

    /// What times calls of the GPU's library, if it runs.
    #[must_use]
    pub fn cuda(&self) -> Option<&Cuda> {
        self.cuda.as_ref()
    }

    /// Ends them: waits a moment for the last timelines, and takes the programs out of the kernel.
    pub fn finish(&self) {
        if let Some(requests) = &self.requests {
            requests.finish();
        }
        if let Some(cuda) = &self.cuda {
            cuda.finish();
        }
    }
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
