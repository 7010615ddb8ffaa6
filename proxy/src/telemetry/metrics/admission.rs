//! What is waited for: places, allowances, deadlines and load levels.

use super::*;

/// What is told of a limit and its queue.
#[derive(Debug)]
pub struct GateMetrics {
    /// How many may be in flight; 0 = no limit.
    pub limit: Gauge,
    /// How many are.
    pub in_flight: Gauge,
    /// How many wait.
    pub waiting: Gauge,
    /// How long they waited who had to.
    pub wait: Histogram,
    rejected: [Counter; Rejection::ALL.len()],
}

impl Default for GateMetrics {
    fn default() -> Self {
        Self {
            limit: Gauge::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            wait: Histogram::new(FIRST_BYTE),
            rejected: Default::default(),
        }
    }
}

impl GateMetrics {
    /// Somebody was turned away.
    pub fn rejected(&self, why: Rejection) {
        self.rejected[why as usize].inc();
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::AdmissionLimit, labels, &self.limit);
        page.gauge(Id::AdmissionInFlight, labels, &self.in_flight);
        page.gauge(Id::AdmissionWaiting, labels, &self.waiting);
        page.histogram(Id::AdmissionWait, labels, &self.wait);
        let (all, name) = (Rejection::ALL, Rejection::as_str);
        page.by_value(Id::AdmissionRejected, labels, all, name, &self.rejected);
    }
}

/// What is counted of a route's rules about rates.
#[derive(Debug, Default)]
pub struct RateMetrics {
    decisions: [Counter; RateDecision::ALL.len()],
}

impl RateMetrics {
    /// A rule said so.
    pub fn decided(&self, decision: RateDecision) {
        self.decisions[decision as usize].inc();
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        let (all, name) = (RateDecision::ALL, RateDecision::as_str);
        page.by_value(Id::RateDecisions, labels, all, name, &self.decisions);
    }
}

/// What is told of the deadlines that an arm of a route learns.
#[derive(Debug)]
pub struct DeadlineMetrics {
    seconds: [Histogram; DeadlineKind::ALL.len()],
    set: [[Counter; DeadlineBasis::ALL.len()]; DeadlineKind::ALL.len()],
    explored: [[Counter; ExploredResult::ALL.len()]; DeadlineKind::ALL.len()],
}

impl Default for DeadlineMetrics {
    fn default() -> Self {
        Self {
            seconds: std::array::from_fn(|_| Histogram::new(FIRST_BYTE)),
            set: Default::default(),
            explored: Default::default(),
        }
    }
}

impl DeadlineMetrics {
    /// A deadline was set.
    pub fn set(&self, kind: DeadlineKind, basis: DeadlineBasis, deadline: Duration) {
        self.seconds[kind as usize].observe(deadline);
        self.set[kind as usize][basis as usize].inc();
    }

    /// So it went for a request that had the ceiling for a deadline.
    pub fn explored(&self, kind: DeadlineKind, result: ExploredResult) {
        self.explored[kind as usize][result as usize].inc();
    }

    /// Of those that had the ceiling and were served, the share that would have been cut off; `None` before the first.
    #[must_use]
    pub fn late_share(&self, kind: DeadlineKind) -> Option<f64> {
        let [in_time, late] = [ExploredResult::InTime, ExploredResult::Late]
            .map(|result| as_float(self.explored[kind as usize][result as usize].get()));
        (in_time + late > 0.0).then(|| late / (in_time + late))
    }

    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        for kind in DeadlineKind::ALL {
            let (index, labels) = (*kind as usize, [labels, &[kind.as_str()]].concat());
            // What is not learned has no series.
            if self.set[index].iter().all(|count| count.get() == 0) {
                continue;
            }
            page.histogram(Id::DeadlineSeconds, &labels, &self.seconds[index]);
            let (all, name) = (DeadlineBasis::ALL, DeadlineBasis::as_str);
            page.by_value(Id::Deadlines, &labels, all, name, &self.set[index]);
            let (all, name) = (ExploredResult::ALL, ExploredResult::as_str);
            page.by_value(Id::Explored, &labels, all, name, &self.explored[index]);
        }
    }
}

/// What is told of the load levels of a route.
#[derive(Debug, Default)]
pub struct LevelMetrics {
    /// The level in force, from 1; 0 below the first.
    pub level: Gauge,
}

impl LevelMetrics {
    pub(super) fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::LoadLevel, labels, &self.level);
    }
}
