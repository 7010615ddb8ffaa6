//! The composition root: everything that runs, in the order in which it starts.
//!
//! Threads: traffic has a runtime of `runtime.threads` single threads without work stealing, so a request never moves
//! and a connection is always found warm; admin pages and background work have one thread each, so that a scrape or a
//! health check adds nothing to a request; pingora's own thread waits for signals.

mod services;
mod signals;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use outrigger_config::{Config, validated::LogPath};
use pingora_core::server::{
    ListenFds, RunArgs, Server,
    configuration::{Opt, ServerConf},
};
use tokio::sync::Notify;

use crate::{
    drain::Drain,
    endpoint::Registry,
    probes::Probes,
    proxy::Proxy,
    reload::{ReloadState, Source},
    snapshot::Snapshot,
    telemetry::{access_log::AccessLog, metrics::Metrics, trace::Tracer},
};
use services::{AdminService, Background, Bound, TrafficService};
use signals::Signals;

/// How long the last lines of the access log may take to be written at the end.
const LAST_LINES: Duration = Duration::from_secs(2);

/// How long the last spans may take to be sent at the end.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// How to run.
pub struct Options {
    /// What to run.
    pub config: Config,
    /// Where it came from, to be read again.
    pub source: Source,
    /// Where to tell which ports were bound.
    pub ports_file: Option<PathBuf>,
    /// Take the listeners over from a running proxy.
    pub upgrade: bool,
}

/// Listeners that are inherited or handed on; filled when traffic starts.
pub(crate) type SharedFds = Arc<OnceLock<ListenFds>>;

/// Runs the proxy until a signal ends it.
///
/// # Errors
/// An address can not be bound, the access log can not be opened, or a weight makes no schedule.
pub fn run(options: Options) -> Result<(), String> {
    let proxy = Arc::new(assemble(options.config)?);
    let config = proxy.snapshot.load().config.clone();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let addresses: Vec<SocketAddr> = config.listeners.iter().map(|l| l.address).collect();
    let bound = Bound::new(addresses.len(), options.ports_file);
    let fds = SharedFds::default();

    let mut server = server(&config, options.upgrade);
    server.bootstrap();
    let sockets = bind_all(&addresses, options.upgrade)?;
    let admin = bind_all(&[config.admin.address], options.upgrade)?;
    server.add_service(TrafficService::new(&proxy, sockets, &bound, &fds));
    server.add_service(AdminService::new(&proxy, admin, options.source.clone(), &bound));
    let background = Arc::clone(&proxy);
    server.add_service(Background {
        proxy: background,
        source: options.source,
        bound: Arc::clone(&bound),
    });
    server.run(RunArgs { shutdown_signal: Box::new(Signals::new(&proxy, &config, fds, bound)) });
    proxy.probes.finish();
    if !proxy.access_log.flush(LAST_LINES) {
        tracing::warn!("the last lines of the access log were not written in time");
    }
    if proxy.tracer.as_ref().is_some_and(|tracer| !tracer.finish(LAST_SPANS)) {
        tracing::warn!("the last spans were not sent in time");
    }
    Ok(())
}

pub(crate) fn assemble(config: Config) -> Result<Proxy, String> {
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let dropped = Arc::clone(&metrics.process().access_log_dropped);
    let access_log = AccessLog::start(&config.access_log, dropped)
        .map_err(|error| format!("can not open the access log {}: {error}", target(&config)))?;
    let tracer = config.tracing.as_ref().map(|tracing| Tracer::start(tracing, &metrics));
    let tracer = tracer.transpose().map_err(|error| format!("can not trace: {error}"))?;
    let probes =
        Arc::new(Probes::start(&config.probes, &metrics, &access_log, config.tracing.is_some()));
    let registry = Arc::new(Registry::new(metrics.clone(), Arc::clone(&probes)));
    let snapshot =
        Snapshot::compile(config, None, &registry, &metrics).map_err(|error| error.to_string())?;
    snapshot.guards_take_over(None);
    metrics.process().config_loaded(SystemTime::now());
    Ok(Proxy {
        snapshot: ArcSwap::from_pointee(snapshot),
        snapshot_changed: Notify::new(),
        registry,
        metrics,
        access_log,
        tracer,
        probes,
        drain: Drain::new(),
        reload: ReloadState::default(),
    })
}

fn target(config: &Config) -> String {
    match &config.access_log.path {
        LogPath::File(path) => path.display().to_string(),
        LogPath::Stdout => "on standard output".to_owned(),
        LogPath::Stderr => "on standard error".to_owned(),
    }
}

fn server(config: &Config, upgrade: bool) -> Server {
    let conf = ServerConf {
        threads: config.runtime.threads,
        work_stealing: false,
        upgrade_sock: config.runtime.upgrade_socket.to_string_lossy().into_owned(),
        // Draining is ours (see `drain`); when the server is told to stop, nothing is left to wait for.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        // Timeouts on tokio's timers: pingora's own keep a thread that wakes a hundred times a second.
        fast_timeout_to_tokio_threshold_seconds: Some(0),
        ..ServerConf::default()
    };
    let opt = Opt { upgrade, ..Opt::default() };
    Server::new_with_opt_and_conf(opt, conf)
}

/// Binds before anything runs, so that an address in use is an error and not a crash. With `upgrade` the sockets come
/// from the running proxy instead.
fn bind_all(
    addresses: &[SocketAddr],
    upgrade: bool,
) -> Result<Vec<(SocketAddr, Option<TcpListener>)>, String> {
    let one = |address: &SocketAddr| match upgrade {
        true => Ok((*address, None)),
        false => bind(*address).map(|(actual, listener)| (actual, Some(listener))),
    };
    addresses.iter().map(one).collect()
}

fn bind(address: SocketAddr) -> Result<(SocketAddr, TcpListener), String> {
    let bound = || -> io::Result<_> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok((listener.local_addr()?, listener))
    };
    bound().map_err(|error| format!("can not listen on {address}: {error}"))
}
