//! The life of a request, top to bottom.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    chance,
    deadline::Watchdog,
    outcome::Outcome,
    phase::{
        admit::admit,
        answer,
        ask::ask,
        attempt::{Attempts, Counted},
        batch::{self, Way},
        bound::{bound, turn_away},
        conclude::{conclude, follow_up},
        enter::enter,
        forward, respond,
        route::route,
    },
    proxy::Proxy,
    request::{Failure, Request},
    snapshot::{Action, Route},
    upstream::Backend,
    wire::{Downstream, audience::Audience},
};

/// Serves one request to its end, whatever that is: exactly one outcome is counted and logged, and given back.
pub async fn serve(
    proxy: &Proxy,
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    cut: &mut Cut,
) -> Outcome {
    let _in_flight = proxy.drain.enter();
    if proxy.drain.is_draining() {
        client.close_after_response();
    }
    trace(proxy, request);
    let ended = live_until_cut(request, client, watchdog, cut).await;
    let outcome = ended.as_ref().map_or_else(|failure| failure.outcome, |outcome| *outcome);
    request.admitted.leave(outcome, request.trail.status);
    let outcome = match ended {
        Ok(outcome) => outcome,
        Err(failure) => {
            if proxy.drain.is_draining() {
                client.close_after_response();
            }
            respond::failure(request, client, watchdog, &failure).await;
            tracing::debug!(
                id = request.id,
                outcome = failure.outcome.as_str(),
                detail = failure.detail
            );
            failure.outcome
        }
    };
    conclude(request, outcome, &proxy.access_log);
    outcome
}

/// What happens to the request is recorded, where requests are traced and this one is.
fn trace(proxy: &Proxy, request: &mut Request) {
    if let Some(tracer) = &proxy.tracer {
        request.trace = tracer.begin(&mut request.head.fields, &mut chance::rng());
    }
}

/// The moment at which requests in flight are cut, watched by one future for a whole connection.
pub struct Cut {
    future: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    over: bool,
}

impl Cut {
    /// Watches for the end of the drain.
    pub fn watch(proxy: &Proxy) -> Self {
        let mut cutting = proxy.drain.cutting();
        let future = Box::pin(async move {
            if cutting.wait_for(|cut| *cut).await.is_err() {
                // Nobody is left to say it.
                std::future::pending::<()>().await;
            }
        });
        Cut { future, over: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.over = self.over || self.future.as_mut().poll(cx).is_ready();
        if self.over { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Dropping what the request was doing gives everything back: its place, its connection.
async fn live_until_cut(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    cut: &mut Cut,
) -> Result<Outcome, Failure> {
    let mut life = std::pin::pin!(live(request, client, watchdog));
    std::future::poll_fn(|cx| match life.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(result),
        Poll::Pending => cut.poll(cx).map(|()| {
            Err(Failure::new(Outcome::DrainCut, "the proxy is shutting down and could not wait"))
        }),
    })
    .await
}

/// Answers a request whose head could not be understood.
pub async fn refuse(
    proxy: &Proxy,
    mut request: Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    failure: Failure,
) {
    trace(proxy, &mut request);
    respond::failure(&mut request, client, watchdog, &failure).await;
    conclude(&mut request, failure.outcome, &proxy.access_log);
}

async fn live(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
) -> Result<Outcome, Failure> {
    admit(request)?;
    let route = route(request, client, watchdog).await?;
    let _in_flight = Counted::new(&route.metrics.in_flight);
    match (&route.action, &request.arm) {
        (Action::Split(_), Some(backend)) => {
            let backend = Arc::clone(backend);
            bound(request, &route)?;
            match &route.answers {
                None => {
                    turn_away(request, &route)?;
                    call(request, client, watchdog, &route, backend).await
                }
                // On the heap, for the sake of the routes without it.
                Some(answers) => {
                    Box::pin(answer::serve(request, client, watchdog, &route, answers, backend))
                        .await
                }
            }
        }
        _ => respond::local(request, client, watchdog, &route.settings.action).await,
    }
}

/// Has the request answered by an endpoint of its arm.
///
/// # Errors
/// Why there is no complete response.
pub async fn call(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Arc<Route>,
    backend: Arc<Backend>,
) -> Result<Outcome, Failure> {
    enter(request, client, watchdog, route, &backend).await?;
    let mut rng = chance::rng();
    // Before the head is rewritten: keys are the client's.
    let ask = ask(request, client, watchdog, &backend).await?;
    forward::prepare(request, route, &mut rng);
    match batch::serve(request, client, watchdog, route, &backend).await? {
        Way::Answered(outcome) => {
            request.note(|trace| trace.event("answered in a batch", &[]));
            return Ok(outcome);
        }
        Way::Alone(solo) => request.solo = solo,
    }
    Attempts::new(request, client, watchdog, route, backend, ask, rng).run().await
}

/// Serves a request of our own, from its route on. It is neither counted nor logged as one of a client.
pub async fn own(mut request: Request, audience: Box<dyn Audience>) -> Result<Outcome, Failure> {
    let (mut client, mut watchdog) = (Downstream::own(audience), Watchdog::new());
    let result = live(&mut request, &mut client, &mut watchdog).await;
    let outcome = result.as_ref().map_or_else(|failure| failure.outcome, |outcome| *outcome);
    follow_up(&mut request, outcome);
    result
}
