//! When an endpoint, or a whole backend, is left alone for a while.

use crate::check::{Checker, on};
use crate::read::tree::Node;
use crate::schema::{self, Switch};
use crate::validated::{Breaker, Ejection, Latency, Stall, SuccessRate};

impl Checker<'_> {
    pub(super) fn ejection(
        &mut self,
        node: &Node,
        ejection: &Switch<schema::Ejection>,
    ) -> Option<Ejection> {
        let ejection = on(ejection)?;
        let (base, max) = (ejection.base.0, ejection.max.0);
        self.ordered(node, ("base", base), ("max", max));
        Some(Ejection {
            failures: ejection.failures.0,
            base,
            max,
            jitter: ejection.jitter.0,
            max_share: ejection.max_share.0,
            success_rate: on(&ejection.success_rate).map(success_rate),
            latency: on(&ejection.latency).map(latency),
            stall: on(&ejection.stall).map(stall),
        })
    }

    pub(super) fn breaker(
        &mut self,
        node: &Node,
        breaker: &Switch<schema::Breaker>,
    ) -> Option<Breaker> {
        let breaker = on(breaker)?;
        let (base, max) = (breaker.base.0, breaker.max.0);
        self.ordered(node, ("base", base), ("max", max));
        Some(Breaker {
            failures: breaker.failures.0,
            attempts: breaker.attempts.0,
            window: breaker.window.0,
            base,
            max,
            jitter: breaker.jitter.0,
        })
    }
}

fn success_rate(written: &schema::SuccessRate) -> SuccessRate {
    let (requests, margin) = (written.requests.0, written.margin.0);
    SuccessRate { window: written.window.0, requests, margin }
}

fn latency(written: &schema::Latency) -> Latency {
    let (factor, requests) = (written.factor.0, written.requests.0);
    Latency { factor, window: written.window.0, requests }
}

fn stall(written: &schema::Stall) -> Stall {
    Stall { gaps: written.gaps.0, floor: written.floor.0 }
}
