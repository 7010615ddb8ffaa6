//! The proxy's own pages: metrics, readiness, the configuration in force, live endpoints. On a runtime of its own, so
//! that a scrape adds nothing to a request.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use http::{Method, StatusCode};
use pingora_core::{
    apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream},
    protocols::http::ServerSession,
    server::ShutdownWatch,
};
use serde_json::{Value, json};

use crate::{
    proxy::Proxy,
    reload::{self, Source},
    telemetry::exposition::{Format, render},
    upstream::Backend,
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
        let page = self.page(&method, head.uri.path(), accept(&session).as_deref());
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
    fn page(&self, method: &Method, path: &str, accept: Option<&str>) -> Page {
        let read = method == Method::GET || method == Method::HEAD;
        match path {
            "/" if read => Page::text(StatusCode::OK, INDEX),
            "/live" if read => Page::text(StatusCode::OK, "live\n"),
            "/ready" if read => self.ready(),
            "/metrics" if read => self.metrics(accept),
            "/config" if read => self.config(),
            "/endpoints" if read => Page::json(StatusCode::OK, &self.endpoints()),
            "/drain" if method == Method::POST => self.drain(),
            "/reload" if method == Method::POST => self.reload(),
            "/drain" | "/reload" => Page::only("POST"),
            "/" | "/live" | "/ready" | "/metrics" | "/config" | "/endpoints" => {
                Page::only("GET, HEAD")
            }
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
        snapshot.backends.iter().map(|backend| backend_state(backend, now)).collect()
    }

    fn drain(&self) -> Page {
        let first = self.proxy.drain.begin();
        self.proxy.metrics.process().draining.set(1);
        tracing::info!("draining: not ready from now on");
        Page::json(StatusCode::OK, &json!({ "draining": true, "changed": first }))
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
    (reasons, degraded)
}

fn backend_state(backend: &Backend, now: Instant) -> Value {
    let members = backend.members();
    let endpoints: Vec<Value> = members
        .list
        .iter()
        .map(|member| {
            let endpoint = &member.endpoint;
            let (resting, oldest) = endpoint.pool.resting(now);
            json!({
                "address": endpoint.name,
                "weight": endpoint.weight(),
                "ready": endpoint.is_ready(),
                "ejected": member.outlier.as_ref().is_some_and(|o| o.is_ejected()),
                "in_flight": endpoint.in_flight(),
                "load": endpoint.load(),
                "resting_connections": resting,
                "oldest_resting_seconds": oldest.as_secs_f64(),
            })
        })
        .collect();
    json!({
        "backend": *backend.name,
        "balance": backend.settings.balance,
        "protocol": backend.settings.protocol,
        "endpoints": endpoints,
    })
}
