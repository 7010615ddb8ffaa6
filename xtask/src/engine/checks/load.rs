//! Many streams at once, to both engines as one backend.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stream;
use crate::demo::scrape::Scrape;
use crate::engine::client::{Answer, Chat};
use crate::engine::observe::{SOON, eventually};
use crate::engine::stage::{Engine, GAUGED, POOLED, SLOTS, Stage};
use crate::setup;
use crate::shell::program;

/// Twice as many as the engines have slots: half of them run, half of them wait.
const STREAMS: u64 = 4 * SLOTS;

/// Long enough that all streams have begun before the first one ends.
const TOKENS: u64 = 800;

pub(super) fn shared(stage: &mut Stage) -> Result<String> {
    let proxy = stage.proxy.traffic;
    let asked = Chat { model: POOLED, ..stream(TOKENS) };
    let started = Instant::now();
    let clients: Vec<_> = (0..STREAMS).map(|_| thread::spawn(move || asked.ask(proxy))).collect();
    let evenly = is_even(stage);
    let answers: Vec<_> = clients.into_iter().map(thread::JoinHandle::join).collect();
    let took = started.elapsed().as_secs_f64();
    evenly?;
    for answer in answers {
        is_whole(&answer.ok().context("a client panicked")??)?;
    }
    let speed = (STREAMS * TOKENS) as f64 / took;
    Ok(format!("8 and 8 in flight, 4 of each waiting; {speed:.0} tokens/s"))
}

/// Both engines have as much to do as each other, by their own word and by ours.
fn is_even(stage: &Stage) -> Result<()> {
    let is_half = |engine: &Engine| -> Result<bool> {
        Ok(engine.processing()? == SLOTS && engine.deferred()? == STREAMS / 2 - SLOTS)
    };
    eventually("each engine has 4 streams and 4 more waiting", SOON, || {
        Ok(is_half(&stage.stable)? && is_half(&stage.canary)?)
    })?;
    let now = stage.metrics()?;
    let labels = [("backend", "both")];
    let in_flight = now.sums_by("outrigger_endpoint_in_flight", &labels, "endpoint");
    let half = (STREAMS / 2) as f64;
    let is_even = in_flight.len() == 2 && in_flight.values().all(|count| *count == half);
    ensure!(is_even, "the proxy says {in_flight:?} in flight");
    Ok(())
}

fn is_whole(answer: &Answer) -> Result<()> {
    let usage = answer.usage()?;
    ensure!(answer.is_done() && usage.completion == TOKENS, "cut short: {usage:?}");
    Ok(())
}

/// Chats that are sent while one engine is busy behind the proxy's back.
const STEERED: u64 = 12;

/// One engine is filled by others, of whom the proxy knows only what the engine says: requests that have a slot, and
/// requests that wait for one. Its own chats all go to the other engine, and to both once the first one is idle again.
pub(super) fn steered(stage: &mut Stage) -> Result<String> {
    let asked = stream(TOKENS * 8);
    let strangers = (0..2 * SLOTS).map(|_| asked.open(stage.stable.address));
    let strangers = strangers.collect::<Result<Vec<_>>>()?;
    let waiting = |stage: &Stage, count: f64| {
        eventually("the proxy has read the engine's queue", SOON, || {
            Ok(reported(stage, &stage.stable, "waiting")? == count)
        })
    };
    waiting(stage, SLOTS as f64)?;
    let (avoided, other) = gauged_chats(stage)?;
    ensure!(
        (avoided, other) == (0.0, STEERED as f64),
        "{avoided} to the busy engine, {other} to the other"
    );
    // Hanging up frees the slots.
    drop(strangers);
    waiting(stage, 0.0)?;
    eventually("the engine is idle", SOON, || {
        Ok(reported(stage, &stage.stable, "running")? == 0.0)
    })?;
    let (again, other) = gauged_chats(stage)?;
    ensure!(
        again > 0.0 && other > 0.0,
        "{again} to the engine that is idle again, {other} to the other"
    );
    Ok(format!("0 of {STEERED} to the engine with {SLOTS} waiting, then {again} of {STEERED}"))
}

