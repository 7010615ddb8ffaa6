//! Background work that follows the configuration: discovery, health checks, warm-ups and load signals of every backend
//! in force, the comparison of its endpoints with each other, the Redis of stored answers, and the sweep of resting
//! connections. Runs on a runtime of its own, away from traffic.

mod agent;
mod peers;
mod scrape;
mod told;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use outrigger_config::validated::Dns;
use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::{
    answers::{Purge, Store, redis::Redis},
    discovery,
    endpoint::Endpoint,
    health::{self, warm_up},
    phase::bound,
    proxy::Proxy,
    upstream::Backend,
};

/// How often resting connections are looked through, and load levels looked at although nobody comes.
const SWEEP: Duration = Duration::from_secs(5);

/// Runs until it is cancelled.
pub async fn run(proxy: Arc<Proxy>) {
    let mut supervised: Vec<(Arc<Backend>, Dns, AbortHandle)> = Vec::new();
    let mut tasks = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    let mut served = None;
    loop {
        let snapshot = proxy.snapshot.load_full();
        serve_redis(&snapshot.answers, &mut tasks, &mut served);
        let (wanted, dns) = (&snapshot.backends, &snapshot.config.dns);
        supervised.retain(|(backend, asked, task)| {
            let asks = || discovery::is_needed(&backend.settings.endpoints);
            let keep = wanted.iter().any(|w| Arc::ptr_eq(w, backend)) && (asked == dns || !asks());
            if !keep {
                task.abort();
            }
            keep
        });
        for backend in wanted {
            if !supervised.iter().any(|(known, ..)| Arc::ptr_eq(known, backend)) {
                let task = tasks.spawn(supervise(Arc::clone(backend), dns.clone()));
                supervised.push((Arc::clone(backend), dns.clone(), task));
            }
        }
        tokio::select! {
            () = proxy.snapshot_changed.notified() => {}
            Some(ended) = tasks.join_next() => note_end("supervision", ended),
            now = sweep.tick() => {
                proxy.registry.sweep(now.into_std());
                bound::look(&snapshot, now.into_std());
            }
        }
    }
}

/// Serves the Redis of stored answers that is in force, and no other.
fn serve_redis(
    store: &Arc<Store>,
    tasks: &mut JoinSet<()>,
    served: &mut Option<(Arc<Redis>, AbortHandle)>,
) {
    let wanted = store.redis();
    if wanted.as_ref().map(Arc::as_ptr) == served.as_ref().map(|(redis, _)| Arc::as_ptr(redis)) {
        return;
    }
    if let Some((_, task)) = served.take() {
        task.abort();
    }
    *served = wanted.map(|redis| {
        let (serving, store) = (Arc::clone(&redis), Arc::clone(store));
        let forget = move |purge: &Purge| _ = store.purge_memory(purge);
        (redis, tasks.spawn(async move { serving.serve(forget).await }))
    });
}

/// All that one backend needs. Cancelling it cancels everything.
async fn supervise(backend: Arc<Backend>, dns: Dns) {
    let mut tasks = JoinSet::new();
    if discovery::is_needed(&backend.settings.endpoints) {
        tasks.spawn(discovery::watch(Arc::clone(&backend), dns));
    }
    if backend.settings.ejection.is_some() {
        tasks.spawn(peers::watch(Arc::clone(&backend)));
    }
    let mut changes = backend.changes();
    let mut watched: HashMap<SocketAddr, Vec<AbortHandle>> = HashMap::new();
    follow(&backend, &mut tasks, &mut watched);
    loop {
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => follow(&backend, &mut tasks, &mut watched),
                Err(_) => return,
            },
            // Those of endpoints that left would pile up.
            Some(ended) = tasks.join_next() => note_end(&backend.name, ended),
        }
    }
}

/// A task that ended by itself or was told to has nothing to say. One that panicked leaves its work undone until the
/// endpoint, or the configuration, changes: an operator must know.
fn note_end(of: &str, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(of, %error, "background work has failed and is not done any more");
    }
}

/// Begins to watch endpoints that joined and ends with those that left.
fn follow(
    backend: &Arc<Backend>,
    tasks: &mut JoinSet<()>,
    watched: &mut HashMap<SocketAddr, Vec<AbortHandle>>,
) {
    let members = backend.members();
    watched.retain(|address, tasks| {
        let keep = members.list.iter().any(|m| m.endpoint.address == *address);
        if !keep {
            tasks.iter().for_each(AbortHandle::abort);
        }
        keep
    });
    for member in &members.list {
        let endpoint = &member.endpoint;
        watched.entry(endpoint.address).or_insert_with(|| watch(endpoint, backend, tasks));
    }
}

/// Everything that is asked of one endpoint, each by a task of its own: a slow page must not delay a check.
fn watch(endpoint: &Arc<Endpoint>, backend: &Backend, tasks: &mut JoinSet<()>) -> Vec<AbortHandle> {
    let (settings, protocol) = (&backend.settings, backend.settings.protocol);
    let mut begun = Vec::new();
    if let Some(health) = &settings.health {
        begun.push(tasks.spawn(health::watch(Arc::clone(endpoint), health.clone(), protocol)));
    }
    if let Some(warm_up) = &settings.warm_up {
        begun.push(tasks.spawn(warm_up::watch(Arc::clone(endpoint), warm_up.clone(), protocol)));
    }
    if let Some(scrape) = &settings.signals.scrape {
        begun.push(tasks.spawn(scrape::watch(Arc::clone(endpoint), scrape.clone(), protocol)));
    }
    if let Some(agent) = &settings.signals.agent {
        begun.push(tasks.spawn(agent::watch(Arc::clone(endpoint), agent.clone())));
    }
    begun
}
