//! Calls of our own: what a request would have asked an endpoint for, with nobody or several in the place of its client.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::{Shelf, conclude_call};
use crate::{
    answers::{Key, Store},
    deadline::Watchdog,
    gateway::call,
    outcome::Outcome,
    request::{Failure, Request},
    snapshot::Route,
    telemetry::metrics::Refreshed,
    upstream::Backend,
    wire::{Downstream, Frame, ResponseHead, audience::Audience},
};

/// Fetches a new answer in the place of a stale one, unless that is being done, or too much of it.
pub(super) fn refresh(
    request: &Request,
    route: &Arc<Route>,
    shelf: &Shelf,
    backend: &Arc<Backend>,
) {
    let Some(asked) = &request.asked else { return };
    let most = request.snapshot.config.answers.refreshes;
    if !shelf.store.calls.refresh(asked.key, most) {
        return shelf.metrics.refreshed(Refreshed::Busy);
    }
    shelf.metrics.refreshed(Refreshed::Begun);
    let refreshing = Refreshing { store: Arc::clone(&shelf.store), key: asked.key };
    let (request, route, backend) = (request.again(), Arc::clone(route), Arc::clone(backend));
    tokio::spawn(async move {
        // What goes wrong with it is the endpoint's to be counted; the next request tries again.
        let _ = make(request, route, backend, Box::new(Nobody)).await;
        drop(refreshing);
    });
}

/// An answer that is being refreshed.
struct Refreshing {
    store: Arc<Store>,
    key: Key,
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.store.calls.refreshed(&self.key);
    }
}

/// Makes a call of our own for a request that has its route and its arm.
pub(super) async fn make(
    mut request: Request,
    route: Arc<Route>,
    backend: Arc<Backend>,
    audience: Box<dyn Audience>,
) -> Result<Outcome, Failure> {
    let (mut client, mut watchdog) = (Downstream::own(audience), Watchdog::new());
    let result = call(&mut request, &mut client, &mut watchdog, &route, backend).await;
    let outcome = result.as_ref().map_or_else(|failure| failure.outcome, |outcome| *outcome);
    conclude_call(&mut request, outcome);
    result
}

/// Nobody listens: the answer is only stored.
pub struct Nobody;

impl Audience for Nobody {
    fn head(&mut self, _: &ResponseHead) {}

    fn frame(&mut self, _: Frame) {}

    fn queued(&self) -> usize {
        0
    }

    fn poll_taken(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}
