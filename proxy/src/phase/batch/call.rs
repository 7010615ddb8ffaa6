//! The one call that a batch makes, on behalf of all its requests and none in particular.
//!
//! It goes where any of them would have gone alone: they have the same headers, and what the headers say of the way
//! holds for the batch. Nothing is tried again, since every request has attempts of its own. It goes on for as long as
//! one of them waits; when the last has left it is given up at once, so that the engine does not work for nobody.

use std::{
    future::Future,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::StatusCode;

use super::{Batched, Part, Seat};
use crate::{
    balance::{self, Cost},
    batch::{Batch, Cause, Ended, Verdict, merge, split},
    chance, clock,
    deadline::Answer,
    endpoint::Endpoint,
    learning::{Foresight, Learning},
    outcome::Outcome,
    outlier,
    phase::{ask::key, forward},
    relay::load_report,
    request::Request,
    snapshot::Route,
    upstream::{
        Backend,
        backend::{Choice, Place, Wanted},
        connect::{Reuse, connect, rest},
        fetch::{Fetched, fetch},
    },
    wire::{BodyLength, RequestHead},
};

/// The most that the answer to a batch may have.
const MAX_ANSWER: usize = 256 << 20;

/// What a call needs of the request that happens to make it.
struct Errand {
    head: RequestHead,
    key: Option<u64>,
    destinations: Vec<SocketAddr>,
    hopped: bool,
    learning: Option<Arc<Learning>>,
    route: Arc<Route>,
    backend: Arc<Backend>,
}

/// Sends a batch. One that is a single request is none: it is left to go by itself.
pub(super) fn send(
    batch: Batch<Seat>,
    request: &Request,
    route: &Arc<Route>,
    backend: &Arc<Backend>,
) {
    let Some(batcher) = route.batcher.clone() else { return };
    if batch.items.len() == 1 {
        batcher.metrics.counted(Batched::Alone, 1);
        return batcher.lobby.lock().finished(batch.call, Ended::Failed, clock::now());
    }
    let mut head = request.head.clone();
    request.allowed.tell(&mut head.fields, route);
    let errand = Errand {
        head,
        learning: request.learning.clone(),
        key: key(request, backend),
        destinations: forward::destinations(&request.head.fields, backend),
        hopped: forward::has_hopped(&request.head.fields),
        route: Arc::clone(route),
        backend: Arc::clone(backend),
    };
    tokio::spawn(async move {
        let start = clock::now();
        let (mut seats, call) = (batch.items, batch.call);
        let Some(merged) = merge(seats.iter().map(|seat| &seat.ask)) else { return };
        let answer = errand.run(merged.body, all_left(&mut seats)).await;
        let verdict = answer.as_ref().ok().map(|(answer, _)| {
            let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
            split(&merged.plan, status, &answer.body)
        });
        let ended = ended(verdict.as_ref(), start);
        batcher.lobby.lock().finished(call, ended, clock::now());
        let how = match (&answer, ended) {
            (_, Ended::Answered(_)) => Batched::Together,
            (Err(Outcome::ClientGone), _) => Batched::GivenUp,
            _ => Batched::SentAgain,
        };
        batcher.metrics.counted(how, seats.len() as u64);
        batcher.metrics.batches.inc();
        if let (Ok((answer, endpoint)), Some(verdict)) = (answer, verdict) {
            deal_out(seats, &answer, &endpoint, verdict);
        }
    });
}

/// Ready when nobody waits for an answer any more: who leaves does not come back, so they may be asked one after the other.
async fn all_left(seats: &mut [Seat]) {
    for seat in seats {
        seat.answer.closed().await;
    }
}

fn ended(verdict: Option<&Verdict>, start: Instant) -> Ended {
    match verdict {
        Some(Verdict::Split(_) | Verdict::Same) => Ended::Answered(clock::since(start)),
        // A server that is busy may well take batches.
        Some(Verdict::RetryAlone(Cause::Unavailable)) | None => Ended::Failed,
        Some(Verdict::RetryAlone(cause)) => {
            tracing::debug!(reason = cause.as_str(), "batch not usable");
            Ended::RetryAlone
        }
    }
}

/// Gives each request its part. A seat that is dropped instead goes by itself.
fn deal_out(seats: Vec<Seat>, answer: &Fetched, endpoint: &Arc<Endpoint>, verdict: Verdict) {
    let mut fields = answer.fields.clone();
    // It is of one of them and nobody knows whose.
    fields.remove("set-cookie");
    let part = |body: Bytes| Part {
        status: answer.status,
        fields: fields.clone(),
        body,
        endpoint: Arc::clone(endpoint),
    };
    match verdict {
        Verdict::Split(bodies) => {
            for (seat, body) in seats.into_iter().zip(bodies) {
                // Its client may be gone.
                let _ = seat.answer.send(part(body));
            }
        }
        Verdict::Same => {
            for seat in seats {
                let _ = seat.answer.send(part(answer.body.clone()));
            }
        }
        Verdict::RetryAlone(_) => {}
    }
}

impl Errand {
    /// Makes the call, unless `all_left` is ready before.
    async fn run(
        &self,
        body: Bytes,
        all_left: impl Future<Output = ()>,
    ) -> Result<(Fetched, Arc<Endpoint>), Outcome> {
        let start = clock::now();
        let cost = Cost::of_prompt(body.len() as u64);
        let ask = balance::Ask { cost, key: self.key, ..Default::default() };
        let (destinations, hopped) = (&*self.destinations, self.hopped);
        let wanted = Wanted { ask: &ask, tried: &[], destinations, hopped };
        let chosen = self.backend.choose(wanted, start, &mut chance::rng());
        let Choice::Taken(mut place) = chosen else { return Err(Outcome::NoEndpoint) };
        let endpoint = Arc::clone(place.endpoint());
        let head = self.head_to(&place, body.len());
        let whole = Answer::Whole { most: None };
        let foresight =
            self.learning.as_ref().map(|learning| learning.foresee(&place, whole, start));
        let learned = foresight.as_ref().and_then(Foresight::first_byte);
        let limit = learned.or(self.route.settings.deadline.first_byte.longest());
        let answer = tokio::select! {
            biased;
            () = all_left => None,
            answer = bounded(limit, self.exchange(&endpoint, &head, body)) => Some(answer),
        };
        match answer {
            Some(Ok(answer)) => {
                let good = (200..300).contains(&answer.status);
                let after = good.then(|| answer.first_byte.saturating_duration_since(start));
                if let (Some(after), Some(foresight)) = (after, &foresight) {
                    foresight.served(&place, after, answer.first_byte);
                }
                endpoint.announce(place.first_byte(after, answer.first_byte));
                endpoint.metrics.ended(Outcome::of_upstream_status(answer.status));
                judge(&mut place, &self.backend, answer.status);
                Ok((answer, endpoint))
            }
            Some(Err((outcome, failure))) => {
                let now = clock::now();
                if let (Outcome::FirstByteTimeout, Some(foresight)) = (outcome, &foresight) {
                    foresight.cut_off(&place, now - start, now);
                }
                endpoint.metrics.ended(outcome);
                endpoint.announce(place.failed(failure, &self.backend, clock::now()));
                Err(outcome)
            }
            // The connection, or the stream on it, was dropped with the exchange, which tells the endpoint to stop.
            None => {
                endpoint.metrics.ended(Outcome::ClientGone);
                Err(Outcome::ClientGone)
            }
        }
    }

    fn head_to(&self, place: &Place, length: usize) -> RequestHead {
        let mut head = self.head.clone();
        // The answer is to be read here.
        head.fields.remove("accept-encoding");
        head.fields.remove("content-length");
        head.body = BodyLength::Exact(length as u64);
        load_report::ask(&mut head.fields, &self.backend.settings.signals);
        forward::mark_hop(&mut head.fields, place, self.hopped);
        head
    }

    async fn exchange(
        &self,
        endpoint: &Endpoint,
        head: &RequestHead,
        body: Bytes,
    ) -> Result<Fetched, Missed> {
        let settings = &self.backend.settings;
        let limit = self.route.settings.deadline.connect.longest();
        let (mut upstream, how) = connect(endpoint, settings.protocol, Reuse::Allowed, limit)
            .await
            .map_err(|_| (Outcome::ConnectFailed, outlier::Failure::ConnectRefused))?;
        self.backend.metrics.connection(how);
        let reset = |_| (Outcome::UpstreamReset, outlier::Failure::Reset);
        let answer = fetch(&mut upstream, head, body, MAX_ANSWER).await.map_err(reset)?;
        rest(upstream, endpoint, settings);
        if settings.signals.orca {
            load_report::learn(&answer.fields, endpoint);
        }
        Ok(answer)
    }
}

fn judge(place: &mut Place, backend: &Backend, status: u16) {
    let now = clock::now();
    let transition = match status {
        500 | 502 | 504 => place.failed(outlier::Failure::ServerError, backend, now),
        _ => place.succeeded(now),
    };
    place.endpoint().announce(transition);
}

type Missed = (Outcome, outlier::Failure);

async fn bounded<T>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Missed>>,
) -> Result<T, Missed> {
    let late = (Outcome::FirstByteTimeout, outlier::Failure::FirstByteTimeout);
    match limit {
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or(Err(late)),
        None => work.await,
    }
}
