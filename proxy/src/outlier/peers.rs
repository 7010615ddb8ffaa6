//! Endpoints that do worse than their peers: they fail more often, or answer more slowly.
//!
//! No row of failures shows an endpoint that fails every third request, and nothing at all shows
//! one that answers well and five times too late. What does is the comparison with the other
//! endpoints of its backend, which get the same requests. Each endpoint has a [`Window`] that
//! counts the last seconds; [`judge`], called each second with a [`Sample`] of every endpoint in
//! service, names the outliers.
//!
//! - **Success rate.** The share of failures is more than `margin` above that of the peers taken
//!   together.
//! - **Latency.** The median of the first byte per prompt token is more than `factor` times the
//!   median of the peers' medians. Per token of all the prompts that the endpoint had to read, this
//!   one's included: first bytes of endpoints that are unequally busy, or that get unequal prompts,
//!   can not be compared. This measure stays within a factor of two from an idle engine to one
//!   that is far beyond its capacity (simulated), while first bytes per load, running requests
//!   included, make an idle engine look slower than one that is busy and five times slower.
//!
//! **Both must be significant.** Twenty requests are enough to be judged by and few enough for
//! chance to play with. Fisher's exact test, one-sided, says how likely it is that equal endpoints
//! differ so much: for the success rate of failures and successes here and there, for the latency
//! of first bytes above and below the median of all (Mood's median test). The verdict needs less
//! than [`LEVEL`]; it is small because an endpoint is judged 86,400 times a day.
//!
//! There are no shares of the mean and no standard deviations as in Envoy (`success_rate_stdev_factor`
//! 1.9): of two endpoints neither can be further than one standard deviation from their mean. Here
//! two are enough, each being compared with the other. One alone has no peers, and when all are
//! equally bad none is an outlier.
//!
//! Left out: what follows from a verdict ([`super::Outlier::eject`]), among other things how many
//! may be out at once.

mod fisher;
mod histogram;
mod window;

use std::time::Duration;

use super::Reason;
use fisher::Table;

pub use histogram::Histogram;
pub use window::{Sample, Window};

/// How likely equal endpoints may look as different as these do.
pub const LEVEL: f64 = 1e-4;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How often requests fail; `None` = not compared.
    pub success_rate: Option<SuccessRate>,
    /// How soon answers begin; `None` = not compared.
    pub latency: Option<Latency>,
}

/// When an endpoint fails too often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// How far back; the last tenth of it may be missing.
    pub window: Duration,
    /// Of an endpoint, and of its peers together, so many requests must have ended in the window.
    pub requests: u32,
    /// Its share of failures may be so much above that of its peers; 0.0 to 1.0.
    pub margin: f64,
}

/// When an endpoint is too slow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// How far back; the last tenth of it may be missing.
    pub window: Duration,
    /// Of an endpoint, and of each peer that it is compared with, so many answers must have begun
    /// in the window.
    pub requests: u32,
    /// Its median may be so many times that of its peers; above 1.0.
    pub factor: f64,
}

/// An endpoint that does worse than its peers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Which of the samples.
    pub endpoint: usize,
    /// In what: [`Reason::SuccessRate`] or [`Reason::Latency`].
    pub reason: Reason,
    /// What it does: its share of failures, or seconds to the first byte per thousand prompt
    /// tokens.
    pub own: f64,
    /// What its peers do, likewise.
    pub peers: f64,
}

/// The outliers among endpoints that are in service, worst first; each at most once.
pub fn judge(samples: &[Sample], settings: &Settings) -> Vec<Verdict> {
    let mut failing = settings.success_rate.map_or(Vec::new(), |rate| failing(samples, &rate));
    failing.sort_by(|a, b| (b.own - b.peers).total_cmp(&(a.own - a.peers)));
    let mut slow = settings.latency.map_or(Vec::new(), |latency| slow(samples, &latency));
    slow.retain(|slow| failing.iter().all(|failing| failing.endpoint != slow.endpoint));
    slow.sort_by(|a, b| (b.own / b.peers).total_cmp(&(a.own / a.peers)));
    failing.append(&mut slow);
    failing
}

fn failing(samples: &[Sample], settings: &SuccessRate) -> Vec<Verdict> {
    let all = samples.iter().fold(Table::default(), |all, sample| Table {
        peers_bad: all.peers_bad + u64::from(sample.failures),
        peers_all: all.peers_all + u64::from(sample.ended()),
        ..all
    });
    let verdict = |(endpoint, sample): (usize, &Sample)| {
        let (own_bad, own_all) = (u64::from(sample.failures), u64::from(sample.ended()));
        let table = Table {
            own_bad,
            own_all,
            peers_bad: all.peers_bad - own_bad,
            peers_all: all.peers_all - own_all,
        };
        let needed = u64::from(settings.requests.max(1));
        let enough = table.own_all >= needed && table.peers_all >= needed;
        let (own, peers) = (table.own_share(), table.peers_share());
        let worse = enough && own - peers > settings.margin && table.chance() < LEVEL;
        worse.then_some(Verdict { endpoint, reason: Reason::SuccessRate, own, peers })
    };
    samples.iter().enumerate().filter_map(verdict).collect()
}

fn slow(samples: &[Sample], settings: &Latency) -> Vec<Verdict> {
    let needed = u64::from(settings.requests.max(1));
    let judged: Vec<_> = (samples.iter().map(|sample| &sample.first_bytes).enumerate())
        .filter(|(_, first_bytes)| first_bytes.total() >= needed)
        .filter_map(|(endpoint, first_bytes)| Some((endpoint, first_bytes, first_bytes.median()?)))
        .collect();
    let verdict = |&(endpoint, own, median): &(usize, &Histogram, f64)| {
        let peers = || judged.iter().filter(|peer| peer.0 != endpoint);
        let of_peers = median_of(peers().map(|peer| peer.2).collect())?;
        let far = median > settings.factor * of_peers;
        let worse = far && later(own, peers().map(|peer| peer.1)).chance() < LEVEL;
        let seconds = 1e-6;
        let (own, peers) = (median * seconds, of_peers * seconds);
        worse.then_some(Verdict { endpoint, reason: Reason::Latency, own, peers })
    };
    judged.iter().filter_map(verdict).collect()
}

/// How many first bytes came later than the median of all, here and there.
fn later<'a>(own: &Histogram, peers: impl Iterator<Item = &'a Histogram>) -> Table {
    let mut others = Histogram::default();
    peers.for_each(|peer| others.add(peer));
    let mut all = others.clone();
    all.add(own);
    let middle = all.middle();
    Table {
        own_bad: own.above(middle),
        own_all: own.total(),
        peers_bad: others.above(middle),
        peers_all: others.total(),
    }
}

/// The middle one, or the mean of the two in the middle.
fn median_of(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values[low] + values[high]) / 2.0)
}

#[cfg(test)]
mod tests;
