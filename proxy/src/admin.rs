//! The proxy's own pages: metrics, readiness, the configuration in force, live endpoints. On a runtime of its own, so
//! that a scrape adds nothing to a request.

mod admission;
mod probes;

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use http::{Method, StatusCode, Uri};
use outrigger_config::validated::Adaptive;
use pingora_core::{
    apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream},
    protocols::http::ServerSession,
    server::ShutdownWatch,
};
use serde_json::{Value, json};

mod purge;

use crate::{
    balance::reported::{self, Signal},
    deadline::{Known, Size},
    guard::{Arm, Measure, Quantiles, Report},
    outlier::Circuit,
    proxy::Proxy,
    reload::{self, Source},
    snapshot::{Action, Route},
    telemetry::{
        exposition::{Format, render},
        metrics::DeadlineKind,
    },
    tenant::Tenant,
    upstream::{Backend, backend::Member},
    wire::Fields,
};

/// The admin application.
pub struct Admin {
    /// What it tells about.
    pub proxy: Arc<Proxy>,
    /// What `POST /reload` reads.
    pub source: Source,
}

const INDEX: &str = "Outrigger

GET  /metrics    Prometheus text, or OpenMetrics when asked for
GET  /live       the process answers
GET  /ready      200 when traffic is welcome, 503 with reasons when not
GET  /config     the configuration in force and how the last reload went
GET  /endpoints  every endpoint with its live state
GET  /admission  every limit, queue and rate with its live state
GET  /canaries   every guarded arm, what its guard knows and has decided
GET  /answers    how many answers are stored, and how often they were of use
POST /answers/purge  forget answers: ?route=, model=, key=, tenant=own (whose credentials the request has), all=true
GET  /probes     what probes look at
POST /probes/cuda/off, /probes/cuda/on  take the probes out of all processes at once; let them in again
POST /reload     read the configuration file again
POST /drain      say not ready from now on
";

/// A page to send.
struct Page {
    status: StatusCode,
    content_type: &'static str,
    allow: Option<&'static str>,
    body: String,
}

impl Page {
    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Page { status, content_type: "text/plain; charset=utf-8", allow: None, body: body.into() }
    }

    fn only(allow: &'static str) -> Self {
        let page = Page::text(StatusCode::METHOD_NOT_ALLOWED, format!("only {allow}; see /\n"));
        Page { allow: Some(allow), ..page }
    }

    fn json(status: StatusCode, value: &Value) -> Self {
        Page { status, content_type: "application/json", allow: None, body: format!("{value:#}\n") }
    }
}

#[async_trait]
impl HttpServerApp for Admin {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !matches!(session.read_request().await, Ok(true)) {
            return None;
        }
        session.set_keepalive(if *shutdown.borrow() { None } else { Some(60) });
        let head = session.req_header();
        let method = head.method.clone();
        let tenant = self.tenant(&session);
        let page = self.page(&method, &head.uri, tenant, accept(&session).as_deref());
        if let Err(error) = respond(&mut session, &page).await {
            tracing::debug!(%error, "admin client went away");
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }
}

fn accept(session: &ServerSession) -> Option<String> {
    let value = session.get_header(http::header::ACCEPT)?;
    value.to_str().ok().map(str::to_owned)
}

async fn respond(session: &mut ServerSession, page: &Page) -> pingora_core::Result<()> {
    let mut head = pingora_http::ResponseHeader::build(page.status, Some(4))?;
    head.insert_header(http::header::CONTENT_TYPE, page.content_type)?;
    head.insert_header(http::header::CONTENT_LENGTH, page.body.len())?;
    head.insert_header(http::header::CACHE_CONTROL, "no-store")?;
    if let Some(allow) = page.allow {
        head.insert_header(http::header::ALLOW, allow)?;
    }
    session.write_response_header(Box::new(head)).await?;
    session.write_response_body(page.body.clone().into(), true).await
}

