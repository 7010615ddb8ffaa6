//! Runs the `outrigger` binary.
//!
//! What a configuration leaves out and two proxies on one machine would fight over is filled in: `listeners` and `admin`
//! on free ports of 127.0.0.1, and an upgrade socket in the proxy's own directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::signal::Signal;
use notify::{RecursiveMode, Watcher};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{Answer, Call, Metrics, PATIENCE, Process, within};

/// What to run and how.
#[derive(Debug)]
pub struct Launch {
    binary: Option<PathBuf>,
    directory: Arc<TempDir>,
    ports_file: &'static str,
    config: Config,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    as_configmap: bool,
}

#[derive(Debug)]
enum Config {
    Absent,
    Text(String),
    /// The file that another proxy was started with.
    Shared,
}

/// A running proxy; dropping it kills it.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    ports: Ports,
    directory: Arc<TempDir>,
    generation: AtomicU64,
}

/// The ports file.
#[derive(Debug, Deserialize)]
struct Ports {
    listeners: Vec<SocketAddr>,
    admin: SocketAddr,
    pid: u32,
}

impl Launch {
    /// `outrigger run --config FILE` with this configuration.
    pub fn new(yaml: &str) -> Self {
        Self { config: Config::Text(yaml.to_owned()), ..Self::bare() }
    }

    /// `outrigger run --config FILE --upgrade` with the configuration file of `proxy`, to take over from it.
    pub fn successor_of(proxy: &Proxy) -> Self {
        let directory = Arc::clone(&proxy.directory);
        let (config, ports_file) = (Config::Shared, "successor-ports.json");
        Self { directory, config, ports_file, ..Self::bare() }.arg("--upgrade")
    }

    /// `outrigger run --upstream URL --listen … --admin …` on free ports.
    pub fn upstream(url: &str) -> Self {
        let free = "127.0.0.1:0";
        Self::bare().arg("--upstream").arg(url).arg("--listen").arg(free).arg("--admin").arg(free)
    }

    fn bare() -> Self {
        Self {
            binary: None,
            directory: Arc::new(tempfile::tempdir().expect("a temporary directory can be made")),
            ports_file: "ports.json",
            config: Config::Absent,
            arguments: Vec::new(),
            environment: Vec::new(),
            as_configmap: false,
        }
    }

