//! Identical requests that are under way at the same time, and the one call that they share.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use outrigger_config::validated as config;

use super::{Shelf, body_failure, expired, own::make, pour::Source, send};
use crate::{
    answers::{
        policy::{self, Unfit},
        shared::{End, Head, Joined, Listener, Shared},
    },
    deadline::{Expiry, Watchdog},
    gateway::call,
    outcome::Outcome,
    relay::Fault,
    request::{Failure, Request},
    snapshot::Route,
    stream::Kind,
    telemetry::metrics::SharedCall,
    upstream::Backend,
    wire::{BACKLOG, Downstream, Frame, ResponseHead, audience::Audience},
};

/// Those that share a call.
struct Listeners {
    shared: Arc<Shared>,
    settings: config::Answers,
}

impl Audience for Listeners {
    fn head(&mut self, head: &ResponseHead) {
        let private = !may_be_shared(head, &self.settings);
        self.shared.begin(Head { head: head.clone(), private });
    }

    fn frame(&mut self, frame: Frame) {
        match frame {
            Frame::Data(data) => self.shared.push(data),
            // They are of the endpoint's connection; what a client needs of them is in the body.
            Frame::Trailers(_) => {}
            Frame::End => self.shared.end(End::Whole),
        }
    }

    fn queued(&self) -> usize {
        self.shared.unheard()
    }

    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.poll_heard(BACKLOG, cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.poll_abandoned(cx)
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.shared.end(End::Dropped);
    }
}

/// Whether a response may go to several clients of one tenant that asked for the same. An error may: it is the same for
/// all of them.
fn may_be_shared(head: &ResponseHead, settings: &config::Answers) -> bool {
    let terms = policy::terms(200, &head.fields, settings);
    head.status != 101 && !matches!(terms, Err(Unfit::Forbidden | Unfit::Varies))
}

/// Answers the request by a call that others with the same request share.
pub(super) async fn together(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Arc<Route>,
    shelf: &Shelf,
    backend: Arc<Backend>,
) -> Result<Outcome, Failure> {
    let Some(mut listener) = join(request, route, shelf, &backend) else {
        return call(request, client, watchdog, route, backend).await;
    };
    let head = match heard_head(request, client, watchdog, &mut listener).await? {
        Ok(head) if !head.private || listener.is_first() => head,
        Err(End::Failed(outcome, detail)) => return Err(Failure::new(outcome, detail)),
        // It is not for others, or whoever made it is gone.
        Ok(_) | Err(End::Dropped | End::Whole) => {
            drop(listener);
            shelf.metrics.shared(SharedCall::Apart);
            return call(request, client, watchdog, route, backend).await;
        }
    };
    if !listener.is_first() {
        shelf.metrics.shared(SharedCall::Joined);
    }
    request.trail.shares_call = true;
    let head = own_head(request, &head, listener.is_first());
    let status = head.status;
    let kind = Kind::of(head.fields.get("content-type"), head.fields.get("content-encoding"));
    request.progress.begin_uncounted(kind);
    let sent = send(request, client, watchdog, route, head, Source::call(listener)).await;
    if sent.as_ref().is_err_and(|failure| failure.outcome == Outcome::ClientTimeout) {
        shelf.metrics.shared(SharedCall::TooSlow);
    }
    sent.map(|()| Outcome::of_upstream_status(status))
}

/// Joins the call for this request, or makes it.
fn join(
    request: &Request,
    route: &Arc<Route>,
    shelf: &Shelf,
    backend: &Arc<Backend>,
) -> Option<Listener> {
    let asked = request.asked.as_ref()?;
    // More than what waits for the fastest, so that nobody is cut who is not slow.
    let limit = usize::try_from(shelf.settings.max_answer).unwrap_or(usize::MAX).max(4 * BACKLOG);
    let (listener, shared) = match shelf.store.calls.join(&asked.key, &asked.proof, limit)? {
        Joined::Theirs(listener) => return Some(listener),
        Joined::Ours(listener, shared) => (listener, shared),
    };
    let settings = shelf.settings.clone();
    let listeners = Box::new(Listeners { shared: Arc::clone(&shared), settings });
    let (again, key, store) = (request.again(), asked.key, Arc::clone(&shelf.store));
    let (route, backend) = (Arc::clone(route), Arc::clone(backend));
    tokio::spawn(async move {
        let made = make(again, route, backend, listeners);
        if let Err(failure) = made.await {
            shared.end(End::Failed(failure.outcome, failure.detail));
        }
        store.calls.over(&key, &shared);
    });
    Some(listener)
}

/// Waits for the head of a shared call.
async fn heard_head(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    listener: &mut Listener,
) -> Result<Result<Arc<Head>, End>, Failure> {
    let total = request.allowed.until;
    let upload = &mut request.upload;
    let heard = poll_fn(|cx| {
        if let Poll::Ready(head) = listener.poll_head(cx) {
            return Poll::Ready(Ok(head));
        }
        if total.is_some_and(|total| watchdog.poll_until(total, cx).is_ready()) {
            return Poll::Ready(Err(Fault::Expired(Expiry::Total)));
        }
        upload.poll_watch(client, cx).map(Fault::from).map(Err)
    });
    heard.await.map_err(|fault| match fault {
        Fault::Expired(_) => expired(request, Expiry::Total),
        fault => body_failure(request, fault),
    })
}

/// The head of a shared call as this client gets it.
fn own_head(request: &Request, head: &Head, first: bool) -> ResponseHead {
    let mut own = head.head.clone();
    if own.fields.contains("x-request-id") {
        own.fields.set("x-request-id", &request.id);
    }
    if !head.private {
        // It is of one of them and nobody knows whose.
        own.fields.remove("set-cookie");
    }
    if !first {
        own.fields.append("cache-status", "outrigger; fwd=miss; collapsed");
    }
    own
}
