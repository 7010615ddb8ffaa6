//! Asking an endpoint's agent: a small server beside the engine that says in one line how much it wants (HAProxy's
//! agent-check protocol).

use std::{net::SocketAddr, sync::Arc};

use outrigger_config::validated::Agent;
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::told::Told;
use crate::{
    chance, clock, endpoint::Endpoint, health::threshold::jittered, signal::agent::Word,
    telemetry::metrics::Verdict,
};

/// Asks one endpoint's agent until it is cancelled.
pub(super) async fn watch(endpoint: Arc<Endpoint>, settings: Agent) {
    let mut told = Told::default();
    loop {
        let start = clock::now();
        let asked = ask(&endpoint, &settings);
        let result = match tokio::time::timeout(settings.interval, asked).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {:?}", settings.interval)),
        };
        let verdict = if result.is_ok() { Verdict::Success } else { Verdict::Failure };
        endpoint.metrics.agent_asked(verdict);
        let (backend, name) = (&endpoint.backend, &endpoint.name);
        match &result {
            Ok(line) if told.is_news(&result) => {
                tracing::info!(%backend, endpoint = name, line, "the agent says");
            }
            Err(reason) if told.is_news(&result) => {
                tracing::warn!(%backend, endpoint = name, reason, "no word of the agent");
            }
            Ok(_) | Err(_) => {}
        }
        let pause = jittered(settings.interval, &mut chance::rng());
        tokio::time::sleep(pause.saturating_sub(clock::since(start))).await;
    }
}

/// What the agent says now, put into force; in words for the log.
async fn ask(endpoint: &Endpoint, settings: &Agent) -> Result<String, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let address = SocketAddr::new(endpoint.address.ip(), settings.port);
    let mut stream = TcpStream::connect(address).await.map_err(|e| text(&e))?;
    let mut received = Vec::new();
    // An agent need not close after its line.
    let word = loop {
        if let Some(word) = Word::read(&received).map_err(|e| text(&e))? {
            break word;
        }
        if stream.read_buf(&mut received).await.map_err(|e| text(&e))? == 0 {
            return Err("it hung up before the end of a line".to_owned());
        }
    };
    endpoint.obey(word);
    let line = received.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).into_owned())
}
