//! Somebody goes: a client in the middle of its stream, a client that still waits, the proxy.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::stream;
use crate::engine::client::{Chat, Open};
use crate::engine::observe::{SOON, eventually};
use crate::engine::stage::{SLOTS, Stage};
use crate::shell::program;

/// An answer that takes longer than any check.
const ENDLESS: u64 = 12_000;

fn to_stable(tokens: u64) -> Chat<'static> {
    Chat { arm: Some("stable"), ..stream(tokens) }
}

/// A stream of the stable engine of which so many events have come.
fn begun(stage: &Stage, tokens: u64, events: usize) -> Result<Open> {
    let mut open = to_stable(tokens).open(stage.proxy.traffic)?;
    open.events(events)?;
    Ok(open)
}

/// Some times in a row, because a single figure says little about a machine that others use too.
pub(super) fn mid_stream(stage: &mut Stage) -> Result<String> {
    const TIMES: usize = 7;
    // The engine notices at its next write, which is a token away.
    const USUALLY: Duration = Duration::from_millis(200);
    const ALWAYS: Duration = Duration::from_secs(1);
    let engine = &stage.stable;
    let mut took = Vec::new();
    for _ in 0..TIMES {
        let open = begun(stage, ENDLESS, 20)?;
        ensure!(engine.processing()? == 1, "the engine does not work on the stream");
        drop(open);
        took.push(eventually("the slot is free", ALWAYS, || Ok(engine.processing()? == 0))?);
    }
    took.sort();
    let (median, worst) = (took[TIMES / 2], took[TIMES - 1]);
    ensure!(median <= USUALLY, "it took {median:?} in the median");
    Ok(format!("median {} ms, worst {} ms", median.as_millis(), worst.as_millis()))
}

/// Every slot is taken and no byte of the answer has come. The proxy lets go at once. The engine does not look for the
/// client of a waiting request as long as other streams keep it busy, but once such a request gets a slot it must end
/// at its first byte instead of taking the seconds that its answer would.
pub(super) fn queued(stage: &mut Stage) -> Result<String> {
    const LIMIT: Duration = Duration::from_millis(500);
    let engine = &stage.stable;
    let before = stage.metrics()?;
    let running = (0..SLOTS).map(|_| begun(stage, ENDLESS, 1)).collect::<Result<Vec<_>>>()?;
    let waiting = to_stable(ENDLESS).open(stage.proxy.traffic)?;
    eventually("the fifth request waits", SOON, || Ok(engine.deferred()? == 1))?;
    drop(waiting);
    let noticed = eventually("the proxy counts a client that went", LIMIT, || {
        let since = stage.metrics()?.since(&before);
        Ok(since.sum("outrigger_requests_total", &[("outcome", "client_gone")]) == 1.0)
    })?;
    ensure!(engine.processing()? == SLOTS, "the streams that ran did not go on");
    drop(running);
    let is_idle = || Ok(engine.processing()? + engine.deferred()? == 0);
    let idle = eventually("the engine has nothing to do", LIMIT, is_idle)?;
    let (noticed, idle) = (noticed.as_millis(), idle.as_millis());
    Ok(format!("noticed after {noticed} ms; engine idle {idle} ms after its streams went"))
}

/// SIGTERM while a stream runs: nobody new gets in, the stream comes to its end, the proxy goes.
pub(super) fn drained(stage: &mut Stage) -> Result<String> {
    const TOKENS: u64 = 4000;
    let proxy = stage.proxy.traffic;
    let open = begun(stage, TOKENS, 1)?;
    let reading = thread::spawn(move || (open.finish(), Instant::now()));
    let terminate = format!("kill -s TERM {}", stage.proxy.running.id());
    ensure!(program("sh").args(["-c", &terminate]).status()?.success(), "no signal was sent");
    let is_closed = || Ok(TcpStream::connect(proxy).is_err());
    let closed = eventually("new connections are refused", SOON, is_closed)?;
    let is_running = stage.stable.processing()? == 1;
    let (answer, ended) = reading.join().ok().context("the client panicked")?;
    let answer = answer?;
    ensure!(is_running, "the stream ended before the proxy stopped listening");
    let usage = answer.usage()?;
    ensure!(answer.is_done() && usage.completion == TOKENS, "cut short: {usage:?}");
    let status = stage.proxy.running.ended_within(SOON)?.context("the proxy did not end")?;
    ensure!(status.success(), "the proxy ended with {status}");
    let (closed, gone) = (closed.as_millis(), ended.elapsed().as_millis());
    Ok(format!("closed after {closed} ms, gone {gone} ms after the last byte"))
}
