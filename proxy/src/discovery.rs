//! Finding the endpoints behind names.
//!
//! A name is asked for again when its answer has lived out its TTL, at most `dns_refresh` later. Every address of the
//! answer is an endpoint. When a name can not be resolved, what it last resolved to stays: a DNS outage must not be
//! an outage of ours.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_resolver::{Resolver, TokioResolver};
use outrigger_config::validated::{Endpoint, Host};

use crate::{telemetry::metrics::Verdict, upstream::Backend};

/// A name that can not be resolved is asked for again after this time, doubling up to `dns_refresh`.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// A shorter TTL is taken for this.
const MIN_TTL: Duration = Duration::from_secs(1);

/// Resolves the names of a backend until it is cancelled.
pub async fn watch(backend: Arc<Backend>) {
    let resolver = match resolver() {
        Ok(resolver) => resolver,
        Err(error) => return tracing::error!(backend = %backend.name, %error, "no DNS resolver"),
    };
    let mut known: HashMap<String, Vec<SocketAddr>> = HashMap::new();
    let mut retry = FIRST_RETRY;
    loop {
        let round = resolve_all(&backend, &resolver, &mut known).await;
        if backend.set_members(&addresses(&backend, &known)) {
            let endpoints = backend.members().list.len();
            tracing::info!(backend = %backend.name, endpoints, "endpoints changed");
        }
        let refresh = backend.settings.dns_refresh;
        let pause = match round {
            Some(ttl) => {
                retry = FIRST_RETRY;
                ttl.clamp(MIN_TTL, refresh.max(MIN_TTL))
            }
            None => {
                let pause = retry.min(refresh);
                retry = retry.saturating_mul(2);
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn resolver() -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut builder = Resolver::builder_tokio()?;
    // We keep answers ourselves, for exactly as long as they say.
    builder.options_mut().cache_size = 0;
    builder.build()
}

/// Asks for every name; the shortest TTL, or `None` when one could not be resolved.
async fn resolve_all(
    backend: &Backend,
    resolver: &TokioResolver,
    known: &mut HashMap<String, Vec<SocketAddr>>,
) -> Option<Duration> {
    let mut shortest = Some(Duration::MAX);
    for (name, port) in names(&backend.settings.endpoints) {
        match resolver.lookup_ip(format!("{name}.")).await {
            Ok(answer) => {
                backend.metrics.resolved(Verdict::Success);
                let addresses = answer.iter().map(|ip| SocketAddr::new(ip, port)).collect();
                known.insert(key(name, port), addresses);
                let ttl = answer.valid_until().saturating_duration_since(Instant::now());
                shortest = shortest.map(|shortest| shortest.min(ttl));
            }
            Err(error) => {
                backend.metrics.resolved(Verdict::Failure);
                tracing::warn!(backend = %backend.name, name, %error, "name not resolved");
                shortest = None;
            }
        }
    }
    shortest
}

fn names(endpoints: &[Endpoint]) -> impl Iterator<Item = (&str, u16)> {
    endpoints.iter().filter_map(|endpoint| match &endpoint.host {
        Host::Name(name) => Some((name.as_str(), endpoint.port)),
        Host::Ip(_) => None,
    })
}

fn key(name: &str, port: u16) -> String {
    format!("{name}:{port}")
}

/// All addresses in the order of the configuration. While a name was never resolved, endpoints that are there stay.
fn addresses(
    backend: &Backend,
    known: &HashMap<String, Vec<SocketAddr>>,
) -> Vec<(SocketAddr, u32)> {
    let mut all = Vec::new();
    for endpoint in &backend.settings.endpoints {
        match &endpoint.host {
            Host::Ip(ip) => all.push((SocketAddr::new(*ip, endpoint.port), endpoint.weight)),
            Host::Name(name) => {
                let resolved = known.get(&key(name, endpoint.port));
                all.extend(resolved.iter().flat_map(|a| a.iter()).map(|a| (*a, endpoint.weight)));
            }
        }
    }
    if names(&backend.settings.endpoints).any(|(name, port)| !known.contains_key(&key(name, port)))
    {
        let members = backend.members();
        all.extend(members.list.iter().map(|m| (m.endpoint.address, m.endpoint.weight())));
    }
    all
}