impl Admin {
    fn page(&self, method: &Method, uri: &Uri, tenant: Tenant, accept: Option<&str>) -> Page {
        let read = method == Method::GET || method == Method::HEAD;
        match uri.path() {
            "/" if read => Page::text(StatusCode::OK, INDEX),
            "/live" if read => Page::text(StatusCode::OK, "live\n"),
            "/ready" if read => self.ready(),
            "/metrics" if read => self.metrics(accept),
            "/config" if read => self.config(),
            "/endpoints" if read => Page::json(StatusCode::OK, &self.endpoints()),
            "/admission" if read => Page::json(StatusCode::OK, &admission::state(&self.proxy)),
            "/canaries" if read => Page::json(StatusCode::OK, &canaries(&self.proxy)),
            "/answers" if read => Page::json(StatusCode::OK, &answers(&self.proxy)),
            "/answers/purge" if method == Method::POST => {
                self.purge(uri.query().unwrap_or(""), tenant)
            }
            "/drain" if method == Method::POST => self.drain(),
            "/reload" if method == Method::POST => self.reload(),
            "/probes" if read => Page::json(StatusCode::OK, &probes::state(&self.proxy.probes)),
            "/probes/cuda/on" if method == Method::POST => self.switch(true),
            "/probes/cuda/off" if method == Method::POST => self.switch(false),
            "/drain" | "/reload" | "/answers/purge" | "/probes/cuda/on" | "/probes/cuda/off" => {
                Page::only("POST")
            }
            "/" | "/live" | "/ready" | "/metrics" | "/config" | "/endpoints" | "/admission"
            | "/canaries" | "/answers" | "/probes" => Page::only("GET, HEAD"),
            _ => Page::text(StatusCode::NOT_FOUND, "no such page; see /\n"),
        }
    }

