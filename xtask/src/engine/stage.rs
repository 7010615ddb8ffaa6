//! What a run starts: two engines that chat (stable and canary), one that embeds, and Outrigger before all of them.
//!
//! Every program listens on ports that the system chose. They end with the stage, whatever happens.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::server;
use crate::demo::children::{self, Proxy, Running};

/// Requests that an engine works on at once; further ones wait inside it.
pub(super) const SLOTS: u64 = 4;

/// The name under which the engines list their model. The clients' scripts expect that of the simulator.
pub(super) const MODEL: &str = "sim-model";

/// The `model` that is routed to both engines as one backend.
pub(super) const POOLED: &str = "pooled";

/// The `model` that is routed to both engines by what their own gauges say.
pub(super) const GAUGED: &str = "gauged";

/// The one that is killed is the canary; what comes after needs only the stable one.
pub(super) struct Stage {
    pub(super) proxy: Proxy,
    pub(super) stable: Engine,
    pub(super) canary: Engine,
    _embedder: Engine,
    folder: Folder,
}

pub(super) struct Engine {
    pub(super) running: Running,
    pub(super) address: SocketAddr,
}

impl Stage {
    pub(super) fn set(llama: &Path, model: &Path, outrigger: &Path) -> Result<Self> {
        let folder = Folder::create()?;
        let start = |name, more: &[&str]| Engine::start(llama, model, name, &folder.path, more);
        let stable = start("stable", &[])?;
        let canary = start("canary", &[])?;
        let embedder = start("embedder", &["--embeddings", "--pooling", "mean"])?;
        let config = folder.path.join("outrigger.yaml");
        let addresses = [stable.address, canary.address, embedder.address];
        fs::write(&config, configuration(&folder.path, addresses))?;
        let proxy = children::proxy(outrigger, &folder.path, &config)?;
        println!(
            "engine: stable {}, canary {}, proxy {}",
            addresses[0], addresses[1], proxy.traffic
        );
        Ok(Self { proxy, stable, canary, _embedder: embedder, folder })
    }

    /// What the proxy writes a line to for each request.
    pub(super) fn access_log(&self) -> PathBuf {
        self.folder.path.join("access.log")
    }

    /// Leaves the folder with logs and configuration behind.
    pub(super) fn keep_folder(&mut self) -> &Path {
        self.folder.kept = true;
        &self.folder.path
    }
}

impl Engine {
    fn start(
        program: &Path,
        model: &Path,
        name: &'static str,
        folder: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("--model").arg(model).args(["--alias", MODEL, "--offline", "--no-ui"]);
        command.args(["--host", "127.0.0.1", "--port", "0", "--metrics"]);
        // One thread each: on a small machine they, the proxy and the clients share two processors.
        command.args(["--threads", "1", "--parallel", &SLOTS.to_string()]);
        // 16384 tokens for a slot; a fixed seed, so that the same question gets the same answer.
        command.args(["--ctx-size", "65536", "--cache-ram", "0", "--seed", "7"]).args(more);
        command.stdout(Stdio::null());
        let mut running = Running::start(command, name, folder)?;
        let address = address_told(&mut running)?;
        Ok(Self { running, address })
    }
}

/// An engine tells the port that it was given in its log only.
fn address_told(running: &mut Running) -> Result<SocketAddr> {
    let log = running.log().to_owned();
    let told = || fs::read_to_string(&log).ok().as_deref().and_then(listening);
    running.until("did not say where it listens", || told().is_some())?;
    told().context("the log was changed")
}

fn listening(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("listening on http://")?;
    // Without the end of the line the port may be written only in part.
    rest.split_once('\n')?.0.trim().parse().ok()
}

fn configuration(folder: &Path, [stable, canary, embedder]: [SocketAddr; 3]) -> String {
    let folder = folder.display();
    let health = "health: { http: /health, interval: 500ms, unhealthy: 2 }";
    let chats = "[/v1/models, '/v1/chat/*', /v1/completions]";
    format!(
        "\
listeners:
  - address: 127.0.0.1:0
admin:
  address: 127.0.0.1:0
runtime:
  upgrade_socket: {folder}/upgrade.sock
backends:
  stable: {{ endpoints: [\"{stable}\"], {health} }}
  canary: {{ endpoints: [\"{canary}\"], {health} }}
  both: {{ endpoints: [\"{stable}\", \"{canary}\"], {health} }}
  gauged:
    endpoints: [\"{stable}\", \"{canary}\"]
    {health}
    signals: {{ scrape: {{ interval: 100ms, engine: llama_cpp }} }}
  embedder: {{ endpoints: [\"{embedder}\"], {health} }}
routes:
  - name: embeddings
    match: {{ path: /v1/embeddings }}
    backend: embedder
  - name: pooled
    match: {{ path: {chats}, model: {POOLED} }}
    backend: both
  - name: gauged
    match: {{ path: {chats}, model: {GAUGED} }}
    backend: gauged
  - name: chat
    match: {{ path: {chats} }}
    split: {{ stable: 90, canary: 10 }}
    expose: [arm]
access_log:
  path: {folder}/access.log
  format: json
drain: {{ delay: 200ms, timeout: 60s }}
probes: {{ requests: true }}
"
    )
}

/// The folder of one run, removed with everything in it unless a check failed.
struct Folder {
    path: PathBuf,
    kept: bool,
}

impl Folder {
    fn create() -> Result<Self> {
        let path = server::folder().join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path, kept: false })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_only_from_a_whole_line() {
        assert_eq!(listening("0.01 I srv main: listening on http://127.0.0.1:41"), None);
        let whole = "model loaded\n0.01 I srv main: listening on http://127.0.0.1:41003\nidle\n";
        assert_eq!(listening(whole), "127.0.0.1:41003".parse().ok());
    }
}
