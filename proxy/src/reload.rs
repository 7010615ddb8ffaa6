//! Changing the configuration of a running proxy.
//!
//! A change of the file or a SIGHUP leads to one attempt: the new file is validated whole and swapped in once, or the
//! old configuration stays and the reason is kept for the log, the metrics and the admin page. The directory is
//! watched, not the file, so that an editor's rename and the symlink swap of a ConfigMap count as changes too.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use notify::{RecursiveMode, Watcher};
use outrigger_config::{Config, Report};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{signal::unix::Signal, sync::mpsc};

use crate::{proxy::Proxy, snapshot::Snapshot, telemetry::metrics::Verdict};

/// An editor writes more than once; what comes within this time is one change.
const SETTLE: Duration = Duration::from_millis(50);

/// Where a configuration can be read again; `None` when there is no file.
pub type Source = Option<PathBuf>;

/// How the last reload went.
#[derive(Default)]
pub struct ReloadState {
    last: Mutex<LastReload>,
    /// Held by a reload from reading to swapping: the admin page and the watch may want one at the same time.
    turn: Mutex<()>,
}

/// What the admin page says of the last reload.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LastReload {
    /// How many were tried.
    pub attempts: u64,
    /// Whether the last one was accepted; `None` before the first.
    pub accepted: Option<bool>,
    /// Unix time of the last one.
    pub at: Option<u64>,
    /// Why it was refused, a line for each problem.
    pub problems: Vec<String>,
    /// Settings that changed in the file and need a restart.
    pub restart_needed: Vec<&'static str>,
}

impl ReloadState {
    /// How the last reload went.
    pub fn last(&self) -> LastReload {
        self.last.lock().clone()
    }

    fn record(&self, problems: Vec<String>, restart_needed: Vec<&'static str>) {
        let mut last = self.last.lock();
        last.attempts += 1;
        last.accepted = Some(problems.is_empty());
        last.at =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|d| d.as_secs());
        (last.problems, last.restart_needed) = (problems, restart_needed);
    }
}

/// Reads the file again and puts it in the place of the configuration in force.
///
/// # Errors
/// A line for each problem; the old configuration stays.
pub fn from_file(proxy: &Proxy, path: &Path) -> Result<(), Vec<String>> {
    let _turn = proxy.reload.turn.lock();
    apply(proxy, outrigger_config::load(path))
}

/// Puts `config` in the place of the one in force. Settings that need a restart keep their present values.
///
/// # Errors
/// A line for each problem; the old configuration stays.
fn apply(proxy: &Proxy, config: Result<Config, Report>) -> Result<(), Vec<String>> {
    let result = config.map_err(|report| lines(&report)).and_then(|config| swap(proxy, config));
    let (verdict, problems, restart) = match result {
        Ok(restart) => (Verdict::Success, Vec::new(), restart),
        Err(problems) => (Verdict::Failure, problems, Vec::new()),
    };
    proxy.metrics.process().config_reloaded(verdict, SystemTime::now());
    for problem in &problems {
        tracing::error!("configuration refused, the old one stays: {problem}");
    }
    for setting in &restart {
        tracing::warn!("{setting} changed: that needs a restart, the old value stays");
    }
    proxy.reload.record(problems.clone(), restart);
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn lines(report: &Report) -> Vec<String> {
    report.to_string().lines().map(str::to_owned).collect()
}

fn swap(proxy: &Proxy, mut config: Config) -> Result<Vec<&'static str>, Vec<String>> {
    let old = proxy.snapshot.load();
    let restart = outrigger_config::changed_restart_settings(&old.config, &config);
    config.listeners.clone_from(&old.config.listeners);
    config.admin.clone_from(&old.config.admin);
    config.runtime.clone_from(&old.config.runtime);
    config.probes.clone_from(&old.config.probes);
    config.tracing.clone_from(&old.config.tracing);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let new = Snapshot::compile(config, Some(&old), &proxy.registry, &proxy.metrics)
        .map_err(|error| vec![error.to_string()])?;
    let generation = new.generation;
    let new = Arc::new(new);
    proxy.snapshot.store(Arc::clone(&new));
    new.guards_take_over(Some(&old));
    new.open_gates(&old, &proxy.metrics);
    old.dismiss_endpoints_not_in(&new, &proxy.registry);
    proxy.snapshot_changed.notify_one();
    tracing::info!(generation, "configuration in force");
    Ok(restart)
}

/// Reloads whenever the file changes or a hang-up signal comes, which also reopens the access log for whoever rotates
/// it. Never returns while signals can come.
pub async fn watch(proxy: Arc<Proxy>, source: Source, mut hangups: Signal) {
    let (changed, mut changes) = mpsc::channel(1);
    // Kept alive: dropping it ends the watch.
    let _watcher = source.as_ref().map(|path| {
        watch_directory(path, changed)
            .inspect_err(|error| tracing::error!("can not watch {}: {error}", path.display()))
    });
    let mut text = source.as_ref().and_then(|path| std::fs::read(path).ok());
    if let Some(path) = &source {
        take_up_change_at_start(&proxy, path);
    }
    loop {
        let asked = tokio::select! {
            Some(()) = hangups.recv() => true,
            Some(()) = changes.recv() => false,
            else => return,
        };
        if asked {
            proxy.access_log.reopen();
        }
        let Some(path) = &source else {
            tracing::info!("there is no configuration file to read again");
            continue;
        };
        tokio::time::sleep(SETTLE).await;
        _ = changes.try_recv();
        let now = std::fs::read(path).ok();
        if asked || now != text {
            text = now;
            // What went wrong is in the log, the metrics and the admin page.
            let _ = from_file(&proxy, path);
        }
    }
}

/// The file may have changed after it was loaded and before it was watched.
fn take_up_change_at_start(proxy: &Proxy, path: &Path) {
    let _turn = proxy.reload.turn.lock();
    match outrigger_config::load(path) {
        Ok(config) if config == proxy.snapshot.load().config => {}
        // What went wrong is in the log, the metrics and the admin page.
        changed => _ = apply(proxy, changed),
    }
}

/// Tells of every change in the directory of `path` that is not a mere access.
pub fn watch_directory(
    path: &Path,
    changed: mpsc::Sender<()>,
) -> notify::Result<notify::RecommendedWatcher> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file is an event as well, and we are the ones who read it.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // A full channel holds a change already.
            let _ = changed.try_send(());
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
