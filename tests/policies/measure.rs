//! What is told of a run.

use std::time::Duration;

use outrigger_tests::sim::engine::Reuse;

use crate::worlds::World;

/// A request that one of the balancers placed, and that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) arrived: Duration,
    pub(crate) first_byte: Duration,
    /// From the first token to the last one.
    pub(crate) rest: Duration,
    pub(crate) answer: u64,
}

impl Done {
    fn is_good(&self, world: &World) -> bool {
        let gaps = (self.answer - 1).max(1) as u32;
        self.first_byte <= world.first_byte && self.rest / gaps <= world.gap
    }
}

/// The figures of one run, or the mean of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// Half of the first bytes came within this time, in milliseconds.
    pub(crate) p50: f64,
    /// Of a hundred, ninety-nine.
    pub(crate) p99: f64,
    /// Requests per second whose answer was good.
    pub(crate) goodput: f64,
    /// How long the busiest engine was busy, over the mean.
    pub(crate) imbalance: f64,
    /// The share of prompt tokens that were in a cache.
    pub(crate) found: f64,
    /// The share of the time that the engines were busy with tokens.
    pub(crate) utilization: f64,
}

impl Figures {
    /// Those of the requests that came while `world` is measured.
    pub(crate) fn of(
        world: &World,
        done: &[Done],
        busy: &[f64],
        reuse: impl Iterator<Item = Reuse>,
    ) -> Self {
        let measured: Vec<&Done> =
            done.iter().filter(|done| done.arrived >= world.warm_up).collect();
        let mut times: Vec<Duration> = measured.iter().map(|done| done.first_byte).collect();
        times.sort_unstable();
        let good = measured.iter().filter(|done| done.is_good(world)).count();
        let (asked, found) =
            reuse.fold((0, 0), |(asked, found), of| (asked + of.asked, found + of.found));
        let mean = busy.iter().sum::<f64>() / busy.len() as f64;
        Self {
            p50: quantile(&times, 0.5),
            p99: quantile(&times, 0.99),
            goodput: good as f64 / world.measured.as_secs_f64(),
            imbalance: busy.iter().copied().fold(0.0, f64::max) / mean,
            found: found as f64 / asked as f64,
            utilization: mean / world.ends().as_secs_f64(),
        }
    }

    /// The mean of each figure; at least one run.
    pub(crate) fn mean(runs: &[Self]) -> Self {
        let mean =
            |figure: fn(&Self) -> f64| runs.iter().map(figure).sum::<f64>() / runs.len() as f64;
        Self {
            p50: mean(|run| run.p50),
            p99: mean(|run| run.p99),
            goodput: mean(|run| run.goodput),
            imbalance: mean(|run| run.imbalance),
            found: mean(|run| run.found),
            utilization: mean(|run| run.utilization),
        }
    }
}

/// In milliseconds; `sorted` is not empty.
fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share) as usize;
    sorted[rank.min(sorted.len() - 1)].as_secs_f64() * 1e3
}
