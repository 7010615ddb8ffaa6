//! Fetching answers when the proxy has started, so that they are there when nobody answers.
//!
//! The requests stand in a file, one in JSON on each line. (An access log is none: it has no bodies, and a prompt without
//! its words has no answer.) Each goes through the routes as if a client had sent it, with the headers of its line, so it
//! is stored for the tenant that those name. They go slowly, so many at a time, and only once some backend is ready: what
//! clients want comes first.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Method;
use outrigger_config::validated::AnswerWarmUp;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::{Semaphore, mpsc},
    time::MissedTickBehavior,
};

use crate::{
    chance, gateway,
    outcome::Outcome,
    phase::answer::Nobody,
    proxy::Proxy,
    relay::Upload,
    request::{Peer, Request},
    telemetry::metrics::WarmedUp,
    wire::{BodyLength, Fields, RequestHead},
};

/// How often is looked whether a backend is ready.
const READINESS: Duration = Duration::from_millis(200);
/// How often is told how far it has come.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// A request as it stands in the file.
#[derive(Debug, Deserialize)]
pub struct Line {
    #[serde(default)]
    method: Option<String>,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// A text is sent as it is, anything else as the JSON that it is.
    #[serde(default)]
    body: Option<Box<RawValue>>,
}

/// Runs until the file is at its end, or the proxy is about to stop.
pub async fn run(proxy: Arc<Proxy>) {
    let Some(settings) = proxy.snapshot.load().config.answers.warm_up.clone() else { return };
    while !proxy.snapshot.load().backends.iter().any(|backend| backend.is_ready()) {
        tokio::time::sleep(READINESS).await;
    }
    let (sender, lines) = mpsc::channel(16);
    let file = settings.file.clone();
    let reading = tokio::task::spawn_blocking(move || read(file, &sender));
    tracing::info!(file = %settings.file.display(), rate = settings.rate, "warming up the answers");
    let tally = send_all(&proxy, &settings, lines).await;
    tally.tell("answers are warmed up");
    if let Ok(Err(error)) = reading.await {
        tracing::error!("can not read {}: {error}", settings.file.display());
    }
}

fn read(file: PathBuf, lines: &mpsc::Sender<String>) -> io::Result<()> {
    for line in BufReader::new(File::open(file)?).lines() {
        if lines.blocking_send(line?).is_err() {
            break;
        }
    }
    Ok(())
}

/// How far it has come.
#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    skipped: u64,
}

impl Tally {
    fn tell(&self, what: &str) {
        tracing::info!(sent = self.sent, skipped = self.skipped, "{what}");
    }
}

async fn send_all(
    proxy: &Arc<Proxy>,
    settings: &AnswerWarmUp,
    mut lines: mpsc::Receiver<String>,
) -> Tally {
    let mut pace = tokio::time::interval(Duration::from_secs(1) / settings.rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let at_once = Arc::new(Semaphore::new(settings.at_once));
    let (mut tally, mut told) = (Tally::default(), Instant::now());
    let metrics = proxy.metrics.store();
    while let Some(line) = lines.recv().await {
        if proxy.drain.is_draining() {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        let request = match Line::parse(&line) {
            Ok(line) => line.request(proxy),
            Err(why) => {
                metrics.warmed_up(WarmedUp::Skipped);
                tally.skipped += 1;
                if tally.skipped == 1 {
                    tracing::warn!("a line of the warm-up is passed over: {why}");
                }
                continue;
            }
        };
        pace.tick().await;
        // Nobody closes it.
        let Ok(ticket) = Arc::clone(&at_once).acquire_owned().await else { break };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let outcome = gateway::own(request, Box::new(Nobody)).await;
            metrics.warmed_up(match outcome {
                Ok(Outcome::Ok | Outcome::Stored) => WarmedUp::Answered,
                _ => WarmedUp::Failed,
            });
            drop(ticket);
        });
        tally.sent += 1;
        if told.elapsed() > TOLD_EVERY {
            told = Instant::now();
            tally.tell("warming up the answers");
        }
    }
    let all = u32::try_from(settings.at_once).unwrap_or(u32::MAX);
    // Until the last one has ended.
    drop(at_once.acquire_many(all).await);
    tally
}

impl Line {
    /// Reads a line.
    ///
    /// # Errors
    /// Why it is no request.
    pub fn parse(line: &str) -> Result<Self, String> {
        let read: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if !read.path.starts_with('/') || !read.path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{:?} is not a path", read.path));
        }
        let method = read.method().ok_or("no such method")?;
        if method != Method::GET && read.body.is_none() {
            return Err(
                "it has no body; an access log can not be used, it has none either".to_owned()
            );
        }
        Ok(read)
    }

    fn method(&self) -> Option<Method> {
        self.method.as_deref().unwrap_or("POST").parse().ok()
    }

    /// The body as it is sent.
    fn body(&self) -> (Bytes, bool) {
        let Some(raw) = &self.body else { return (Bytes::new(), false) };
        match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => (text.into(), false),
            Err(_) => (raw.get().to_owned().into(), true),
        }
    }

    fn request(&self, proxy: &Proxy) -> Request {
        let (body, json) = self.body();
        let mut fields = Fields::new();
        fields.append("host", "localhost");
        if json {
            fields.append("content-type", "application/json");
        }
        for (name, value) in &self.headers {
            fields.set(name, value);
        }
        let method = self.method().unwrap_or(Method::POST);
        let mut head = RequestHead::for_target(method, fields, &self.path, 11);
        head.fields.remove("content-length");
        if !body.is_empty() {
            head.fields.append("content-length", body.len().to_string());
            head.body = BodyLength::Exact(body.len() as u64);
        }
        let peer = Arc::new(Peer { client_ip: "127.0.0.1".to_owned() });
        let snapshot = proxy.snapshot.load_full();
        let mut request = Request::new(snapshot, peer, head, &mut chance::rng());
        request.upload = Upload::given(body);
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_requests_or_say_why_not() {
        let line = r#"{"path":"/v1/x","body":{"b": 1,"a":[1.0]},"headers":{"authorization":"k"}}"#;
        let (body, json) = Line::parse(line).unwrap().body();
        assert_eq!((&*body, json), (&br#"{"b": 1,"a":[1.0]}"#[..], true), "as it is written");
        let (body, json) = Line::parse(r#"{"path":"/","body":"plain \"text\""}"#).unwrap().body();
        assert_eq!((&*body, json), (&b"plain \"text\""[..], false));
        assert!(Line::parse(r#"{"method":"GET","path":"/v1/models"}"#).is_ok());
        for (line, why) in [
            ("{", "EOF"),
            (r#"{"body":{}}"#, "missing field `path`"),
            (r#"{"path":"v1","body":{}}"#, "not a path"),
            (r#"{"path":"/a b","body":{}}"#, "not a path"),
            (r#"{"path":"/","method":"G T","body":{}}"#, "no such method"),
            (r#"{"time":"x","method":"POST","path":"/v1/x","status":200}"#, "an access log"),
        ] {
            let said = Line::parse(line).unwrap_err();
            assert!(said.contains(why), "{line}: {said}");
        }
    }
}
