//! The right to send a request to an endpoint, and the duty to say how it ended.

use std::ptr;
use std::sync::Arc;

use super::Outlier;

/// The right to send one request to an endpoint, and the duty to say how it ended.
///
/// Give it to [`Outlier::on_success`] or [`Outlier::on_failure`] of the same endpoint: a probe at
/// the first byte of the answer, since nobody else is let in before; an ordinary request at the
/// end, so that an endpoint whose answers break off is found out. A probe that is dropped without a
/// verdict, because the client went away, makes room for another one.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    probe: Option<Probe>,
}

impl Pass {
    /// A pass for a request that is sent whatever the state is, because nothing else is left. While
    /// the endpoint is ejected its verdict changes nothing.
    pub const fn ordinary() -> Self {
        Self { probe: None }
    }

    /// The pass of whoever holds the slot of the probe.
    pub(super) const fn probe(of: Arc<Outlier>) -> Self {
        Self { probe: Some(Probe { of, settled: false }) }
    }

    /// Whether this request is the probe of a half-open endpoint.
    pub const fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// A probe of another endpoint says nothing about this one.
    pub(super) fn is_probe_of(&self, outlier: &Outlier) -> bool {
        self.probe.as_ref().is_some_and(|probe| ptr::eq(&raw const *probe.of, outlier))
    }

    /// The verdict has been taken and the gate shows it.
    pub(super) fn settle(mut self) {
        if let Some(probe) = &mut self.probe {
            probe.settled = true;
        }
    }
}

/// The slot of the probe, given back on drop unless a verdict has settled what comes next.
#[derive(Debug)]
struct Probe {
    of: Arc<Outlier>,
    settled: bool,
}

impl Drop for Probe {
    fn drop(&mut self) {
        if !self.settled {
            self.of.give_probe_back();
        }
    }
}
