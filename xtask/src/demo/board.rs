//! The loop that reads the metrics and draws the table until the demo is over.

use std::collections::VecDeque;
use std::io::{Write as _, stdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::scrape::Scrape;
use super::table::{self, View};
use super::{Event, Options, Stage, http, traffic};

/// How often the metrics are read.
const TICK: Duration = Duration::from_secs(1);
/// Where no terminal can be redrawn, a table for every so many ticks.
const TICKS_PER_TABLE: u32 = 5;
/// Rates are taken over so many ticks: in one second six chats are too few to be a rate.
const RECENT_TICKS: usize = 10;

/// Draws until a signal, the end of the last client, or the end of the time that was asked for.
pub(crate) fn show(stage: &mut Stage, options: &Options, events: &Receiver<Event>) -> Result<()> {
    let mut board = Board::start(stage, options.terminal)?;
    let mut clients = traffic::CLIENTS;
    let mut next = board.started + TICK;
    while options.seconds.is_none_or(|seconds| board.started.elapsed() < seconds) {
        match events.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Event::ClientEnded) if clients > 1 => clients -= 1,
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                next += TICK;
                board.tick(stage)?;
            }
        }
    }
    board.finish(stage)
}

struct Board {
    started: Instant,
    terminal: bool,
    ticks: u32,
    /// (arm, weight) as configured when last looked.
    split: Vec<(String, f64)>,
    /// The metrics as they were when the split last changed.
    base: Scrape,
    /// The latest scrapes and when they were taken, the oldest first.
    recent: VecDeque<(Instant, Scrape)>,
}

impl Board {
    fn start(stage: &mut Stage, terminal: bool) -> Result<Self> {
        let (started, base) = (Instant::now(), stage.scrape()?);
        let split = configured_split(stage)?;
        let recent = VecDeque::from([(started, base.clone())]);
        if terminal {
            // Clears the screen: cargo's output has served.
            print!("\x1b[2J");
        } else {
            println!("{}", introduction(stage));
        }
        Ok(Self { started, terminal, ticks: 0, split, base, recent })
    }

    fn tick(&mut self, stage: &mut Stage) -> Result<()> {
        self.ticks += 1;
        self.look(stage)?;
        if self.terminal || self.ticks.is_multiple_of(TICKS_PER_TABLE) {
            self.draw(stage)?;
        }
        Ok(())
    }

    /// The last word where the table cannot be redrawn; on a terminal the last table is still to be seen.
    fn finish(&mut self, stage: &mut Stage) -> Result<()> {
        self.look(stage)?;
        self.draw(stage)
    }

    fn look(&mut self, stage: &mut Stage) -> Result<()> {
        let scrape = stage.scrape()?;
        let split = configured_split(stage)?;
        if split != self.split {
            self.split = split;
            self.base = scrape.clone();
        }
        self.recent.push_back((Instant::now(), scrape));
        if self.recent.len() > RECENT_TICKS + 1 {
            self.recent.pop_front();
        }
        Ok(())
    }

    fn draw(&self, stage: &Stage) -> Result<()> {
        let (Some((from, oldest)), Some((to, now))) = (self.recent.front(), self.recent.back())
        else {
            return Ok(());
        };
        let table = table::render(&View {
            split: &self.split,
            now,
            total: &now.since(&self.base),
            recent: &now.since(oldest),
            recent_seconds: (*to - *from).as_secs_f64(),
        });
        let seconds = self.started.elapsed().as_secs();
        let mut out = stdout().lock();
        if self.terminal {
            // Home, then everything below is erased as it is drawn again.
            write!(out, "\x1b[H\x1b[J{}\n  after {seconds} s\n\n{table}", introduction(stage))?;
            writeln!(out, "\n  Ctrl-C ends it and everything it started.")?;
        } else {
            writeln!(out, "  after {seconds} s\n\n{table}")?;
        }
        Ok(out.flush()?)
    }
}

/// What runs here and what to try while it does.
fn introduction(stage: &Stage) -> String {
    let (traffic, admin, config) = (stage.proxy.traffic, stage.proxy.admin, stage.config.display());
    let (stable, canary, clients) = (stage.stable.address, stage.canary.address, traffic::CLIENTS);
    format!(
        r#"
  Outrigger on {traffic}, in front of two simulated model servers: stable
  ({stable}) and canary ({canary}, half as fast). {clients} clients chat
  through it. To try from another terminal:

    curl -N http://{traffic}/v1/chat/completions --json '{{"model": "demo",
      "stream": true, "messages": [{{"role": "user", "content": "hello"}}]}}'
    ... -H 'x-outrigger-arm: canary'  asks the canary, whatever the split
    curl http://{admin}/endpoints     live state; also /metrics /ready /config
    edit {config}     a changed split is taken over on save
"#
    )
}

/// The weights in force, the largest first; whoever plays with the demo may have changed them.
fn configured_split(stage: &Stage) -> Result<Vec<(String, f64)>> {
    let config: Value = serde_json::from_str(&http::get(stage.proxy.admin, "/config")?.body)?;
    let split = config.pointer("/config/routes/0/action/split").and_then(Value::as_array);
    let split = split.context("/config shows no split in the first route")?;
    let arm = |it: &Value| Some((it["name"].as_str()?.to_owned(), it["weight"].as_f64()?));
    let mut arms: Vec<(String, f64)> = split.iter().filter_map(arm).collect();
    arms.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(arms)
}
