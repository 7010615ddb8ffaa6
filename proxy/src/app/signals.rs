//! How the proxy ends: SIGTERM drains, SIGINT stops at once, SIGQUIT hands the listeners to a new process and drains.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outrigger_config::{Config, validated::Drain as DrainSettings};
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};

use super::{SharedFds, services::Bound};
use crate::proxy::Proxy;

/// How long requests that are cut may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Waits for a signal and does what it asks for; then the server may stop at once.
pub(super) struct Signals {
    proxy: Arc<Proxy>,
    upgrade_socket: String,
    fds: SharedFds,
    bound: Arc<Bound>,
}

impl Signals {
    pub(super) fn new(
        proxy: &Arc<Proxy>,
        config: &Config,
        fds: SharedFds,
        bound: Arc<Bound>,
    ) -> Self {
        let upgrade_socket = config.runtime.upgrade_socket.to_string_lossy().into_owned();
        Signals { proxy: Arc::clone(proxy), upgrade_socket, fds, bound }
    }

    async fn wait(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        self.bound.listens();
        loop {
            tokio::select! {
                Some(()) = terminate.recv() => break,
                Some(()) = interrupt.recv() => return Ok(()),
                Some(()) = quit.recv() => if self.hand_over().await { break },
            }
        }
        let settings = self.proxy.snapshot.load().config.drain.clone();
        tokio::select! {
            () = self.drain(&settings) => {}
            Some(()) = interrupt.recv() => tracing::warn!("stopped while draining"),
        }
        Ok(())
    }

    /// Gives the listening sockets to the process that waits for them; `false` when nobody does.
    async fn hand_over(&self) -> bool {
        let Some(fds) = self.fds.get().map(Arc::clone) else { return false };
        let socket = self.upgrade_socket.clone();
        tracing::info!(socket, "handing the listeners over");
        let sent = tokio::task::spawn_blocking(move || {
            fds.lock().send_to_sock(socket.as_str()).map_err(|error| error.to_string())
        });
        match sent.await {
            Ok(Ok(_)) => {
                self.proxy.drain.hand_over();
                true
            }
            Ok(Err(error)) => {
                tracing::error!("nobody took the listeners over, going on: {error}");
                false
            }
            Err(error) => {
                tracing::error!("handing over failed, going on: {error}");
                false
            }
        }
    }

    async fn drain(&self, settings: &DrainSettings) {
        let drain = &self.proxy.drain;
        drain.begin();
        self.proxy.metrics.process().draining.set(1);
        tracing::info!(delay = ?settings.delay, timeout = ?settings.timeout, "draining");
        tokio::time::sleep(settings.delay).await;
        drain.close();
        // What was accepted just before is served like everything else.
        let _ = tokio::time::timeout(LAST_WORDS, drain.accepts_no_more()).await;
        if drain.idle(settings.timeout).await {
            tracing::info!("drained");
            // Resting connections close by themselves; those that never said anything are not waited for.
            drain.closed(LAST_WORDS).await;
        } else {
            let cut = drain.in_flight();
            tracing::warn!(cut, "drain timeout: requests cut");
            drain.cut();
            // What is cut is still counted and logged.
            drain.idle(LAST_WORDS).await;
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        if let Err(error) = self.wait().await {
            tracing::error!("no signal handlers: {error}");
        }
        ShutdownSignal::FastShutdown
    }
}