    /// Runs this program instead of the one under test.
    #[must_use]
    pub fn binary(self, path: &Path) -> Self {
        Self { binary: Some(path.to_owned()), ..self }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lays the configuration out as Kubernetes mounts a ConfigMap: links into a directory that is swapped as a whole.
    #[must_use]
    pub fn as_configmap(self) -> Self {
        Self { as_configmap: true, ..self }
    }

    /// Starts it and waits until it has bound its ports.
    ///
    /// # Panics
    /// When there is no binary, or it does not get there within 20 s.
    pub async fn start(self) -> Proxy {
        let (told, mut events) = mpsc::unbounded_channel();
        let watcher = watch(self.directory.path(), told);
        let mut command = self.command();
        let process = Process::spawn(&mut command);
        let file = self.ports_file();
        let ports = async {
            loop {
                if let Some(ports) = read_ports(&file) {
                    return ports;
                }
                tokio::select! {
                    _ = events.recv() => {}
                    status = process.exited() => process.fail(&format!("ended with {status}")),
                }
            }
        };
        let Ok(ports) = tokio::time::timeout(PATIENCE, ports).await else {
            process.fail("wrote no ports file");
        };
        drop(watcher);
        Proxy { process, ports, directory: self.directory, generation: AtomicU64::new(1) }
    }

    /// Runs it and waits until it gives up; its status and what it wrote.
    ///
    /// # Panics
    /// When it goes on for longer than 20 s.
    pub async fn fails(self) -> (ExitStatus, Vec<String>) {
        Process::finish(&mut self.command()).await
    }

    fn ports_file(&self) -> PathBuf {
        self.directory.path().join(self.ports_file)
    }

    fn command(&self) -> Command {
        let directory = self.directory.path();
        let mut command = Command::new(self.binary.clone().unwrap_or_else(program));
        command.arg("run").arg("--ports-file").arg(self.ports_file());
        match &self.config {
            Config::Text(yaml) if self.as_configmap => write_as_configmap(directory, yaml, 0),
            Config::Text(yaml) => write_whole(directory, yaml),
            Config::Absent | Config::Shared => {}
        }
        if !matches!(self.config, Config::Absent) {
            command.arg("--config").arg(config_file(directory));
        }
        command.args(&self.arguments).env_remove("RUST_LOG").env("RUST_BACKTRACE", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Proxy {
    /// Starts one with this configuration.
    ///
    /// # Panics
    /// When there is no binary, or it does not get there within 20 s.
    pub async fn start(yaml: &str) -> Self {
        Launch::new(yaml).start().await
    }

    /// Where its first listener takes traffic.
    ///
    /// # Panics
    /// When it has none.
    pub fn address(&self) -> SocketAddr {
        *self.ports.listeners.first().expect("a proxy has a listener")
    }

    /// Where all its listeners take traffic, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.ports.listeners
    }

    /// Where its admin interface is.
    pub fn admin(&self) -> SocketAddr {
        self.ports.admin
    }

    /// Its process id, as it tells it.
    pub fn pid(&self) -> u32 {
        self.ports.pid
    }

    /// The directory of its configuration, its ports file and whatever a test wants there; gone when it is dropped.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its configuration file.
    pub fn config_file(&self) -> PathBuf {
        config_file(self.directory())
    }

    /// Replaces its configuration file by renaming another over it. Whether and when the proxy notices is for the test.
    pub fn rewrite_config(&self, yaml: &str) {
        write_whole(self.directory(), yaml);
    }

    /// Replaces its configuration as a ConfigMap's is replaced: by swapping the link to the directory it is in.
    pub fn rewrite_config_as_configmap(&self, yaml: &str) {
        write_as_configmap(self.directory(), yaml, self.generation.fetch_add(1, Relaxed));
    }

    /// The process, for what is not offered here.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it goes on for longer than `timeout`.
    pub async fn wait_exit(&self, timeout: Duration) -> ExitStatus {
        self.process.wait_exit(timeout).await
    }

    /// Whether it is still running.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Every line that it has written so far, on either output.
    pub fn log(&self) -> Vec<String> {
        self.process.log()
    }

    /// Waits for a line that contains `pattern`, also one that came before, and gives it.
    ///
    /// # Panics
    /// After 20 s, or when the proxy ends without it.
    pub async fn await_log(&self, pattern: &str) -> String {
        self.process.await_log(pattern).await
    }

    /// The lines of its access log in JSON, so far.
    pub fn access_log(&self) -> Vec<Value> {
        access_lines(&self.log())
    }

    /// Waits until its access log has `count` lines and gives them all.
    ///
    /// # Panics
    /// After 20 s, or when the proxy ends without them.
    pub async fn await_access(&self, count: usize) -> Vec<Value> {
        let enough =
            |lines: &[String]| Some(access_lines(lines)).filter(|entries| entries.len() >= count);
        match self.process.await_lines(enough).await {
            Some(entries) => entries,
            None => self.process.fail(&format!("not {count} lines of access log")),
        }
    }

    /// Asks its admin interface.
    pub async fn admin_get(&self, path: &str) -> Answer {
        Call::get(path).send(self.admin()).await
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin_get("/metrics").await.text())
    }

    /// Its metrics as soon as they are as wished. There is no event to wait for: it asks every 20 ms.
    ///
    /// # Panics
    /// After 20 s.
    pub async fn await_metrics(&self, wished: impl Fn(&Metrics) -> bool) -> Metrics {
        let wait = async {
            let mut pause = tokio::time::interval(Duration::from_millis(20));
            loop {
                pause.tick().await;
                let metrics = self.metrics().await;
                if wished(&metrics) {
                    return metrics;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(metrics) => metrics,
            Err(_) => {
                let text = within("the metrics", self.metrics()).await.text;
                self.process.fail(&format!("the metrics did not get there:\n{text}"))
            }
        }
    }
}

/// The program under test.
///
/// # Panics
/// When it has not been built.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("OUTRIGGER_BIN") {
        return path.into();
    }
    let this = std::env::current_exe().expect("a running program knows where it is");
    let profile = this.ancestors().find(|path| !path.ends_with("deps") && path.is_dir());
    let path = profile.unwrap_or(Path::new(".")).join("outrigger");
    if !path.is_file() {
        let path = path.display();
        super::fail(&format!(
            "there is no {path}: build it with `cargo build -p outrigger` in the profile of the tests, \
             or run `cargo xtask test`, or point OUTRIGGER_BIN at it"
        ));
    }
    path
}

fn watch(directory: &Path, told: mpsc::UnboundedSender<()>) -> impl Watcher {
    let tell = move |_| {
        // Nobody listens any more when the ports are known.
        let _ = told.send(());
    };
    let mut watcher = notify::recommended_watcher(tell).expect("inotify is there");
    let watched = watcher.watch(directory, RecursiveMode::NonRecursive);
    watched.expect("a directory can be watched");
    watcher
}

fn read_ports(file: &Path) -> Option<Ports> {
    let text = std::fs::read_to_string(file).ok()?;
    match serde_json::from_str(&text) {
        Ok(ports) => Some(ports),
        Err(error) => super::fail(&format!("a ports file that is none ({error}): {text}")),
    }
}

fn access_lines(lines: &[String]) -> Vec<Value> {
    let entries = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    entries.filter(|entry| entry["outcome"].is_string() && entry["method"].is_string()).collect()
}

fn config_file(directory: &Path) -> PathBuf {
    directory.join("outrigger.yaml")
}

fn write_whole(directory: &Path, yaml: &str) {
    let draft = directory.join("outrigger.yaml.new");
    std::fs::write(&draft, filled_in(yaml, directory)).expect("the directory is writable");
    std::fs::rename(&draft, config_file(directory)).expect("a file can be renamed beside itself");
}

fn write_as_configmap(directory: &Path, yaml: &str, generation: u64) {
    let inner = format!("..generation_{generation}");
    std::fs::create_dir(directory.join(&inner)).expect("each generation is new");
    let file = directory.join(&inner).join("outrigger.yaml");
    std::fs::write(file, filled_in(yaml, directory)).expect("the directory is writable");
    link(directory, "..data", &inner);
    let linked = std::fs::read_link(config_file(directory)).is_ok();
    if !linked {
        link(directory, "outrigger.yaml", "..data/outrigger.yaml");
    }
}

/// Makes `name` a link to `target`, at once.
fn link(directory: &Path, name: &str, target: &str) {
    let draft = directory.join("..link");
    std::os::unix::fs::symlink(target, &draft).expect("the directory is writable");
    std::fs::rename(&draft, directory.join(name)).expect("a link can be renamed beside itself");
}

fn filled_in(yaml: &str, directory: &Path) -> String {
    let socket = directory.join("upgrade.sock");
    let defaults = [
        ("listeners:", "listeners: [{ address: 127.0.0.1:0 }]\n".to_owned()),
        ("admin:", "admin: { address: 127.0.0.1:0 }\n".to_owned()),
        ("runtime:", format!("runtime: {{ upgrade_socket: {} }}\n", socket.display())),
    ];
    let missing = defaults.into_iter().filter(|(key, _)| !yaml.lines().any(|l| l.starts_with(key)));
    missing.map(|(_, text)| text).chain([yaml.to_owned()]).collect()
}
