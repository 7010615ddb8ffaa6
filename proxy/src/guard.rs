//! The guard of a canary: compares one arm of a split with another, and says when it is worse.
//!
//! Nobody watches a canary all night. The guard sees how each request of the two arms ended and
//! answers at most one of two things: *take the guarded arm out*, or *give it the next weight*. It
//! compares up to three [measures](Measure): the share of failed requests, the time to the first
//! byte, and the gap between chunks. "Worse" means worse by more than is tolerated.
//!
//! **What is promised.** If no measure of the guarded arm is ever worse than tolerated, the chance
//! that the guard *ever* takes it out is at most [`Settings::false_alarm`]: not per day or per look
//! but for the whole life of the guard, however long and however often it is asked. The budget is
//! shared equally: each measure gathers evidence of its own, worth 1 at first, and raises the alarm
//! at *number of measures / `false_alarm`* (`capital` says why that is enough). It is a bound; an
//! arm that is as good as the other stays far below it.
//!
//! **What that rests on.** Requests are judged in rounds, in the order they come in, each of a few
//! of either arm (`contest`). "Not worse" means: given all earlier rounds, and given which arm each
//! request of this one is of,
//!
//! - *errors*: the expected share of failures of the guarded arm is at most that of the other plus
//!   [`Settings::errors`];
//! - *latencies*: for every time `x`, the guarded arm exceeds `x` plus the tolerance (at least 1
//!   ms) no more often than the other exceeds `x` (`latency`).
//!
//! No distribution is assumed, nor that requests are independent, nor that tomorrow is like today:
//! both arms may get slower at noon and fail together. What *is* assumed is that the arms get alike
//! requests and that the order of the arms does not depend on how requests will end. So:
//!
//! - a *sticky* split is fair only with many keys: when the one user with long prompts is in the
//!   canary, the canary is slower, and the guard says so;
//! - testers that force an arm are no sample of anything and should not be fed to it;
//! - trouble that hits only one arm for a while, a node or a neighbour, is a difference, whosever
//!   fault it is; only what falls into a quarter of a second counts as one incident (`capital`);
//! - requests that fail at once are heard of before those that take a minute. That is fair as long
//!   as it is so for both arms alike, and it is not when one of them has just been given more
//!   traffic. So requests begun before the last change of the weights are not judged.
//!
//! **What it costs to be careful.** Differences near the tolerance take long to be told from
//! chance. How many guarded requests it takes, at weights of 90 to 10 and with the defaults (1
//! point more errors and 10 % slower tolerated, false alarms 1 %), half of the time and in 95 of
//! 100 cases:
//!
//! | the guarded arm | half | 95 % |
//! |---|---|---|
//! | 3 % errors against 1 % | 3,300 | 7,300 |
//! | 6 % errors against 1 % | 340 | 720 |
//! | always fails | 15 | 18 |
//! | first byte 1.3 times as late, lognormal with sigma 0.5 | 240 | 540 |
//! | the same with sigma 1 | 900 | 1,800 |
//! | only the slowest twentieth 1.3 times as late, sigma 0.5 | 1,300 | 2,500 |
//! | the same with sigma 1 | 4,500 | 8,600 |
//!
//! At equal weights it takes more requests, about twice as many, but less time. A change after
//! 20,000 good requests takes about twice as many as one at the start. The tests print more.
//!
//! **Weights.** With [`Steps`], the guarded arm begins at the first weight and goes up when at
//! least so much time has passed *and* so many requests of it have ended since the last step, and
//! *no measure's evidence is above* [`HOLD`]. Few requests per step mean little assurance: 500 show
//! an arm with 10 % errors, not one with 3 %. At 100 % there is nothing left to compare with: the
//! guard sees only one arm and says no more.
//!
//! Left out: weights themselves and what follows a verdict (the split's), whose fault an error is
//! (the caller's), and sharing evidence between replicas: each proxy judges by what it saw.
//!
//! The idea of always-valid canary tests on errors and stochastic order is that of Lindon, Sanden
//! and Shirikian, *Rapid Regression Detection in Software Deployments through Sequential Testing*
//! (KDD 2022, arXiv 2205.14762).

mod capital;
mod contest;
mod latency;
mod pace;
mod recent;
mod report;
mod stairs;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

use contest::{Contest, MOST};
use latency::{LEVELS, Latency};
pub use report::{Arm, NextStep, Quantiles, Reading, Report};
use stairs::Stairs;

/// No step up while the evidence of any measure is above this. By any one measure, an arm that is
/// just tolerable is ever above with a chance of at most a half; an equal one hardly ever is.
pub const HOLD: f64 = 2.0;

/// How long it may take until requests are dealt out by a new weight.
const GRACE: Duration = Duration::from_secs(1);

