//! Comparing the endpoints of a backend with each other, once a second, and ejecting those that do worse.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::MissedTickBehavior;

use crate::{
    clock,
    endpoint::passive::peer_settings,
    outlier::{
        Reason,
        peers::{Settings, judge},
    },
    relay::STALL_DOUBT,
    upstream::{Backend, backend::Member},
};

/// How often.
const INTERVAL: Duration = Duration::from_secs(1);

/// Compares until it is cancelled.
pub(super) async fn watch(backend: Arc<Backend>) {
    let Some(ejection) = &backend.settings.ejection else { return };
    let settings = peer_settings(ejection);
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = ticks.tick().await;
        let members = backend.members();
        let now = clock::now();
        let serving: Vec<&Member> =
            members.list.iter().filter(|member| member.is_serving()).collect();
        // When we come late we have not been running, and what the endpoints sent meanwhile is yet to be read.
        if due.elapsed() < STALL_DOUBT {
            eject_stalled(&backend, &serving, now).await;
        }
        let samples: Vec<_> = serving.iter().map(|member| member.sample(now)).collect();
        for verdict in judge(&samples, &settings) {
            let member = serving[verdict.endpoint];
            // What the window shows may have begun with it.
            let since = now.checked_sub(looked_back(&settings)).unwrap_or(now);
            if backend.eject(member, verdict.reason, since, now) {
                let (own, peers) = (verdict.own, verdict.peers);
                let (name, endpoint) = (&backend.name, &member.endpoint.name);
                let reason = verdict.reason.as_str();
                tracing::warn!(backend = %name, endpoint, reason, own, peers, "worse than its peers");
            }
        }
    }
}

fn looked_back(settings: &Settings) -> Duration {
    let rate = settings.success_rate.map(|rate| rate.window);
    rate.max(settings.latency.map(|latency| latency.window)).unwrap_or_default()
}

/// Ejects endpoints that have stopped working, unless it was us: what has come while we were not running is read first.
async fn eject_stalled(backend: &Backend, serving: &[&Member], now: Instant) {
    if !serving.iter().any(|member| member.has_stalled(now)) {
        return;
    }
    tokio::time::sleep(STALL_DOUBT).await;
    let now = clock::now();
    for member in serving.iter().filter(|member| member.has_stalled(now)) {
        backend.eject(member, Reason::Stalled, now, now);
    }
}
