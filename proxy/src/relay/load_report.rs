//! Load reports on answers (ORCA): what an endpoint says of itself is believed for a while, and a client that asks is
//! told how busy the endpoint is, also where the engine can not say it. So two Outriggers tell each other the truth.

use outrigger_config::validated::Signals;

use crate::{
    balance::reported::{Report, Signal, Source},
    clock,
    endpoint::Endpoint,
    request::Request,
    signal::orca::{self, Format, Load},
    snapshot::Route,
    wire::Fields,
};

/// The format that the client asks for.
pub fn asked(fields: &Fields) -> Option<Format> {
    fields.get_str(orca::FORMAT).and_then(Format::named)
}

/// Asks the endpoint for a report, where the backend wants them, in the format that the client wants if it wants one.
pub fn ask(fields: &mut Fields, signals: &Signals) {
    // A format that does not exist would keep the endpoint from telling us.
    if signals.orca && asked(fields).is_none() {
        fields.set(orca::FORMAT, "text");
    }
}

/// Learns from a report among the header fields or trailers of an answer.
pub fn learn(fields: &Fields, endpoint: &Endpoint) {
    for (name, value) in orca::HEADERS.iter().filter_map(|name| Some((*name, fields.get(name)?))) {
        match orca::read(name, value) {
            Ok(load) => endpoint.learn(&load.report, Source::Orca, endpoint.in_flight()),
            Err(error) => {
                let (backend, name) = (&endpoint.backend, &endpoint.name);
                tracing::debug!(%backend, endpoint = name, %error, "load report not understood");
            }
        }
    }
}

/// Leaves in the answer what the client asked for: the engine's words, or ours where the route exposes the load.
pub fn answer(
    fields: &mut Fields,
    request: &Request,
    route: &Route,
    signals: &Signals,
    endpoint: &Endpoint,
) {
    let has_own = |fields: &Fields| orca::HEADERS.iter().any(|name| fields.contains(name));
    match request.report_asked {
        None if signals.orca => strip(fields),
        None => {}
        Some(format) if route.settings.expose.load && !has_own(fields) => {
            if let Some((name, value)) = orca::write(format, &load_of(endpoint)) {
                fields.append(name, value);
            }
        }
        Some(_) => {}
    }
}

/// What is known here of an endpoint's load: what it last said of its queue and its cache, and what runs there at least,
/// which is counted here.
fn load_of(endpoint: &Endpoint) -> Load {
    let now = clock::now();
    let reported = endpoint.facts.reported();
    let own = f64::from(endpoint.in_flight());
    let value = |signal: Option<Signal>| signal.map(|signal| signal.value);
    let waiting = value(reported.waiting(now));
    let running = value(reported.running(now)).unwrap_or(0.0).max(own - waiting.unwrap_or(0.0));
    let report = Report {
        waiting,
        running: Some(running),
        kv_usage: value(reported.kv_usage(now)),
        utilization: None,
    };
    Load { report, ..Load::default() }
}

/// Takes out what nobody but us has asked for.
pub fn strip(fields: &mut Fields) {
    for name in orca::HEADERS {
        if fields.contains(name) {
            fields.remove(name);
        }
    }
}
