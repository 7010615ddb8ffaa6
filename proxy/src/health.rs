//! Active health checks: each endpoint is asked, at intervals, whether it can serve.
//!
//! An endpoint with a check starts unready and becomes ready with its first success. How many successes and failures
//! it takes later is [`threshold`]'s to say; this file asks.

pub mod threshold;
pub mod warm_up;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Method;
use outrigger_config::validated::{Health, HealthCheck, Protocol};

use crate::{
    chance, clock,
    endpoint::Endpoint,
    telemetry::metrics::Verdict,
    upstream::{connect, dial, fetch},
};
use threshold::{Change, Threshold, jittered};

/// Checks one endpoint until it is cancelled.
pub async fn watch(endpoint: Arc<Endpoint>, health: Health, protocol: Protocol) {
    let mut threshold = Threshold::new(health.healthy, health.unhealthy);
    if endpoint.readiness.is_checked() {
        // It was ready before this check began, under other settings perhaps; now it must stay so.
        threshold.observe(true);
    }
    loop {
        let start = clock::now();
        let verdict = check(&endpoint, &health, protocol).await;
        record(&endpoint, &mut threshold, verdict);
        let pause =
            jittered(health.interval, &mut chance::rng()).saturating_sub(clock::since(start));
        tokio::time::sleep(pause).await;
    }
}

fn record(endpoint: &Endpoint, threshold: &mut Threshold, verdict: Result<(), String>) {
    let (backend, name) = (&endpoint.backend, &endpoint.name);
    endpoint.metrics.checked(if verdict.is_ok() { Verdict::Success } else { Verdict::Failure });
    match threshold.observe(verdict.is_ok()) {
        Some(Change::Ready) => {
            endpoint.set_checked(true);
            tracing::info!(%backend, endpoint = name, "endpoint ready");
        }
        Some(Change::Unready) => {
            endpoint.set_checked(false);
            let reason = verdict.err().unwrap_or_default();
            tracing::warn!(%backend, endpoint = name, reason, "endpoint not ready");
        }
        None => {
            if let Err(reason) = verdict {
                tracing::debug!(%backend, endpoint = name, reason, "health check failed");
            }
        }
    }
}

async fn check(endpoint: &Endpoint, health: &Health, protocol: Protocol) -> Result<(), String> {
    let asked = async {
        match &health.check {
            HealthCheck::Tcp => {
                dial::tcp(endpoint.address).await.map(drop).map_err(|error| error.to_string())
            }
            HealthCheck::Http(path) => {
                let status = ask(endpoint, path, protocol, health.timeout).await?;
                match health.accepts(status) {
                    true => Ok(()),
                    false => Err(format!("answered {status}")),
                }
            }
        }
    };
    match tokio::time::timeout(health.timeout, asked).await {
        Ok(verdict) => verdict,
        Err(_) => Err(format!("no answer within {:?}", health.timeout)),
    }
}

/// The status of the endpoint's answer, on a connection of its own: a check must not be fooled by one that rests.
async fn ask(
    endpoint: &Endpoint,
    path: &str,
    protocol: Protocol,
    limit: Duration,
) -> Result<u16, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut upstream =
        connect::fresh(endpoint.address, protocol, Some(limit)).await.map_err(|e| text(&e))?;
    let body = Bytes::new();
    let head = fetch::head(Method::GET, endpoint, path, &body, "health");
    fetch::ask(&mut upstream, &head, body).await.map(|head| head.status).map_err(|e| text(&e))
}
