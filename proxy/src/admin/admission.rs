//! How limits, queues and rates stand.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};

use crate::{
    admission::gate::Gate, proxy::Proxy, snapshot::Route, telemetry::metrics::Scope,
    upstream::Backend,
};

/// Every route and backend that limits anything.
pub(super) fn state(proxy: &Proxy) -> Value {
    let (snapshot, now) = (proxy.snapshot.load(), Instant::now());
    let routes = snapshot.routes.iter().filter_map(|route| of_route(route, now));
    let backends = snapshot.backends.iter().filter_map(|backend| of_backend(backend, now));
    routes.chain(backends).collect()
}

fn of_route(route: &Arc<Route>, now: Instant) -> Option<Value> {
    if route.gate.is_none() && route.rules.is_empty() {
        return None;
    }
    let settings = &route.settings;
    let rates: Vec<Value> = route
        .rules
        .iter()
        .map(|rule| {
            json!({ "rule": rule.settings, "keys": rule.keys(), "answer_tokens": rule.answer() })
        })
        .collect();
    let mut state = of_gate(route.gate.as_deref(), now);
    state["scope"] = Scope::Route.as_str().into();
    state["name"] = settings.name.as_str().into();
    state["settings"] = json!({
        "limit": settings.limit, "queue": settings.queue, "priority": settings.priority,
    });
    state["rates"] = rates.into();
    Some(state)
}

fn of_backend(backend: &Arc<Backend>, now: Instant) -> Option<Value> {
    let gate = backend.gate.as_deref()?;
    let mut state = of_gate(Some(gate), now);
    state["scope"] = Scope::Backend.as_str().into();
    state["name"] = (*backend.name).into();
    state["settings"] = json!({ "limit": backend.settings.limit, "queue": backend.settings.queue });
    Some(state)
}

fn of_gate(gate: Option<&Gate>, now: Instant) -> Value {
    let Some(gate) = gate else { return json!({}) };
    let state = gate.state(now);
    json!({
        "limit": state.limit,
        "in_flight": state.in_flight,
        "waiting": state.waiting,
        "kept": state.kept,
        "standing": state.standing,
        "interval_seconds": state.interval.map(|interval| interval.as_secs_f64()),
        "slowness": state.slowness,
    })
}
