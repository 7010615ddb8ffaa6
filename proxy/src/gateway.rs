//! The life of a request, top to bottom.

use rand::{SeedableRng, rngs::SmallRng};

use crate::{
    deadline::Watchdog,
    outcome::Outcome,
    phase::{
        admit::admit,
        attempt::{Attempts, Counted},
        conclude::conclude,
        respond,
        route::route,
    },
    proxy::Proxy,
    request::{Failure, Request},
    snapshot::Action,
    wire::Downstream,
};

/// Serves one request to its end, whatever that is: exactly one outcome is counted and logged.
pub async fn serve(
    proxy: &Proxy,
    mut request: Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
) {
    let _in_flight = proxy.drain.enter();
    if proxy.drain.is_draining() {
        client.close_after_response();
    }
    let outcome = match live(&mut request, client, watchdog).await {
        Ok(outcome) => outcome,
        Err(failure) => {
            respond::failure(&mut request, client, watchdog, &failure).await;
            tracing::debug!(
                id = request.id,
                outcome = failure.outcome.as_str(),
                detail = failure.detail
            );
            failure.outcome
        }
    };
    conclude(&request, outcome, &proxy.access_log);
}

/// Answers a request whose head could not be understood.
pub async fn refuse(
    proxy: &Proxy,
    mut request: Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    failure: Failure,
) {
    respond::failure(&mut request, client, watchdog, &failure).await;
    conclude(&request, failure.outcome, &proxy.access_log);
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
            let backend = std::sync::Arc::clone(backend);
            let rng = rng();
            let attempts = Attempts { request, client, watchdog, route: &route, backend, rng };
            attempts.run().await
        }
        _ => respond::local(request, client, watchdog, &route.settings.action).await,
    }
}

/// A generator for one request: cheap to make, and good enough for ties, jitter and ids.
pub fn rng() -> SmallRng {
    SmallRng::from_rng(&mut rand::rng())
}
