//! A guarded arm at work: what becomes of its requests is told to the [`Guard`], and what that decides is done.
//!
//! The guard decides (see there for how); this file says what counts against an arm and turns a verdict into weights, a
//! line in the log and a metric. A verdict changes the weights in force, never the configuration: a reload that leaves
//! route, split and guard as they are keeps what was decided, any change of them begins anew.

use std::{sync::Arc, time::Duration};

use outrigger_config::validated as config;
use parking_lot::Mutex;

use crate::{
    clock,
    guard::{Guard, Measure, Report, Sample, Settings, Side, Steps, Verdict},
    outcome::Outcome,
    request::Request,
    snapshot::Split,
    telemetry::metrics::{CanaryMetrics, CanaryVerdict},
};

/// What weights add up to when a step is in force: hundredths of a percent.
const WHOLE: u32 = 10_000;

/// The guard of one route.
pub struct Canary {
    route: String,
    settings: config::Guard,
    /// As configured.
    weights: Vec<u32>,
    watch: Mutex<Watch>,
    metrics: Arc<CanaryMetrics>,
}

/// A guard and whether it is in force. What it decides is done under the lock, so that nothing is done after it was
/// relieved.
struct Watch {
    guard: Guard,
    relieved: bool,
}

impl Canary {
    /// A guard that knows nothing yet, and says nothing before [`Canary::take_over`].
    pub fn new(guard: &config::Guard, route: &config::Route, metrics: Arc<CanaryMetrics>) -> Self {
        let weights = match &route.action {
            config::Action::Split(arms) => arms.iter().map(|arm| arm.weight).collect(),
            config::Action::Redirect(_) | config::Action::Respond(_) => Vec::new(),
        };
        let watch = Watch { guard: Guard::new(settings(guard), clock::now()), relieved: false };
        Canary {
            route: route.name.clone(),
            settings: guard.clone(),
            watch: Mutex::new(watch),
            weights,
            metrics,
        }
    }

    /// Its configuration is in force: from here on the metrics are its own.
    pub fn take_over(&self) {
        let watch = self.watch.lock();
        let configured = || percent(&self.weights, self.settings.arm);
        let rolled_back = watch.guard.is_rolled_back();
        self.metrics.rolled_back.set(rolled_back.into());
        self.tell_weight(match watch.guard.weight() {
            _ if rolled_back => 0,
            weight => weight.map_or_else(configured, i64::from),
        });
    }

    /// Another guard, or none, is in force: what comes of the requests that are still on their way concerns nobody.
    pub fn relieve(&self) {
        self.watch.lock().relieved = true;
    }

    /// What the guard knows.
    pub fn report(&self) -> Report {
        self.watch.lock().guard.report(clock::now())
    }

    /// Counts a request that has ended, if it went to one of the two arms and says something about it.
    pub fn observe(&self, request: &Request, outcome: Outcome, split: &Split) {
        // Testers who pick their arm are no sample of anything.
        if request.arm_forced {
            return;
        }
        let Some(side) = request.arm.as_ref().and_then(|arm| self.side(&arm.name)) else { return };
        let Some(failed) = blame(outcome) else { return };
        let sample = Sample {
            began: request.start,
            // An attempt that had to be repeated burned nobody, but the arm did fail.
            failed: failed || request.trail.faults > 0,
            first_byte: waited(request, outcome),
            gap: request.progress.mean_gap(),
        };
        let mut watch = self.watch.lock();
        if watch.relieved {
            return;
        }
        if let Some(verdict) = watch.guard.observe(side, &sample, clock::now()) {
            self.act(&verdict, split);
        }
    }

    fn side(&self, arm: &str) -> Option<Side> {
        match arm {
            arm if arm == self.settings.arm_name => Some(Side::Guarded),
            arm if arm == self.settings.against_name => Some(Side::Against),
            _ => None,
        }
    }

    fn act(&self, verdict: &Verdict, split: &Split) {
        let (route, arm) = (&self.route, &self.settings.arm_name);
        let share = match verdict {
            Verdict::RolledBack(finding) => {
                tracing::error!(route, arm, %finding, "canary taken out");
                0
            }
            Verdict::Stepped { from, to } => {
                tracing::info!(route, arm, from, to, "canary gets more of the traffic, in percent");
                *to
            }
        };
        match split.deal_by(stepped(&self.weights, self.settings.arm, share)) {
            Ok(()) => self.tell_weight(i64::from(share)),
            // Nothing but the canary has a weight.
            Err(error) => tracing::error!(route, arm, %error, "the weights stay as they are"),
        }
        self.tell(verdict);
    }

