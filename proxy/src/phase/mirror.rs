//! Copies of requests to another backend, whose answers are compared and thrown away.
//!
//! A copy is sent when its original has ended: then the whole body is known, nothing of the client's request waits for
//! it, and what became of the original is there to compare with. A copy that would be one too many, or whose body is too
//! long, is not made, and counted as that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use outrigger_config::validated as config;
use rand::{Rng, RngExt};

use crate::{
    balance::Ask,
    chance, clock,
    outcome::Outcome,
    request::Request,
    telemetry::metrics::{MirrorMetrics, MirrorResult},
    upstream::{
        Backend,
        backend::{Choice, Wanted},
        connect::{Reuse, connect},
        fetch::fetch,
    },
    wire::{BodyLength, RequestHead, hop::strip_hop_by_hop},
};

/// Says that a request is a copy.
const MIRRORED: &str = "x-outrigger-mirrored";
/// The most that the answer to a copy may have.
const MAX_ANSWER: usize = 64 << 20;

/// Where the copies of a route go.
pub struct Mirror {
    settings: config::Mirror,
    backend: Arc<Backend>,
    metrics: Arc<MirrorMetrics>,
    in_flight: AtomicUsize,
}

/// The head and the body of a request that is to be copied, as they went to the endpoint.
struct Copied {
    head: RequestHead,
    body: Bytes,
    status: u16,
    first_byte: Option<Duration>,
}

/// One copy under way.
struct Ticket(Arc<Mirror>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Mirror {
    /// Copies to this backend.
    pub fn new(
        settings: config::Mirror,
        backend: Arc<Backend>,
        metrics: Arc<MirrorMetrics>,
    ) -> Self {
        Mirror { settings, backend, metrics, in_flight: AtomicUsize::new(0) }
    }

    /// How many bytes of this request's body to keep for its copy; `None` when it is not drawn. What is a copy itself is
    /// not copied again: two that mirror to each other would do so for ever.
    pub fn draw(&self, head: &RequestHead, rng: &mut impl Rng) -> Option<u64> {
        let drawn = rng.random_bool(self.settings.share) && !head.fields.contains(MIRRORED);
        drawn.then_some(self.settings.body)
    }

    /// Whether this is what copies to `backend` under these settings.
    pub fn is_same(&self, settings: &config::Mirror, backend: &Arc<Backend>) -> bool {
        self.settings == *settings && Arc::ptr_eq(&self.backend, backend)
    }

    fn ticket(self: &Arc<Self>) -> Option<Ticket> {
        let before = self.in_flight.fetch_add(1, Relaxed);
        let ticket = Ticket(Arc::clone(self));
        (before < self.settings.max_in_flight).then_some(ticket)
    }

    /// Sends the copy of a request that has ended so, if it was drawn and answered by an endpoint.
    pub fn copy(self: &Arc<Self>, request: &mut Request, outcome: Outcome) {
        let Some(copy) = request.upload.take_copy() else { return };
        let (Some(status), true) = (request.trail.status, outcome.is_of_upstream()) else { return };
        let Some(body) = copy.filter(|_| request.upload.has_ended()) else {
            return self.metrics.ended(MirrorResult::TooLong);
        };
        let Some(ticket) = self.ticket() else {
            return self.metrics.ended(MirrorResult::TooMany);
        };
        let first_byte = request.progress.first_byte_after(request.start);
        let copied =
            Copied { head: copied_head(request, &body), body: joined(&body), status, first_byte };
        tokio::spawn(async move {
            let mirror = Arc::clone(&ticket.0);
            let sent = tokio::time::timeout(mirror.settings.timeout, mirror.send(copied));
            let how = sent.await.unwrap_or(MirrorResult::Failed);
            mirror.metrics.ended(how);
            drop(ticket);
        });
    }

    async fn send(&self, copied: Copied) -> MirrorResult {
        let start = clock::now();
        let ask = Ask {
            cost: crate::balance::Cost::of_prompt(copied.body.len() as u64),
            ..Ask::default()
        };
        let wanted = Wanted { ask: &ask, tried: &[], destinations: &[], hopped: false };
        let chosen = self.backend.choose(wanted, start, &mut chance::rng());
        let Choice::Taken(mut place) = chosen else { return MirrorResult::Failed };
        let endpoint = Arc::clone(place.endpoint());
        let protocol = self.backend.settings.protocol;
        let connected = connect(&endpoint, protocol, Reuse::Forbidden, Some(self.settings.timeout));
        let Ok((mut upstream, _)) = connected.await else {
            let failure = crate::outlier::Failure::ConnectRefused;
            endpoint.announce(place.failed(failure, &self.backend, clock::now()));
            return MirrorResult::Failed;
        };
        match fetch(&mut upstream, &copied.head, copied.body, MAX_ANSWER).await {
            Ok(answer) => {
                let first_byte = answer.first_byte.saturating_duration_since(start);
                endpoint.announce(place.first_byte(Some(first_byte), answer.first_byte));
                endpoint.announce(place.succeeded(clock::now()));
                self.metrics.compare(copied.first_byte, first_byte);
                if answer.status == copied.status {
                    MirrorResult::Same
                } else {
                    MirrorResult::Different
                }
            }
            Err(_) => MirrorResult::Failed,
        }
    }
}

/// The head that the endpoint of the original saw, for a body whose length is known.
fn copied_head(request: &Request, body: &[Bytes]) -> RequestHead {
    let mut head = request.head.clone();
    strip_hop_by_hop(&mut head.fields);
    head.fields.remove("content-length");
    head.fields.remove("te");
    // What the client had time for is over; a copy has a bound of its own.
    config::BudgetField::ALL.iter().for_each(|field| head.fields.remove(field.name()));
    head.fields.set(MIRRORED, "1");
    let length: usize = body.iter().map(Bytes::len).sum();
    head.body = if length == 0 { BodyLength::Empty } else { BodyLength::Exact(length as u64) };
    head
}

fn joined(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [one] => one.clone(),
        pieces => {
            let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            whole.freeze()
        }
    }
}
