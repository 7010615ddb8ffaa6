//! What pingora's server runs: traffic, admin pages, background work. Each on a runtime of its own.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::IntoRawFd,
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use parking_lot::Mutex;
use pingora_core::{
    apps::ServerApp,
    listeners::{L4BufferSettings, ListenerConfig},
    server::{ListenFds, ShutdownWatch},
    services::{Service, listening},
};

use tokio::signal::unix::{SignalKind, signal};

use super::SharedFds;
use crate::{
    admin::Admin,
    answers::warm_up,
    connection::Gateway,
    proxy::Proxy,
    reload::{self, Source},
    supervise,
};

/// A socket, or none when it is to be taken over from a running proxy.
type Socket = (SocketAddr, Option<TcpListener>);

/// Which addresses were bound. Told once all of them are and signals are listened to: whoever reads it may use both.
pub(super) struct Bound {
    found: Mutex<Found>,
    file: Option<PathBuf>,
}

struct Found {
    listeners: Vec<Option<SocketAddr>>,
    admin: Option<SocketAddr>,
    /// Who listens to signals by now, of [`LISTENING`].
    listening: usize,
}

/// The background service listens to SIGHUP, the server to the signals that end it.
const LISTENING: usize = 2;

impl Bound {
    pub(super) fn new(listeners: usize, file: Option<PathBuf>) -> Arc<Self> {
        let found = Found { listeners: vec![None; listeners], admin: None, listening: 0 };
        Arc::new(Bound { found: Mutex::new(found), file })
    }

    fn listener(&self, index: usize, address: SocketAddr) {
        let mut found = self.found.lock();
        found.listeners[index] = Some(address);
        self.tell(&found);
    }

    fn admin(&self, address: SocketAddr) {
        let mut found = self.found.lock();
        found.admin = Some(address);
        self.tell(&found);
    }

    /// One more listens to its signals.
    pub(super) fn listens(&self) {
        let mut found = self.found.lock();
        found.listening += 1;
        self.tell(&found);
    }

    fn tell(&self, found: &Found) {
        if found.listening < LISTENING {
            return;
        }
        let listeners: Option<Vec<SocketAddr>> = found.listeners.iter().copied().collect();
        let (Some(listeners), Some(admin)) = (listeners, found.admin) else { return };
        tracing::info!(?listeners, %admin, "ready to serve");
        let Some(file) = &self.file else { return };
        let ports = serde_json::json!({
            "listeners": listeners,
            "admin": admin,
            "pid": std::process::id(),
        });
        if let Err(error) = write_atomically(file, &ports.to_string()) {
            tracing::error!("can not write {}: {error}", file.display());
        }
    }
}

fn write_atomically(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// Makes a listening service on a socket that is already bound, or that a running proxy handed over.
///
/// pingora looks for sockets by their address in `fds`; putting ours there is how it takes them.
fn listen<A: ServerApp + Send + Sync + 'static>(
    name: String,
    (address, socket): Socket,
    buffers: L4BufferSettings,
    app: A,
    fds: &ListenFds,
) -> listening::Service<A> {
    let key = address.to_string();
    if let Some(socket) = socket {
        fds.lock().add(key.clone(), socket.into_raw_fd());
    }
    let mut service = listening::Service::new(name, app);
    service.add_listener(ListenerConfig::tcp(key).l4_buffer(buffers));
    service
}

/// The listeners that take traffic.
pub(super) struct TrafficService {
    proxy: Arc<Proxy>,
    sockets: Vec<Socket>,
    bound: Arc<Bound>,
    fds: SharedFds,
}

impl TrafficService {
    pub(super) fn new(
        proxy: &Arc<Proxy>,
        sockets: Vec<Socket>,
        bound: &Arc<Bound>,
        fds: &SharedFds,
    ) -> Self {
        let (proxy, bound, fds) = (Arc::clone(proxy), Arc::clone(bound), Arc::clone(fds));
        TrafficService { proxy, sockets, bound, fds }
    }
}

#[async_trait]
impl Service for TrafficService {
    async fn start_service(&mut self, fds: Option<ListenFds>, _: ShutdownWatch, tasks: usize) {
        let Some(fds) = fds else { return tracing::error!("no socket table") };
        // The same table, for handing it on; it is set once.
        let _ = self.fds.set(Arc::clone(&fds));
        let mut services = Vec::new();
        for (index, socket) in self.sockets.drain(..).enumerate() {
            let name = socket.0.to_string();
            let metrics = self.proxy.metrics.listener(&name);
            let app = Gateway { proxy: Arc::clone(&self.proxy), metrics };
            self.bound.listener(index, socket.0);
            services.push(listen(name, socket, L4BufferSettings::unbuffered(), app, &fds));
        }
        tokio::spawn(warm_up::run(Arc::clone(&self.proxy)));
        // Stops accepting when we say so, which is before pingora's server knows of it.
        let closing = self.proxy.drain.closing();
        let running = services
            .iter_mut()
            .map(|service| service.start_service(Some(Arc::clone(&fds)), closing.clone(), tasks));
        join_all(running).await;
        self.proxy.drain.stopped_accepting();
    }

    fn name(&self) -> &'static str {
        "traffic"
    }
}

/// The admin pages.
pub(super) struct AdminService {
    proxy: Arc<Proxy>,
    socket: Vec<Socket>,
    source: Source,
    bound: Arc<Bound>,
}

impl AdminService {
    pub(super) fn new(
        proxy: &Arc<Proxy>,
        socket: Vec<Socket>,
        source: Source,
        bound: &Arc<Bound>,
    ) -> Self {
        AdminService { proxy: Arc::clone(proxy), socket, source, bound: Arc::clone(bound) }
    }
}

#[async_trait]
impl Service for AdminService {
    async fn start_service(&mut self, fds: Option<ListenFds>, _: ShutdownWatch, tasks: usize) {
        let (Some(fds), Some(socket)) = (fds, self.socket.pop()) else { return };
        let app = Admin { proxy: Arc::clone(&self.proxy), source: self.source.clone() };
        self.bound.admin(socket.0);
        let buffers = L4BufferSettings::default().read(4096);
        let mut service = listen("admin".to_owned(), socket, buffers, app, &fds);
        // To the very end, unless another process answers at this address.
        service.start_service(Some(fds), self.proxy.drain.handed_over(), tasks).await;
    }

    fn name(&self) -> &'static str {
        "admin"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// Health checks, discovery, reloads.
pub(super) struct Background {
    pub(super) proxy: Arc<Proxy>,
    pub(super) source: Source,
    pub(super) bound: Arc<Bound>,
}

#[async_trait]
impl Service for Background {
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize) {
        let supervision = tokio::spawn(supervise::run(Arc::clone(&self.proxy)));
        let hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => return tracing::error!("no reloads by signal: {error}"),
        };
        let reloads = reload::watch(Arc::clone(&self.proxy), self.source.clone(), hangups);
        let reloads = tokio::spawn(reloads);
        self.bound.listens();
        // The end of the server is the end of this; it ends with the runtime if not before.
        let _ = shutdown.wait_for(|over| *over).await;
        supervision.abort();
        reloads.abort();
    }

    fn name(&self) -> &'static str {
        "background"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}
