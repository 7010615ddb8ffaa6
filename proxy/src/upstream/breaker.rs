//! The breaker of a backend at work: permits for attempts, verdicts from them, log and metrics of what changes.
//!
//! The decisions are those of [`outlier::breaker`](crate::outlier::breaker).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_config::validated as config;
use rand::RngExt;

use crate::{
    chance, clock,
    outlier::{
        Circuit, Failure, Pass, Transition,
        breaker::{Breaker, Settings},
    },
    telemetry::metrics::{BackendMetrics, CircuitState},
};

/// The breaker of one backend. Outlives other settings of the same backend.
pub struct BackendBreaker {
    breaker: Breaker,
    backend: Arc<str>,
    metrics: Arc<BackendMetrics>,
}

impl BackendBreaker {
    /// Closed.
    pub fn new(
        settings: &config::Breaker,
        backend: &Arc<str>,
        metrics: &Arc<BackendMetrics>,
    ) -> Self {
        metrics.circuit_open.set(0.0);
        let breaker = Breaker::new(compiled(settings), chance::rng().random(), clock::now());
        BackendBreaker { breaker, backend: Arc::clone(backend), metrics: Arc::clone(metrics) }
    }

    /// Other settings from now on, after a reload.
    pub fn configure(&self, settings: &config::Breaker) {
        self.breaker.configure(compiled(settings));
    }

    /// Where it stands.
    pub fn circuit(&self, now: Instant) -> Circuit {
        self.breaker.circuit(now)
    }

    /// Whether it would let an attempt through.
    pub fn admits(&self, now: Instant) -> bool {
        self.breaker.admits(now)
    }

    /// Whether it lets everybody through.
    pub fn is_closed(&self) -> bool {
        self.breaker.is_closed()
    }

    /// Lets an attempt through; else says after which time it may let one through.
    pub fn enter(self: &Arc<Self>, now: Instant) -> Result<Permit, Duration> {
        let Some(pass) = self.breaker.acquire(now) else {
            return Err(match self.circuit(now) {
                Circuit::Open(left) => left,
                // The probe that is on its way may end at any moment.
                Circuit::HalfOpen | Circuit::Closed => Duration::ZERO,
            });
        };
        if pass.is_probe() {
            self.metrics.circuit_became(CircuitState::HalfOpen);
        }
        Ok(Permit { of: Arc::clone(self), pass: Some(pass), has_failed: false })
    }

    fn announce(&self, transition: Option<Transition>) {
        let backend = &self.backend;
        match transition {
            Some(Transition::Ejected { until, failure, .. }) => {
                self.metrics.circuit_open.set(1.0);
                self.metrics.circuit_became(CircuitState::Open);
                let span = until.saturating_duration_since(clock::now());
                let failure = failure.map_or("-", Failure::as_str);
                tracing::warn!(%backend, probe_failed = failure, ?span, "circuit open: the backend fails as a whole");
            }
            Some(Transition::Restored) => {
                self.metrics.circuit_open.set(0.0);
                self.metrics.circuit_became(CircuitState::Closed);
                tracing::info!(%backend, "circuit closed");
            }
            // A backend is never kept for want of another.
            Some(Transition::KeptAsLast { .. }) | None => {}
        }
    }
}

/// The right to make one attempt at a backend, and the duty to say how it went. Dropped without a word it says nothing.
pub struct Permit {
    of: Arc<BackendBreaker>,
    pass: Option<Pass>,
    has_failed: bool,
}

impl Permit {
    /// Whether the attempt tries for all whether the backend is back.
    pub fn is_probe(&self) -> bool {
        self.pass.as_ref().is_some_and(Pass::is_probe)
    }

    /// There is a connection.
    pub fn reached(&self) {
        self.of.breaker.reached();
    }

    /// The answer is good, as far as it has come.
    pub fn succeeded(&mut self, now: Instant) {
        if let Some(pass) = self.pass.take() {
            self.of.announce(self.of.breaker.succeeded(pass, now));
        }
    }

    /// The attempt failed, even if it had begun well.
    pub fn failed(&mut self, failure: Failure, endpoints: usize, now: Instant) {
        if !std::mem::replace(&mut self.has_failed, true) {
            let pass = self.pass.take().unwrap_or(Pass::ordinary());
            self.of.announce(self.of.breaker.failed(pass, failure, endpoints, now));
        }
    }
}

fn compiled(settings: &config::Breaker) -> Settings {
    Settings {
        failures: settings.failures,
        attempts: settings.attempts,
        window: settings.window,
        base: settings.base,
        max: settings.max,
        jitter: settings.jitter,
    }
}
