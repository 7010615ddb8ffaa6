//! Whether the request may enter now: is it allowed to come so fast, is there a place for it, and if not, may it wait.
//!
//! A request first passes what stands in front of its route, then what stands in front of its backend. While it waits its
//! client is watched and its total deadline runs; when either ends it leaves the queue in that moment. The places are
//! given back when it has ended ([`Admitted`]).
//!
//! Where neither route nor backend limits anything this looks at two pointers.

use std::{future::poll_fn, task::Poll, time::Duration};

use rand::RngExt;

use super::{attempt::expired, route::body_failure};
use crate::{
    admission::{
        Admitted,
        gate::{Entry, Gate, Permit, Waiting},
        queue::Asked,
        rate::{Excess, Refused},
        rules::{self, Exceeded, Whose},
    },
    balance::Cost,
    chance, clock,
    deadline::{Expiry, Watchdog},
    outcome::Outcome,
    relay::Fault,
    request::{Failure, Request, Retry},
    snapshot::Route,
    telemetry::metrics::{Rejection, Scope},
    tenant::Tenant,
    upstream::Backend,
    wire::{BodyLength, Downstream},
};

/// Lets the request in, at once or after it has waited.
///
/// # Errors
/// [`Outcome::RateLimited`]; [`Outcome::Overloaded`], [`Outcome::QueueFull`], [`Outcome::QueueTimeout`],
/// [`Outcome::Shed`]; and what can happen while it waits.
pub async fn enter(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Route,
    backend: &Backend,
) -> Result<(), Failure> {
    if !route.rules.is_empty() {
        charge(request, route)?;
    }
    if route.gate.is_none() && backend.gate.is_none() {
        return Ok(());
    }
    if let Some(priority) = &route.settings.priority {
        request.admitted.class = priority.class(request.head.fields.get(&priority.header));
    }
    let hall = Hall { name: &route.settings.name, scope: Scope::Route };
    if let Some(gate) = &route.gate {
        let entry = gate.enter_or_wait(asked(request, false), clock::now());
        let permit = hall.pass(gate, entry, request, client, watchdog).await?;
        request.admitted.route = Some(permit);
    }
    if let Some(gate) = &backend.gate {
        let entry = gate.enter_or_wait(asked(request, false), clock::now());
        let hall = Hall { name: &backend.name, scope: Scope::Backend };
        let permit = hall.pass(gate, entry, request, client, watchdog).await?;
        request.admitted.backend = Some(permit);
    }
    Ok(())
}

/// Every endpoint was found full since `freed` was asked: gives the place in front of the backend back and waits for
/// another turn.
///
/// # Errors
/// As [`enter`].
pub async fn wait_for_place(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    backend: &Backend,
    (gate, freed): (&std::sync::Arc<Gate>, u64),
) -> Result<(), Failure> {
    if let Some(mut permit) = request.admitted.backend.take() {
        permit.looked();
    }
    let entry = gate.wait_for_place(asked(request, true), freed, clock::now());
    let hall = Hall { name: &backend.name, scope: Scope::Backend };
    let permit = hall.pass(gate, entry, request, client, watchdog).await?;
    request.admitted.backend = Some(permit);
    Ok(())
}

fn asked(request: &Request, again: bool) -> Asked {
    Asked {
        class: request.admitted.class,
        deadline: request.allowed.until,
        again: request.admitted.seat.filter(|_| again),
    }
}

/// Where a request waits, and what it is called when it is turned away.
#[derive(Clone, Copy)]
struct Hall<'a> {
    name: &'a str,
    scope: Scope,
}

impl Hall<'_> {
    async fn pass(
        self,
        gate: &std::sync::Arc<Gate>,
        entry: Entry,
        request: &mut Request,
        client: &mut Downstream<'_>,
        watchdog: &mut Watchdog,
    ) -> Result<Permit, Failure> {
        match entry {
            Entry::Permit(permit) => Ok(permit),
            Entry::Rejected(rejection) => Err(self.rejected(gate, rejection)),
            // Apart, so that requests that need not wait have no room for it.
            Entry::Waiting(waiting) => {
                Box::pin(self.wait(gate, waiting, request, client, watchdog)).await
            }
        }
    }

    async fn wait(
        self,
        gate: &std::sync::Arc<Gate>,
        mut waiting: Waiting,
        request: &mut Request,
        client: &mut Downstream<'_>,
        watchdog: &mut Watchdog,
    ) -> Result<Permit, Failure> {
        let start = clock::now();
        if self.scope == Scope::Backend {
            request.admitted.seat = Some(waiting.ticket());
        }
        let upload = &mut request.upload;
        let turn = poll_fn(|cx| match waiting.poll(watchdog, cx) {
            Poll::Ready(turn) => Poll::Ready(Ok(turn)),
            Poll::Pending => upload.poll_watch(client, cx).map(Fault::from).map(Err),
        })
        .await;
        let waited = clock::since(start);
        *request.trail.queued.get_or_insert(Duration::ZERO) += waited;
        request.note(|trace| trace.waited(self.scope, self.name, start));
        match turn {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) if request.allowed.left(clock::now()).is_some_and(|left| left.is_zero()) => {
                Err(expired(request, Expiry::Total))
            }
            Ok(Err(rejection)) => Err(self.rejected(gate, rejection)),
            Err(fault) => Err(body_failure(request, fault)),
        }
    }

    fn rejected(self, gate: &Gate, rejection: Rejection) -> Failure {
        let (what, name) = (self.scope.as_str(), self.name);
        let (outcome, why) = match rejection {
            Rejection::Overloaded => (Outcome::Overloaded, "has as many requests as it may have"),
            Rejection::QueueFull => (Outcome::QueueFull, "has a full queue"),
            Rejection::QueueTimeout => (Outcome::QueueTimeout, "had no place in time"),
            Rejection::Shed => (Outcome::Shed, "has more requests than it can serve in time"),
        };
        let after = gate.retry_after(chance::rng().random(), clock::now());
        Failure::new(outcome, format!("{what} {name} {why}")).retry(Retry::After(after))
    }
}

/// Charges it by the rules of its route.
fn charge(request: &mut Request, route: &Route) -> Result<(), Failure> {
    let prompt = Cost::tokens_of(match request.head.body {
        BodyLength::Exact(bytes) => bytes,
        BodyLength::Empty | BodyLength::Unknown => request.upload.received(),
    });
    let tenant = Tenant::of(&request.head.fields, &request.snapshot.config.tenant.header);
    let whose = Whose { tenant: &tenant, model: request.model.as_deref().unwrap_or("") };
    match rules::charge(&route.rules, whose, prompt, clock::now()) {
        Ok(bill) => {
            request.admitted.bill = Some(Box::new(bill));
            Ok(())
        }
        Err(exceeded) => Err(too_fast(&mut request.admitted, &exceeded)),
    }
}

fn too_fast(admitted: &mut Admitted, exceeded: &Exceeded) -> Failure {
    admitted.refused = Some(Box::new(exceeded.standing));
    let what = match exceeded.excess {
        Excess::Requests(_) => "requests",
        Excess::Tokens(_) => "tokens",
    };
    let per = exceeded.per.name();
    let (detail, retry) = match exceeded.refused() {
        Refused::For(after) => {
            (format!("the allowance of {what} of this {per} is used up"), Retry::After(after))
        }
        Refused::Forever => (
            format!("it alone has more {what} than this {per} may ever have at once"),
            Retry::Never,
        ),
    };
    Failure::new(Outcome::RateLimited, detail).retry(retry)
}