/// What is compared, and how sure a verdict must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Tolerated: so much larger a share of failures, 0.0..=1.0; 0.01 is one percentage point.
    pub errors: f64,
    /// Tolerated: a first byte later by this share, 0.1 is 10 %. `None`: not compared.
    pub first_byte: Option<f64>,
    /// Tolerated: gaps longer by this share. `None`: not compared.
    pub gap: Option<f64>,
    /// The chance of ever taking out an arm that is not worse than tolerated, above 0, below 1.
    pub false_alarm: f64,
    /// The weights to go through. `None`: the weight stays.
    pub steps: Option<Steps>,
}

/// The weights of the guarded arm, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    /// In percent, ascending. The first is the one to begin with.
    pub weights: Vec<u32>,
    /// The least time between two steps.
    pub every: Duration,
    /// The fewest requests of the guarded arm between two steps.
    pub requests: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When the arm was chosen.
    pub began: Instant,
    /// It failed, and the arm is to blame.
    pub failed: bool,
    /// From sending the request to the first byte of the answer. For a request that ran into the
    /// first-byte deadline, how long it waited; `None` for one that failed otherwise, because an
    /// error sent at once is not a fast answer.
    pub first_byte: Option<Duration>,
    /// The mean time between two chunks of the answer; `None` with fewer than two. (Not the largest
    /// gap: that grows with the length of the answer, which is not the arm's doing.)
    pub gap: Option<Duration>,
}

/// Which of the two arms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that may be taken out.
    Guarded,
    /// The one it is compared with.
    Against,
}

impl Sample {
    /// A request that succeeded and of which nothing else is known.
    pub const fn of(began: Instant) -> Self {
        Self { began, failed: false, first_byte: None, gap: None }
    }
}

/// What the arms are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// The share of failed requests.
    Errors,
    /// The time to the first byte.
    FirstByte,
    /// The gap between chunks.
    Gap,
}

impl Measure {
    /// The word for logs, metric labels and the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::FirstByte => "first_byte",
            Self::Gap => "gap",
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Take the guarded arm out. The last word: the guard says no more.
    RolledBack(Finding),
    /// Give the guarded arm the next weight.
    Stepped {
        /// The weight until now, in percent.
        from: u32,
        /// The weight from now on, in percent.
        to: u32,
    },
}

/// Why an arm was taken out.
///
/// The numbers are those of the requests since the evidence began to grow. They show what the
/// verdict rests on and exaggerate a little, as any stretch does that was chosen by its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// What was worse.
    pub measure: Measure,
    /// The quantile of a latency at which the arms differ most clearly, 0.0..1.0; `None` for
    /// errors.
    pub quantile: Option<f64>,
    /// The guarded arm's share of failures, or its latency at that quantile in seconds.
    pub guarded: f64,
    /// The other arm's.
    pub against: f64,
    /// How many requests of the guarded arm this is about.
    pub requests: u64,
    /// The evidence of the measure.
    pub evidence: f64,
    /// The evidence that is enough.
    pub alarm: f64,
}

impl fmt::Display for Finding {
    /// As in "errors: 3.10% against 0.95% in 2841 requests", "first_byte: p90 612 ms against 480 ms
    /// in 310 requests".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.measure.as_str())?;
        match self.quantile {
            None => {
                write!(f, "{:.2}% against {:.2}%", self.guarded * 100.0, self.against * 100.0)?;
            }
            Some(level) => {
                let (guarded, against) = (self.guarded * 1e3, self.against * 1e3);
                write!(f, "p{} {guarded:.0} ms against {against:.0} ms", level * 100.0)?;
            }
        }
        write!(f, " in {} requests", self.requests)
    }
}

/// The guard of one arm of one route.
///
/// A few kilobytes for each latency that is compared, and nothing is allocated after
/// [`new`](Self::new) but by [`report`](Self::report). Meant to be shared behind a mutex.
#[derive(Debug)]
pub struct Guard {
    settings: Settings,
    /// The evidence at which a measure raises the alarm.
    alarm: f64,
    errors: Contest,
    first_byte: Option<Latency>,
    gap: Option<Latency>,
    stairs: Option<Stairs>,
    /// Requests begun before are not judged.
    from: Instant,
    guarded: Counts,
    against: Counts,
    finding: Option<Finding>,
}

/// How many requests of an arm were seen.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    failed: u64,
}

impl Guard {
    /// A guard that knows nothing yet.
    pub fn new(settings: Settings, now: Instant) -> Self {
        let latencies = [settings.first_byte, settings.gap];
        let measures = 1 + latencies.iter().flatten().count();
        let [first_byte, gap] =
            latencies.map(|slower| slower.map(|slower| Latency::new(slower, now)));
        Self {
            alarm: measures as f64 / settings.false_alarm,
            errors: Contest::new(1, settings.errors, now),
            first_byte,
            gap,
            stairs: settings.steps.as_ref().map(|_| Stairs::new(now)),
            from: now,
            guarded: Counts::default(),
            against: Counts::default(),
            finding: None,
            settings,
        }
    }