    /// After the weights: who sees that it was taken out is not to see that it has traffic.
    fn tell(&self, verdict: &Verdict) {
        let verdict = match verdict {
            Verdict::Stepped { .. } => CanaryVerdict::Stepped,
            Verdict::RolledBack(finding) => {
                self.metrics.rolled_back.set(1);
                match finding.measure {
                    Measure::Errors => CanaryVerdict::Errors,
                    Measure::FirstByte => CanaryVerdict::FirstByte,
                    Measure::Gap => CanaryVerdict::Gap,
                }
            }
        };
        self.metrics.decided(verdict);
    }

    fn tell_weight(&self, percent: i64) {
        self.metrics.weight.set(percent);
    }
}

/// How long the first byte took, or was waited for in vain. An error that was said at once is no fast answer.
fn waited(request: &Request, outcome: Outcome) -> Option<Duration> {
    match outcome {
        Outcome::FirstByteTimeout => Some(clock::since(request.start)),
        Outcome::Ok | Outcome::ClientError => request.progress.first_byte_after(request.start),
        _ => None,
    }
}

/// Whether this end of a request counts against the arm; `None` where it says nothing about it.
fn blame(outcome: Outcome) -> Option<bool> {
    match outcome {
        Outcome::Ok | Outcome::ClientError => Some(false),
        Outcome::ServerError
        | Outcome::NoEndpoint
        | Outcome::CircuitOpen
        | Outcome::ConnectFailed
        | Outcome::ConnectTimeout
        | Outcome::FirstByteTimeout
        | Outcome::GapTimeout
        | Outcome::TotalTimeout
        | Outcome::Stalled
        | Outcome::UpstreamReset
        | Outcome::UpstreamInvalid => Some(true),
        Outcome::Local
        | Outcome::Stored
        | Outcome::Fallback
        | Outcome::NotStored
        | Outcome::NoRoute
        | Outcome::BadRequest
        | Outcome::TooLarge
        | Outcome::HeaderTooLarge
        | Outcome::UnsupportedCoding
        | Outcome::MethodNotAllowed
        | Outcome::ClientTimeout
        | Outcome::ClientGone
        | Outcome::Overloaded
        | Outcome::QueueFull
        | Outcome::QueueTimeout
        | Outcome::Shed
        | Outcome::RateLimited
        | Outcome::Draining
        | Outcome::DrainCut
        | Outcome::Internal => None,
    }
}

/// The weights of a split before its guard, if it has one, has decided anything.
pub fn initial_weights(guard: Option<&config::Guard>, arms: &[config::Arm]) -> Vec<u32> {
    let weights: Vec<u32> = arms.iter().map(|arm| arm.weight).collect();
    match guard.and_then(|guard| Some((guard.arm, *guard.steps.as_ref()?.weights.first()?))) {
        Some((arm, percent)) => stepped(&weights, arm, percent),
        None => weights,
    }
}

/// `percent` for this arm, and what is left for the others by their weights.
fn stepped(weights: &[u32], arm: usize, percent: u32) -> Vec<u32> {
    let own = (percent * WHOLE / 100).min(WHOLE);
    let others: u64 =
        (0..).zip(weights).filter(|(i, _)| *i != arm).map(|(_, w)| u64::from(*w)).sum();
    let share = |weight: u32| {
        let part = u64::from(WHOLE - own) * u64::from(weight) / others.max(1);
        u32::try_from(part).unwrap_or(WHOLE)
    };
    (0..).zip(weights).map(|(i, weight)| if i == arm { own } else { share(*weight) }).collect()
}

fn percent(weights: &[u32], arm: usize) -> i64 {
    let sum: u32 = weights.iter().sum();
    i64::from(weights.get(arm).copied().unwrap_or(0) * 100 / sum.max(1))
}

fn settings(guard: &config::Guard) -> Settings {
    let steps = guard.steps.as_ref().map(|steps| Steps {
        weights: steps.weights.clone(),
        every: steps.every,
        requests: u64::from(steps.requests),
    });
    Settings {
        errors: guard.errors,
        first_byte: guard.first_byte,
        gap: guard.gap,
        false_alarm: guard.false_alarm,
        steps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_share_what_the_canary_leaves() {
        assert_eq!(stepped(&[90, 10], 1, 5), [9_500, 500]);
        assert_eq!(stepped(&[90, 10], 1, 0), [10_000, 0]);
        assert_eq!(stepped(&[90, 10], 1, 100), [0, 10_000]);
        assert_eq!(stepped(&[60, 10, 30], 1, 10), [6_000, 1_000, 3_000]);
    }
}
