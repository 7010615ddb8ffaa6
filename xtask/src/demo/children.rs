//! The programs that the demo (and the engine tier) starts: where they listen, and that they end with it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::http;

/// Starting takes milliseconds; who needs longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a starting program is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// A child process that ends when this is dropped.
pub(crate) struct Running {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

/// A model server simulator and the address it listens on.
pub(crate) struct Simulator {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
}

/// Outrigger and the addresses it took.
pub(crate) struct Proxy {
    pub(crate) running: Running,
    pub(crate) traffic: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// Starts a simulator; `pace` are further arguments.
pub(crate) fn simulator(
    program: &Path,
    folder: &Path,
    name: &'static str,
    pace: &[&str],
) -> Result<Simulator> {
    let mut command = Command::new(program);
    command.args(["--listen", "127.0.0.1:0", "--name", name]).args(pace);
    command.stdout(Stdio::piped());
    let mut running = Running::start(command, name, folder)?;
    let output = running.child.stdout.take().context("the simulator's output is not piped")?;
    let mut greeting = String::new();
    BufReader::new(output).read_line(&mut greeting)?;
    match address(&greeting, "/listening") {
        Some(address) => Ok(Simulator { running, address }),
        None => bail!("{name} did not say where it listens\n{}", running.last_words()),
    }
}

/// Starts Outrigger and waits until it has bound its ports and found its endpoints healthy.
pub(crate) fn proxy(program: &Path, folder: &Path, config: &Path) -> Result<Proxy> {
    let ports = folder.join("ports.json");
    let mut command = Command::new(program);
    command.arg("run").arg("--config").arg(config).arg("--ports-file").arg(&ports);
    command.stdout(Stdio::null());
    let mut running = Running::start(command, "outrigger", folder)?;
    running.until("bound no port", || ports.exists())?;
    let ports = fs::read_to_string(&ports)?;
    let address = |pointer| {
        address(&ports, pointer).with_context(|| format!("no {pointer} in the ports file: {ports}"))
    };
    let (traffic, admin) = (address("/listeners/0")?, address("/admin")?);
    running.until("was not ready", || is_ready(admin).unwrap_or(false))?;
    Ok(Proxy { running, traffic, admin })
}

/// Ready, and with no arm that has yet to pass its health check.
fn is_ready(admin: SocketAddr) -> Result<bool> {
    let answer = http::get(admin, "/ready")?;
    let readiness: Value = serde_json::from_str(&answer.body)?;
    let degraded = readiness["degraded"].as_array().is_some_and(|reasons| !reasons.is_empty());
    Ok(answer.status == 200 && !degraded)
}

fn address(json: &str, pointer: &str) -> Option<SocketAddr> {
    let json: Value = serde_json::from_str(json).ok()?;
    json.pointer(pointer)?.as_str()?.parse().ok()
}

impl Running {
    /// Starts a program whose standard error is kept in `folder`.
    pub(crate) fn start(mut command: Command, name: &'static str, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        command.stdin(Stdio::null()).stderr(File::create(&log)?);
        detach_from_terminal(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name, log })
    }

    /// Fails when the program has ended, with what it said last.
    pub(crate) fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended ({status})\n{}", self.name, self.last_words()),
            None => Ok(()),
        }
    }

    /// Waits for something that the program does and that no event of the standard library tells of.
    pub(crate) fn until(&mut self, failure: &str, done: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !done() {
            self.still_runs()?;
            if started.elapsed() > PATIENCE {
                bail!("{} {failure} within {PATIENCE:?}\n{}", self.name, self.last_words());
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a machine that loses power would, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for it to end by itself; nothing when it still runs after `limit`.
    pub(crate) fn ended_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let started = Instant::now();
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || started.elapsed() > limit {
                return Ok(status);
            }
            thread::sleep(GLANCE);
        }
    }

    /// The file with what it says on its standard error.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// A process group of its own, so that Ctrl-C reaches only the demo, which ends its children in its own time.
fn detach_from_terminal(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