/// Chats one after the other; how many of them the stable engine got, and how many the canary.
fn gauged_chats(stage: &Stage) -> Result<(f64, f64)> {
    let before = stage.metrics()?;
    let asked = Chat { model: GAUGED, ..stream(4) };
    for _ in 0..STEERED {
        asked.ask(stage.proxy.traffic)?;
    }
    let ended = |since: &Scrape, labels: &[(&str, &str)]| {
        since.sum("outrigger_endpoint_requests_total", labels)
    };
    let since = stage.counted("every chat is counted", &before, |since| {
        ended(since, &[("backend", GAUGED)]) == STEERED as f64
    })?;
    let by = |engine: &Engine| {
        let address = engine.address.to_string();
        ended(&since, &[("backend", GAUGED), ("endpoint", &address)])
    };
    Ok((by(&stage.stable), by(&stage.canary)))
}

/// What the proxy last heard of an engine.
fn reported(stage: &Stage, engine: &Engine, signal: &str) -> Result<f64> {
    let address = engine.address.to_string();
    let labels = [("backend", GAUGED), ("endpoint", address.as_str()), ("signal", signal)];
    Ok(stage.metrics()?.sum("outrigger_endpoint_reported_load", &labels))
}

/// Chats of the load under which an engine is killed, and how many have ended by then.
const CHATS: usize = 120;
const ENDED: usize = 30;

/// Sixteen clients that try nothing twice; an engine dies with streams under way and requests waiting.
pub(super) fn killed(stage: &mut Stage) -> Result<String> {
    let before = stage.metrics()?;
    let last = kill_under_load(stage)?;
    let result: Value = serde_json::from_str(&last).with_context(|| format!("said: {last}"))?;
    let list = |name: &str| result[name].as_array().cloned().unwrap_or_default();
    let (complete, cut, lost) = (result["complete"].as_u64(), list("cut"), list("lost"));
    ensure!(lost.is_empty(), "{} requests without a byte were lost: {lost:?}", lost.len());
    ensure!(complete == Some((CHATS - cut.len()) as u64), "the load does not add up: {last}");
    let retried = stage.metrics()?.since(&before);
    let retried = retried.sum("outrigger_retries_total", &[("route", "pooled")]);
    ensure!(retried > 0.0, "nothing waited at the engine when it was killed: {last}");
    eventually("the killed engine is not ready any more", SOON, || is_unready(stage))?;
    let cut = cut.len();
    Ok(format!("{CHATS} chats, {retried} tried again, {cut} cut in the middle, 0 lost"))
}

/// The last line of the load.
fn kill_under_load(stage: &mut Stage) -> Result<String> {
    let url = format!("http://{}/v1", stage.proxy.traffic);
    let mut load = program(setup::python());
    load.args(["tests/engine/load.py", &url, POOLED, "16", &CHATS.to_string(), "300"]);
    let mut load = load.stdout(Stdio::piped()).spawn()?;
    let output = load.stdout.take().context("the output is not piped")?;
    let mut last = String::new();
    for line in BufReader::new(output).lines() {
        last = line?;
        if last == format!("ended {ENDED}") {
            let is_waiting = || Ok(stage.canary.deferred()? > 0);
            eventually("a request without a byte is at the engine", SOON, is_waiting)?;
            stage.canary.running.kill()?;
        }
    }
    ensure!(load.wait()?.success(), "the load failed");
    Ok(last)
}

fn is_unready(stage: &Stage) -> Result<bool> {
    let endpoint = stage.canary.address.to_string();
    let labels = [("backend", "both"), ("endpoint", endpoint.as_str())];
    Ok(stage.metrics()?.sum("outrigger_endpoint_ready", &labels) == 0.0)
}
