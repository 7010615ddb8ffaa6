//! Warming an endpoint up: real requests, run to their end, before the first client's request is sent there.
//!
//! An engine whose `/health` answers can still be minutes away from its usual speed: kernels are compiled, graphs
//! captured and caches filled by the first requests of their kind. Those should be ours. What is sent is configured,
//! since only the user knows which shapes matter.
//!
//! Left out: when an endpoint is cold; that is said by whoever finds it new, unready or ejected.

use std::{fmt::Display, sync::Arc, time::Duration};

use bytes::Bytes;
use outrigger_config::validated::{Protocol, WarmUp, WarmUpRequest};

use crate::{
    clock,
    endpoint::Endpoint,
    telemetry::metrics::Verdict,
    upstream::{
        connect,
        fetch::{self, fetch},
    },
};

/// The most that an answer may have; it is read and thrown away.
const MAX_ANSWER: usize = 64 << 20;

/// Warms the endpoint up whenever it is cold, until it is cancelled.
pub async fn watch(endpoint: Arc<Endpoint>, settings: WarmUp, protocol: Protocol) {
    loop {
        let chill = endpoint.readiness.wants_warm_up().await;
        let (backend, name) = (&endpoint.backend, &endpoint.name);
        let start = clock::now();
        tracing::info!(%backend, endpoint = name, requests = settings.requests.len(), "warming up");
        match run(&endpoint, &settings, protocol).await {
            Ok(()) => {
                endpoint.metrics.warmed_up(Verdict::Success);
                let warm = endpoint.warmed_up(chill);
                tracing::info!(%backend, endpoint = name, took = ?clock::since(start), warm, "warmed up");
            }
            Err(reason) => {
                endpoint.metrics.warmed_up(Verdict::Failure);
                tracing::warn!(%backend, endpoint = name, reason, "warm-up failed, it is tried again");
                tokio::time::sleep(settings.retry).await;
            }
        }
    }
}

async fn run(endpoint: &Endpoint, settings: &WarmUp, protocol: Protocol) -> Result<(), String> {
    for request in &settings.requests {
        for _ in 0..request.repeat {
            one(endpoint, request, settings.timeout, protocol).await?;
        }
    }
    Ok(())
}

async fn one(
    endpoint: &Endpoint,
    request: &WarmUpRequest,
    timeout: Duration,
    protocol: Protocol,
) -> Result<(), String> {
    let text = |error: &dyn Display| format!("{} {}: {error}", request.method, request.path);
    let method = http::Method::from_bytes(request.method.as_bytes()).map_err(|e| text(&e))?;
    let body = Bytes::copy_from_slice(request.body.as_bytes());
    let mut head = fetch::head(method, endpoint, &request.path, &body, "warm-up");
    for (name, value) in &request.headers {
        head.fields.set(name, value);
    }
    let asked = async {
        let mut upstream = connect::fresh(endpoint.address, protocol, Some(timeout))
            .await
            .map_err(|error| text(&error))?;
        fetch(&mut upstream, &head, body, MAX_ANSWER).await.map_err(|error| text(&error))
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(Ok(answer)) if (200..300).contains(&answer.status) => Ok(()),
        Ok(Ok(answer)) => Err(text(&format_args!("answered {}", answer.status))),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(text(&format_args!("no whole answer within {timeout:?}"))),
    }
}
