//! What the engines and the proxy say of themselves, and waiting for it.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::stage::{Engine, Stage};
use crate::demo::http;
use crate::demo::scrape::Scrape;

/// How often a program that cannot call back is asked.
const GLANCE: Duration = Duration::from_millis(5);

/// For whatever takes milliseconds on a machine that has nothing else to do.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// Asks until it holds; how long that took.
///
/// # Errors
/// When it does not hold within `limit`.
pub(super) fn eventually(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let started = Instant::now();
    while !holds().with_context(|| format!("waiting until {what}"))? {
        if started.elapsed() > limit {
            bail!("not within {limit:?}: {what}");
        }
        thread::sleep(GLANCE);
    }
    Ok(started.elapsed())
}

impl Engine {
    /// Requests that have a slot.
    pub(super) fn processing(&self) -> Result<u64> {
        self.metric("llamacpp:requests_processing")
    }

    /// Requests that wait for a slot.
    pub(super) fn deferred(&self) -> Result<u64> {
        self.metric("llamacpp:requests_deferred")
    }

    /// Tokens that it has written since it started. Counted when a request ends.
    pub(super) fn predicted(&self) -> Result<u64> {
        self.metric("llamacpp:tokens_predicted_total")
    }

    fn metric(&self, name: &str) -> Result<u64> {
        Ok(scrape(self.address)?.sum(name, &[]) as u64)
    }
}

impl Stage {
    pub(super) fn metrics(&self) -> Result<Scrape> {
        scrape(self.proxy.admin)
    }

    /// What the proxy has counted once the kernel has told its part of every request that has ended.
    pub(super) fn metrics_with_timelines(&self) -> Result<Scrape> {
        let mut now = Scrape::default();
        eventually("every request has a timeline", SOON, || {
            now = self.metrics()?;
            let requests = now.sum("outrigger_endpoint_requests_total", &[]);
            Ok(now.sum("outrigger_app_timelines_total", &[]) == requests)
        })?;
        Ok(now)
    }

    /// What the proxy has counted since `earlier`, as soon as that is as expected. The last byte of an answer arrives
    /// a moment before the request is counted.
    pub(super) fn counted(
        &self,
        what: &str,
        earlier: &Scrape,
        expected: impl Fn(&Scrape) -> bool,
    ) -> Result<Scrape> {
        let mut since = Scrape::default();
        eventually(what, SOON, || {
            since = self.metrics()?.since(earlier);
            Ok(expected(&since))
        })?;
        Ok(since)
    }
}

fn scrape(address: SocketAddr) -> Result<Scrape> {
    let answer = http::get(address, "/metrics")?;
    match answer.status {
        200 => Ok(Scrape::parse(&answer.body)),
        status => bail!("{address} answered /metrics with {status}"),
    }
}
