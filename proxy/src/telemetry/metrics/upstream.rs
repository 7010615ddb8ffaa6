//! Endpoints and backends.

use super::*;

/// What is counted per endpoint.
#[derive(Debug)]
pub struct EndpointMetrics {
    /// Attempts until the last byte of the answer.
    pub in_flight: Gauge,
    /// From sending an attempt to the first byte of its answer.
    pub first_byte: Histogram,
    /// What it took to make a connection.
    pub connect: Histogram,
    /// 1 when ready.
    pub ready: Gauge,
    /// 1 while ejected.
    pub ejected: Gauge,
    requests: [Counter; Outcome::ALL.len()],
    ejections: [Counter; EjectionReason::ALL.len()],
    /// Attempts given up because another one of the same request began first.
    pub races_lost: Counter,
    checks: [Counter; Verdict::ALL.len()],
    /// What it last said of its queue, its batch and its cache, in the order of [`LoadSignal::ALL`].
    pub reported: [Level; LoadSignal::ALL.len()],
    warm_ups: [Counter; Verdict::ALL.len()],
    scrapes: [Counter; Verdict::ALL.len()],
    agent_checks: [Counter; Verdict::ALL.len()],
}

impl Default for EndpointMetrics {
    fn default() -> Self {
        Self {
            in_flight: Gauge::default(),
            first_byte: Histogram::new(FIRST_BYTE),
            connect: Histogram::new(APP),
            ready: Gauge::default(),
            ejected: Gauge::default(),
            requests: std::array::from_fn(|_| Counter::default()),
            ejections: Default::default(),
            races_lost: Counter::default(),
            checks: Default::default(),
            reported: Default::default(),
            warm_ups: Default::default(),
            scrapes: Default::default(),
            agent_checks: Default::default(),
        }
    }
}

impl EndpointMetrics {
    /// An attempt ended so.
    pub fn ended(&self, outcome: Outcome) {
        self.requests[outcome.index()].inc();
    }

    /// The endpoint was ejected.
    pub fn ejection(&self, reason: EjectionReason) {
        self.ejections[reason as usize].inc();
    }

    /// A health check was made.
    pub fn checked(&self, verdict: Verdict) {
        self.checks[verdict as usize].inc();
    }

    /// A warm-up ended.
    pub fn warmed_up(&self, verdict: Verdict) {
        self.warm_ups[verdict as usize].inc();
    }

    /// The engine's metrics were read.
    pub fn scraped(&self, verdict: Verdict) {
        self.scrapes[verdict as usize].inc();
    }

    /// The agent was asked.
    pub fn agent_asked(&self, verdict: Verdict) {
        self.agent_checks[verdict as usize].inc();
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::EndpointInFlight, labels, &self.in_flight);
        page.histogram(Id::EndpointFirstByte, labels, &self.first_byte);
        page.histogram(Id::UpstreamConnect, labels, &self.connect);
        page.gauge(Id::EndpointReady, labels, &self.ready);
        page.gauge(Id::EndpointEjected, labels, &self.ejected);
        let (reasons, reason) = (EjectionReason::ALL, EjectionReason::as_str);
        page.by_value(Id::EndpointEjections, labels, reasons, reason, &self.ejections);
        if self.races_lost.get() > 0 {
            page.counter(Id::EndpointRacesLost, labels, self.races_lost.get());
        }
        for (signal, level) in LoadSignal::ALL.iter().zip(&self.reported) {
            if let Some(value) = level.get() {
                page.level(Id::EndpointReported, &[labels, &[signal.as_str()]].concat(), value);
            }
        }
        let asked = [
            (Id::HealthChecks, &self.checks),
            (Id::WarmUps, &self.warm_ups),
            (Id::Scrapes, &self.scrapes),
            (Id::AgentChecks, &self.agent_checks),
        ];
        for (id, counts) in asked {
            // Nobody is asked where nothing is configured: no series that never move.
            if counts.iter().any(|count| count.get() > 0) || matches!(id, Id::HealthChecks) {
                page.by_value(id, labels, Verdict::ALL, Verdict::as_str, counts);
            }
        }
        for (outcome, count) in Outcome::ALL.iter().zip(&self.requests) {
            if count.get() > 0 {
                let labels = [labels, &[outcome.as_str()]].concat();
                page.counter(Id::EndpointRequests, &labels, count.get());
            }
        }
    }
}

/// What is counted per backend.
#[derive(Debug, Default)]
pub struct BackendMetrics {
    connections: [Counter; UpstreamConnection::ALL.len()],
    resolutions: [Counter; Verdict::ALL.len()],
    sent: [Counter; Nearness::ALL.len()],
    /// 1 while the breaker is open or half open; nothing where there is none.
    pub circuit_open: Level,
    circuit: [Counter; CircuitState::ALL.len()],
}

impl BackendMetrics {
    /// The breaker is in this state now.
    pub fn circuit_became(&self, state: CircuitState) {
        self.circuit[state as usize].inc();
    }

    /// An attempt went to an endpoint so near.
    pub fn sent(&self, nearness: Nearness) {
        self.sent[nearness as usize].inc();
    }

    /// An attempt came by its connection so.
    pub fn connection(&self, how: UpstreamConnection) {
        self.connections[how as usize].inc();
    }

    /// A name was looked up.
    pub fn resolved(&self, verdict: Verdict) {
        self.resolutions[verdict as usize].inc();
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        let (all, name) = (UpstreamConnection::ALL, UpstreamConnection::as_str);
        page.by_value(Id::UpstreamConnections, labels, all, name, &self.connections);
        page.by_value(Id::Discovery, labels, Verdict::ALL, Verdict::as_str, &self.resolutions);
        page.by_value(Id::Sent, labels, Nearness::ALL, Nearness::as_str, &self.sent);
        if let Some(open) = self.circuit_open.get() {
            page.level(Id::CircuitOpen, labels, open);
            let (all, name) = (CircuitState::ALL, CircuitState::as_str);
            page.by_value(Id::CircuitChanges, labels, all, name, &self.circuit);
        }
    }
}
