//! Reading an engine's own load from its metrics page, at a bounded cost: one endpoint, one page at a time, only the
//! needed names, and never on a thread that carries traffic.
//!
//! An endpoint that does not answer keeps its old values, which fade with their age; unknown is not idle.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Method;
use outrigger_config::validated::{self as config, Protocol, Scrape};

use super::told::Told;
use crate::{
    balance::reported::Source,
    chance, clock,
    endpoint::Endpoint,
    health::threshold::jittered,
    signal::engine::{Engine, Reader},
    telemetry::metrics::Verdict,
    upstream::{connect, fetch},
    wire::{Frame, Side},
};

/// The most that is read of one page.
const MAX_PAGE: usize = 8 << 20;
/// A page that takes longer says little about now.
const PATIENCE: Duration = Duration::from_secs(2);

/// Scrapes one endpoint until it is cancelled.
pub(super) async fn watch(endpoint: Arc<Endpoint>, settings: Scrape, protocol: Protocol) {
    let mut told = Told::default();
    loop {
        let start = clock::now();
        let result =
            match tokio::time::timeout(PATIENCE, scrape(&endpoint, &settings, protocol)).await {
                Ok(result) => result,
                Err(_) => Err(format!("no page within {PATIENCE:?}")),
            };
        endpoint.metrics.scraped(if result.is_ok() { Verdict::Success } else { Verdict::Failure });
        tell_news(&endpoint, &mut told, &result);
        let pause = jittered(settings.interval, &mut chance::rng());
        tokio::time::sleep(pause.saturating_sub(clock::since(start))).await;
    }
}

/// Says what changed, not what is as it was.
fn tell_news(endpoint: &Endpoint, told: &mut Told, result: &Result<&'static str, String>) {
    if !told.is_news(result) {
        return;
    }
    let (backend, name) = (&endpoint.backend, &endpoint.name);
    match result {
        Ok(engine) => {
            tracing::info!(%backend, endpoint = name, engine, "reading the engine's load");
        }
        Err(reason) => {
            tracing::warn!(%backend, endpoint = name, reason, "the engine's load is not known");
        }
    }
}

async fn scrape(
    endpoint: &Endpoint,
    settings: &Scrape,
    protocol: Protocol,
) -> Result<&'static str, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let address =
        SocketAddr::new(endpoint.address.ip(), settings.port.unwrap_or(endpoint.address.port()));
    let mut upstream =
        connect::fresh(address, protocol, Some(PATIENCE)).await.map_err(|e| text(&e))?;
    let body = Bytes::new();
    let head = fetch::head(Method::GET, endpoint, &settings.path, &body, "load");
    let answer = fetch::ask(&mut upstream, &head, body).await.map_err(|e| text(&e))?;
    if answer.status != 200 {
        return Err(format!("{} answered {}", settings.path, answer.status));
    }
    // Counted while the page is on its way: what of the engine's load is ours.
    let own = endpoint.in_flight();
    let mut reader = Reader::new(expected(settings.engine));
    let mut left = MAX_PAGE;
    while let Frame::Data(data) =
        poll_fn(|cx| upstream.poll_frame(cx)).await.map_err(|e| text(&e))?
    {
        left = left.checked_sub(data.len()).ok_or_else(|| format!("more than {MAX_PAGE} bytes"))?;
        reader.feed(&data);
    }
    let reading = reader.finish().map_err(|e| text(&e))?;
    endpoint.learn(&reading.report, Source::Scrape, own);
    Ok(reading.engine.name())
}

fn expected(engine: config::Engine) -> Option<Engine> {
    match engine {
        config::Engine::Auto => None,
        config::Engine::Vllm => Some(Engine::Vllm),
        config::Engine::Sglang => Some(Engine::Sglang),
        config::Engine::Tgi => Some(Engine::Tgi),
        config::Engine::LlamaCpp => Some(Engine::LlamaCpp),
        config::Engine::TensorrtLlm => Some(Engine::TensorrtLlm),
        config::Engine::Triton => Some(Engine::Triton),
    }
}