    /// A request of one of the two arms has ended, at `now`.
    ///
    /// Takes some 50 to 100 ns, and some microseconds once in 128 requests for each latency.
    pub fn observe(&mut self, side: Side, sample: &Sample, now: Instant) -> Option<Verdict> {
        if self.finding.is_some() || sample.began < self.from {
            return None;
        }
        self.count(side, sample);
        self.compare(side, sample, now);
        self.finding = self.find();
        match self.finding {
            Some(finding) => Some(Verdict::RolledBack(finding)),
            None if side == Side::Guarded => self.step(now),
            None => None,
        }
    }

    /// The weights of the arms were changed, other than by a step: what is learned of the arms
    /// stays, but requests begun before `now` are not judged.
    pub fn reweighted(&mut self, now: Instant) {
        self.from = now;
        self.errors.refresh();
        // More load is when an arm is likeliest to show a weakness.
        for latency in [&mut self.first_byte, &mut self.gap].into_iter().flatten() {
            latency.contest.refresh();
        }
    }

    /// The weight that the guarded arm should have, in percent; `None` without steps. Rolled back
    /// or not: see [`is_rolled_back`](Self::is_rolled_back).
    pub fn weight(&self) -> Option<u32> {
        let stairs = self.stairs.as_ref()?;
        self.settings.steps.as_ref()?.weights.get(stairs.at()).copied()
    }

    /// Whether the guarded arm was taken out.
    pub fn is_rolled_back(&self) -> bool {
        self.finding.is_some()
    }

    fn count(&mut self, side: Side, sample: &Sample) {
        let counts = match side {
            Side::Guarded => &mut self.guarded,
            Side::Against => &mut self.against,
        };
        counts.requests += 1;
        counts.failed += u64::from(sample.failed);
    }

    fn compare(&mut self, side: Side, sample: &Sample, now: Instant) {
        let mut hits = [0.0; MOST];
        hits[0] = f64::from(u8::from(sample.failed));
        self.errors.add(side, &hits, now);
        if let (Some(compared), Some(latency)) = (&mut self.first_byte, sample.first_byte) {
            compared.add(side, latency, now);
        }
        if let (Some(compared), Some(latency)) = (&mut self.gap, sample.gap) {
            compared.add(side, latency, now);
        }
    }

    /// The measures that are compared and their evidence.
    fn evidence(&self) -> impl Iterator<Item = (Measure, f64)> {
        let first_byte = self.first_byte.as_ref().map(|of| (Measure::FirstByte, &of.contest));
        let gap = self.gap.as_ref().map(|of| (Measure::Gap, &of.contest));
        [Some((Measure::Errors, &self.errors)), first_byte, gap]
            .into_iter()
            .flatten()
            .map(|(measure, contest)| (measure, contest.evidence()))
    }

    /// The first measure with enough evidence.
    fn find(&self) -> Option<Finding> {
        let (measure, evidence) = self.evidence().find(|(_, evidence)| *evidence >= self.alarm)?;
        let (contest, latency) = match measure {
            Measure::Errors => (&self.errors, None),
            Measure::FirstByte => (&self.first_byte.as_ref()?.contest, self.first_byte.as_ref()),
            Measure::Gap => (&self.gap.as_ref()?.contest, self.gap.as_ref()),
        };
        let stretch = contest.stretch();
        let quantile = latency.map(|_| LEVELS[contest.leader()]);
        let [guarded, against] = match (latency, quantile) {
            (Some(latency), Some(level)) => latency.compare(level),
            _ => [&stretch.guarded, &stretch.against].map(|tally| tally.share(0)),
        };
        let requests = stretch.guarded.count;
        let alarm = self.alarm;
        Some(Finding { measure, quantile, guarded, against, requests, evidence, alarm })
    }

    /// After a guarded request: a step up, if it is time.
    fn step(&mut self, now: Instant) -> Option<Verdict> {
        let held = self.held_by().is_some();
        let (stairs, steps) = (self.stairs.as_mut()?, self.settings.steps.as_ref()?);
        stairs.count();
        let (from, to) = stairs.next(steps)?;
        if held || !stairs.is_due(steps, now) {
            return None;
        }
        stairs.climb(now);
        self.reweighted(now + GRACE);
        Some(Verdict::Stepped { from, to })
    }

    /// The measure that forbids a step up.
    fn held_by(&self) -> Option<Measure> {
        self.evidence().find(|(_, evidence)| *evidence > HOLD).map(|(measure, _)| measure)
    }
}
