//! `cargo xtask demo`: two simulated model servers, stable and canary, behind Outrigger, a little streaming
//! traffic, and a live table of what Outrigger says about it.
//!
//! Everything it shows comes from the admin port, as a dashboard's figures would. All ports are free ones, all
//! files are in one temporary folder, and nothing outlives it.

mod board;
pub(crate) mod children;
pub(crate) mod http;
pub(crate) mod scrape;
mod table;
mod traffic;

use std::fs;
use std::io::{IsTerminal, stdout};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pico_args::Arguments;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::children::{Proxy, Simulator};
use self::scrape::Scrape;
use self::traffic::Tally;
use crate::build::{self, Programs};
use crate::nothing_left;
use crate::setup::{self, Need};

/// Where nobody can press Ctrl-C the demo ends by itself.
const UNATTENDED: Duration = Duration::from_secs(15);

struct Options {
    /// Ends after this time, if at all.
    seconds: Option<Duration>,
    /// Ends after so many chats, if at all.
    requests: Option<u64>,
    /// Whether the table can be redrawn in place.
    terminal: bool,
}

/// What may end the wait for the next tick.
enum Event {
    Interrupted,
    ClientEnded,
}

/// The programs and files of one demo. Fields are dropped in this order: programs end before their folder goes.
struct Stage {
    proxy: Proxy,
    stable: Simulator,
    canary: Simulator,
    config: PathBuf,
    _folder: Folder,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    perform(&options(arguments)?)
}

/// A demo of a few seconds that fails unless every chat succeeds.
pub(crate) fn brief() -> Result<()> {
    perform(&Options { seconds: None, requests: Some(30), terminal: false })
}

fn perform(options: &Options) -> Result<()> {
    setup::ensure(&[Need::Build])?;
    let programs = build::programs()?;
    let (sender, events) = mpsc::channel();
    announce_signals(sender.clone())?;
    let mut stage = Stage::set(&programs)?;
    let tally = traffic::start(stage.proxy.traffic, options.requests, move || {
        // The receiver is gone only when the demo is over anyway.
        let _ = sender.send(Event::ClientEnded);
    });
    let shown = board::show(&mut stage, options, &events);
    tally.stop();
    shown?;
    verdict(options, &tally)
}

fn options(mut arguments: Arguments) -> Result<Options> {
    let seconds: Option<u64> = arguments.opt_value_from_str("--seconds")?;
    let requests: Option<u64> = arguments.opt_value_from_str("--requests")?;
    nothing_left(arguments)?;
    let terminal = stdout().is_terminal();
    let unattended = (!terminal && requests.is_none()).then_some(UNATTENDED);
    Ok(Options { seconds: seconds.map(Duration::from_secs).or(unattended), requests, terminal })
}

fn announce_signals(sender: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            let _ = sender.send(Event::Interrupted);
        }
    });
    Ok(())
}

fn verdict(options: &Options, tally: &Tally) -> Result<()> {
    let (completed, failed) = (tally.completed(), tally.failed());
    println!(
        "\ndemo: {completed} chats completed, {failed} failed; everything it started has ended"
    );
    match options.requests {
        Some(wanted) if completed < wanted => bail!(
            "{completed} of {wanted} chats succeeded: {}",
            tally.last_failure().unwrap_or_else(|| "ended before the rest began".to_owned())
        ),
        _ => Ok(()),
    }
}

impl Stage {
    fn set(programs: &Programs) -> Result<Self> {
        let folder = Folder::create()?;
        let simulator =
            |name, pace: &[&str]| children::simulator(&programs.simulator, &folder.0, name, pace);
        let stable = simulator("stable", &[])?;
        let canary = simulator("canary", &["--slowdown", "2"])?;
        let config = folder.0.join("outrigger.yaml");
        fs::write(&config, configuration(&folder.0, stable.address, canary.address))?;
        let proxy = children::proxy(&programs.outrigger, &folder.0, &config)?;
        Ok(Self { proxy, stable, canary, config, _folder: folder })
    }

    fn scrape(&mut self) -> Result<Scrape> {
        let result = http::get(self.proxy.admin, "/metrics");
        if result.is_err() {
            self.proxy.running.still_runs()?;
        }
        self.stable.running.still_runs()?;
        self.canary.running.still_runs()?;
        Ok(Scrape::parse(&result?.body))
    }
}

fn configuration(folder: &Path, stable: SocketAddr, canary: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "\
# Written by `cargo xtask demo`. Change the split and save: the running Outrigger takes it over.
listeners:
  - address: 127.0.0.1:0
admin:
  address: 127.0.0.1:0
runtime:
  upgrade_socket: {folder}/upgrade.sock
backends:
  stable:
    endpoints: [\"{stable}\"]
    health: {{ http: /health }}
  canary:
    endpoints: [\"{canary}\"]
    health: {{ http: /health }}
routes:
  - name: chat
    match: {{ path: /v1/* }}
    split: {{ stable: 90, canary: 10 }}
    expose: [arm, timing]
access_log:
  path: {folder}/access.log
"
    )
}

/// A temporary folder that is removed with everything in it.
struct Folder(PathBuf);

impl Folder {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("outrigger-demo-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
