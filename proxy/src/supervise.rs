//! Background work that follows the configuration: discovery and health checks of every backend in force, and the
//! sweep of resting connections. Runs on a runtime of its own, away from traffic.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::task::{AbortHandle, JoinSet};

use crate::{discovery, health, proxy::Proxy, upstream::Backend};

/// How often resting connections are looked through.
const SWEEP: Duration = Duration::from_secs(5);

/// Runs until it is cancelled.
pub async fn run(proxy: Arc<Proxy>) {
    let mut supervised: Vec<(Arc<Backend>, AbortHandle)> = Vec::new();
    let mut tasks = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        let wanted = &proxy.snapshot.load().backends;
        supervised.retain(|(backend, task)| {
            let keep = wanted.iter().any(|w| Arc::ptr_eq(w, backend));
            if !keep {
                task.abort();
            }
            keep
        });
        for backend in wanted {
            if !supervised.iter().any(|(known, _)| Arc::ptr_eq(known, backend)) {
                let task = tasks.spawn(supervise(Arc::clone(backend)));
                supervised.push((Arc::clone(backend), task));
            }
        }
        tokio::select! {
            () = proxy.snapshot_changed.notified() => {}
            Some(_) = tasks.join_next() => {}
            now = sweep.tick() => proxy.registry.sweep(now.into_std()),
        }
    }
}

/// Discovery and checks of one backend. Cancelling it cancels both.
async fn supervise(backend: Arc<Backend>) {
    let mut tasks = JoinSet::new();
    if backend.has_names() {
        tasks.spawn(discovery::watch(Arc::clone(&backend)));
    }
    let mut changes = backend.changes();
    let mut checks: HashMap<SocketAddr, AbortHandle> = HashMap::new();
    loop {
        changes.mark_unchanged();
        follow(&backend, &mut tasks, &mut checks);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Starts checks of endpoints that joined and ends those of endpoints that left.
fn follow(
    backend: &Arc<Backend>,
    tasks: &mut JoinSet<()>,
    checks: &mut HashMap<SocketAddr, AbortHandle>,
) {
    let Some(settings) = &backend.settings.health else { return };
    let members = backend.members();
    checks.retain(|address, task| {
        let keep = members.list.iter().any(|m| m.endpoint.address == *address);
        if !keep {
            task.abort();
        }
        keep
    });
    for member in &members.list {
        let endpoint = &member.endpoint;
        checks.entry(endpoint.address).or_insert_with(|| {
            let protocol = backend.settings.protocol;
            tasks.spawn(health::watch(Arc::clone(endpoint), settings.clone(), protocol))
        });
    }
}
