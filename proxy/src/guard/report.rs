//! What a guard knows, for people.

use std::time::{Duration, Instant};

use super::{
    Counts, Finding, Guard, Measure,
    recent::{KEPT, Recent},
};

/// The state of a guard. Allocates and sorts: for an admin page, not for a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Why the guarded arm was taken out, if it was.
    pub rolled_back: Option<Finding>,
    /// The weight of the guarded arm in percent, as it is or was; `None` without steps.
    pub weight: Option<u32>,
    /// The next weight; `None` without steps, after the last one, and after a rollback.
    pub next: Option<NextStep>,
    /// The guarded arm.
    pub guarded: Arm,
    /// The arm that it is compared with.
    pub against: Arm,
    /// Each measure that is compared.
    pub measures: Vec<Reading>,
}

/// What is missing for the next weight. Nothing missing: the next guarded request takes the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextStep {
    /// The next weight in percent.
    pub to: u32,
    /// So much time must pass.
    pub wait: Duration,
    /// So many requests of the guarded arm must end.
    pub requests: u64,
    /// The evidence of this measure is above [`HOLD`](super::HOLD).
    pub held_by: Option<Measure>,
}

/// What was seen of an arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm {
    /// All that were judged.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Recent first bytes; `None` when not compared or none was seen.
    pub first_byte: Option<Quantiles>,
    /// Recent gaps; likewise.
    pub gap: Option<Quantiles>,
}

/// Quantiles of the latest 1024 latencies, to the microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantiles {
    /// Of how many latencies, at most 1024.
    pub of: usize,
    /// The median.
    pub p50: Duration,
    /// Nine of ten are below.
    pub p90: Duration,
    /// Ninety-nine of a hundred are below.
    pub p99: Duration,
}

/// How far a measure is from the alarm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Which measure.
    pub measure: Measure,
    /// The tolerated difference: of the shares of failures, or in relation to the other's latency.
    pub tolerated: f64,
    /// The evidence. 1 at first; below 1 speaks for the guarded arm. Its inverse, if below 1, is
    /// an always-valid p-value.
    pub evidence: f64,
    /// The evidence at which the arm is taken out.
    pub alarm: f64,
}

impl Guard {
    /// What is known now.
    pub fn report(&self, now: Instant) -> Report {
        let [first_byte, gap] = [&self.first_byte, &self.gap].map(Option::as_ref);
        Report {
            rolled_back: self.finding,
            weight: self.weight(),
            next: self.next_step(now),
            guarded: Arm {
                first_byte: first_byte.and_then(|of| quantiles(&of.guarded)),
                gap: gap.and_then(|of| quantiles(&of.guarded)),
                ..Arm::from(self.guarded)
            },
            against: Arm {
                first_byte: first_byte.and_then(|of| quantiles(&of.against)),
                gap: gap.and_then(|of| quantiles(&of.against)),
                ..Arm::from(self.against)
            },
            measures: self.readings(),
        }
    }

    fn next_step(&self, now: Instant) -> Option<NextStep> {
        let (stairs, steps) = (self.stairs.as_ref()?, self.settings.steps.as_ref()?);
        if self.is_rolled_back() {
            return None;
        }
        let (_, to) = stairs.next(steps)?;
        let (wait, requests) = stairs.missing(steps, now);
        Some(NextStep { to, wait, requests, held_by: self.held_by() })
    }

    fn readings(&self) -> Vec<Reading> {
        let reading = |(measure, evidence)| {
            let tolerated = match measure {
                Measure::Errors => Some(self.settings.errors),
                Measure::FirstByte => self.settings.first_byte,
                Measure::Gap => self.settings.gap,
            };
            // A measure that is not compared has no evidence and is not here.
            let tolerated = tolerated.unwrap_or_default();
            Reading { measure, tolerated, evidence, alarm: self.alarm }
        };
        self.evidence().map(reading).collect()
    }
}

impl From<Counts> for Arm {
    fn from(counts: Counts) -> Self {
        let Counts { requests, failed } = counts;
        Self { requests, failed, first_byte: None, gap: None }
    }
}

fn quantiles(recent: &Recent) -> Option<Quantiles> {
    let micros = recent.quantiles_of_last(KEPT, [0.5, 0.9, 0.99])?;
    let [p50, p90, p99] = micros.map(|micros| Duration::from_micros(micros.into()));
    Some(Quantiles { of: recent.len(), p50, p90, p99 })
}