    fn ready(&self) -> Page {
        let (reasons, degraded) = readiness(&self.proxy);
        let status = match reasons.is_empty() {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        let page = json!({ "ready": reasons.is_empty(), "reasons": reasons, "degraded": degraded });
        Page::json(status, &page)
    }

    fn metrics(&self, accept: Option<&str>) -> Page {
        let format = Format::negotiate(accept);
        match render(format, self.proxy.metrics.gather()) {
            Ok(body) => {
                let page = Page::text(StatusCode::OK, body);
                Page { content_type: format.content_type(), ..page }
            }
            Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn config(&self) -> Page {
        let snapshot = self.proxy.snapshot.load();
        let page = json!({
            "generation": snapshot.generation,
            "reload": self.proxy.reload.last(),
            "config": &snapshot.config,
        });
        Page::json(StatusCode::OK, &page)
    }

    fn endpoints(&self) -> Value {
        let now = Instant::now();
        let snapshot = self.proxy.snapshot.load();
        let state = |backend: &Arc<Backend>| {
            let mut state = backend_state(backend, now);
            state["deadlines"] = learned_by_routes(&snapshot.routes, backend);
            state
        };
        snapshot.backends.iter().map(state).collect()
    }

    fn drain(&self) -> Page {
        let first = self.proxy.drain.begin();
        self.proxy.metrics.process().draining.set(1);
        tracing::info!("draining: not ready from now on");
        Page::json(StatusCode::OK, &json!({ "draining": true, "changed": first }))
    }

    /// Whose credentials the request has.
    fn tenant(&self, session: &ServerSession) -> Tenant {
        let names = &self.proxy.snapshot.load().config.tenant.header;
        let (mut fields, headers) = (Fields::new(), &session.req_header().headers);
        for name in names {
            headers.get_all(name).iter().for_each(|value| fields.append(name, value));
        }
        Tenant::of(&fields, names)
    }

    fn purge(&self, query: &str, own: Tenant) -> Page {
        let purge = match purge::parse(query, own) {
            Ok(purge) => purge,
            Err(why) => return Page::text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        let purged = self.proxy.snapshot.load().answers.purge(&purge);
        tracing::info!(purged = purged.memory, "answers purged");
        let mut page = json!({ "purged": purged.memory });
        if let Some(is_up) = purged.redis {
            page["redis"] = json!(if is_up { "within a second" } else { "when it is back" });
        }
        Page::json(StatusCode::OK, &page)
    }

    fn switch(&self, on: bool) -> Page {
        match probes::switch(&self.proxy.probes, on) {
            Some(state) => Page::json(StatusCode::OK, &state),
            None => Page::text(StatusCode::CONFLICT, "the probe does not run; see the log\n"),
        }
    }

    fn reload(&self) -> Page {
        let Some(path) = &self.source else {
            return Page::text(StatusCode::CONFLICT, "there is no configuration file\n");
        };
        match reload::from_file(&self.proxy, path) {
            Ok(()) => Page::json(StatusCode::OK, &json!({ "accepted": true })),
            Err(problems) => {
                let page = json!({ "accepted": false, "problems": problems });
                Page::json(StatusCode::UNPROCESSABLE_ENTITY, &page)
            }
        }
    }
}

/// Why no traffic is wanted now (empty when it is welcome), and what is wrong though it is.
///
/// One backend that can serve is enough: a canary that is down must not take the stable arm's traffic away.
fn readiness(proxy: &Proxy) -> (Vec<String>, Vec<String>) {
    let snapshot = proxy.snapshot.load();
    let unready: Vec<String> = snapshot
        .backends
        .iter()
        .filter(|backend| !backend.is_ready())
        .map(|backend| format!("no endpoint of backend {} is ready", backend.name))
        .collect();
    let none = !unready.is_empty() && unready.len() == snapshot.backends.len();
    let (mut reasons, degraded) = if none { (unready, Vec::new()) } else { (Vec::new(), unready) };
    if proxy.drain.is_draining() {
        reasons.insert(0, "draining".to_owned());
    }
    reasons.extend(proxy.probes.not_ready());
    (reasons, degraded)
}

fn backend_state(backend: &Backend, now: Instant) -> Value {
    let members = backend.members();
    let endpoints: Vec<Value> =
        members.list.iter().map(|member| endpoint_state(member, now)).collect();
    json!({
        "backend": *backend.name,
        "balance": backend.settings.balance,
        "circuit": backend.circuit(now).map(circuit_state),
        "protocol": backend.settings.protocol,
        "endpoints": endpoints,
    })
}

fn circuit_state(circuit: Circuit) -> Value {
    let wait = match circuit {
        Circuit::Open(wait) => Some(wait.as_secs_f64()),
        Circuit::Closed | Circuit::HalfOpen => None,
    };
    json!({ "state": circuit.as_str(), "next_probe_in_seconds": wait })
}

fn endpoint_state(member: &Member, now: Instant) -> Value {
    let (endpoint, facts) = (&member.endpoint, &member.endpoint.facts);
    let (resting, oldest) = endpoint.pool.resting(now);
    json!({
        "address": endpoint.name,
        "nearness": member.nearness.as_str(),
        "weight": endpoint.weight(),
        "ready": endpoint.is_ready(),
        "checked": endpoint.readiness.is_checked(),
        "warm": endpoint.readiness.is_warm(),
        "in_service_seconds": endpoint.readiness.age(now).as_secs_f64(),
        "ejected": member.is_ejected(),
        "circuit": member.circuit(now).as_str(),
        "in_flight": endpoint.in_flight(),
        "load": endpoint.load(),
        "slowness": facts.slowness(),
        "first_byte_seconds": facts.first_byte_mean(),
        "patience": endpoint.patience.level(),
        "reported": {
            "waiting": signal(facts.reported().waiting(now)),
            "running": signal(facts.reported().running(now)),
            "kv_usage": signal(facts.reported().kv_usage(now)),
        },
        "resting_connections": resting,
        "oldest_resting_seconds": oldest.as_secs_f64(),
    })
}

/// What routes have learned of how long this backend takes.
fn learned_by_routes(routes: &[Arc<Route>], backend: &Arc<Backend>) -> Value {
    let of = |route: &Arc<Route>| {
        let Action::Split(split) = &route.action else { return None };
        let arm = split.arms.iter().find(|arm| Arc::ptr_eq(&arm.backend, backend))?;
        let learning = arm.learning.as_ref()?;
        let late = |kind| learning.metrics.late_share(kind);
        let (settings, summary) = (learning.learner.settings(), learning.learner.known());
        let first_byte = settings.first_byte.as_ref();
        let sizes: Vec<Value> =
            summary.first_byte.iter().map(|size| size_state(size, first_byte)).collect();
        let plain = |known: &Option<Known>, rule: &Option<Adaptive>| {
            known.map(|known| known_state(&known, 1.0, rule.as_ref()))
        };
        Some(json!({
            "route": route.settings.name,
            "first_byte": sizes,
            "gap": plain(&summary.gap, &settings.gap),
            "connect": plain(&summary.connect, &settings.connect),
            "late_share": {
                "first_byte": late(DeadlineKind::FirstByte),
                "gap": late(DeadlineKind::Gap),
                "connect": late(DeadlineKind::Connect),
            },
        }))
    };
    routes.iter().filter_map(of).collect()
}

/// First bytes of one kind and size, for a typical prompt of it at an endpoint that has nothing else to do.
fn size_state(size: &Size, rule: Option<&Adaptive>) -> Value {
    let mut state = known_state(&size.known, size.expected, rule);
    state["answers"] = if size.streamed { "streamed" } else { "whole" }.into();
    state["prompt_tokens_from"] = size.from.into();
    state["prompt_tokens"] = size.typical.into();
    state
}

/// What is known in units of so many seconds; the deadline that follows, where it is learned.
fn known_state(known: &Known, unit: f32, rule: Option<&Adaptive>) -> Value {
    let seconds = |value: f32| f64::from(value * unit);
    let deadline = rule.and_then(|rule| {
        let bounds = [rule.floor, rule.ceiling].map(|bound| bound.as_secs_f64());
        known.bound.map(|bound| seconds(bound).clamp(bounds[0], bounds[1]))
    });
    json!({
        "samples": known.samples,
        "cut_off_share": known.cut_share,
        "p50_seconds": seconds(known.p50),
        "p95_seconds": seconds(known.p95),
        "p99_seconds": seconds(known.p99),
        "deadline_seconds": deadline,
    })
}

/// A value with its source and age; `null` when it is not known.
fn signal(signal: Option<Signal>) -> Value {
    signal.map_or(Value::Null, |signal| {
        json!({
            "value": signal.value,
            "source": match signal.source {
                reported::Source::Scrape => "scrape",
                reported::Source::Orca => "orca",
                reported::Source::Agent => "agent",
            },
            "age_seconds": signal.age.as_secs_f64(),
        })
    })
}

/// How many answers are stored, and what each route had of them.
fn answers(proxy: &Proxy) -> Value {
    let snapshot = proxy.snapshot.load();
    let (bytes, entries) = snapshot.answers.size();
    let one = |route: &Arc<Route>| {
        let (hits, misses) = route.answers.as_ref()?.metrics().hits_and_misses();
        let asked = hits + misses;
        Some(json!({
            "route": route.settings.name,
            "hits": hits,
            "misses": misses,
            "hit_rate": (asked > 0).then(|| hits as f64 / asked as f64),
        }))
    };
    json!({
        "memory": {
            "bytes": bytes,
            "entries": entries,
            "most_bytes": snapshot.config.answers.memory,
        },
        "routes": snapshot.routes.iter().filter_map(one).collect::<Value>(),
    })
}

/// Every guarded arm, what its guard knows and what it has decided.
fn canaries(proxy: &Proxy) -> Value {
    let snapshot = proxy.snapshot.load();
    let one = |route: &Arc<Route>| {
        let canary = route.canary.as_ref()?;
        let Action::Split(split) = &route.action else { return None };
        let arms = split.arms.iter().map(|arm| &*arm.backend.name);
        let weights: serde_json::Map<String, Value> = arms
            .zip(split.weights())
            .map(|(arm, weight)| (arm.to_owned(), json!(weight)))
            .collect();
        Some(json!({
            "route": route.settings.name,
            "guard": route.settings.guard,
            "weights": weights,
            "state": canary_state(&canary.report()),
        }))
    };
    snapshot.routes.iter().filter_map(one).collect()
}

fn canary_state(report: &Report) -> Value {
    let arm = |arm: &Arm| {
        json!({
            "requests": arm.requests,
            "failed": arm.failed,
            "first_byte": arm.first_byte.map(quantiles),
            "gap": arm.gap.map(quantiles),
        })
    };
    let measures: Vec<Value> = report
        .measures
        .iter()
        .map(|reading| {
            json!({
                "measure": reading.measure.as_str(),
                "tolerated": reading.tolerated,
                "evidence": reading.evidence,
                "alarm_at": reading.alarm,
            })
        })
        .collect();
    json!({
        "rolled_back": report.rolled_back.map(|finding| finding.to_string()),
        "weight_percent": report.weight,
        "next_step": report.next.map(|next| json!({
            "to_percent": next.to,
            "wait_seconds": next.wait.as_secs_f64(),
            "requests_to_go": next.requests,
            "held_by": next.held_by.map(Measure::as_str),
        })),
        "guarded": arm(&report.guarded),
        "against": arm(&report.against),
        "measures": measures,
    })
}

fn quantiles(quantiles: Quantiles) -> Value {
    json!({
        "of": quantiles.of,
        "p50_seconds": quantiles.p50.as_secs_f64(),
        "p90_seconds": quantiles.p90.as_secs_f64(),
        "p99_seconds": quantiles.p99.as_secs_f64(),
    })
}
