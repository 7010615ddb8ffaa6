//! Whether the kernel's times agree with the engine's own, and with its client's.

use std::{fmt, fs};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stream;
use crate::engine::observe::{SOON, eventually};
use crate::engine::stage::Stage;

/// Streams that are compared, one after the other.
const STREAMS: usize = 40;

/// How far the kernel may be from each of them in half of the streams, as a share of what they take. The engine notes when it
/// has a token; another of its threads has to be woken to write it, and it writes more after the last one. The client gets the
/// first bytes while the engine works, and the last when it rests.
const APART_MOST: f64 = 0.1;

/// The time from an answer's first write to its last, against what the engine says that it took from its first token to its
/// last, and against the client's from the first bytes to the last.
pub(super) fn agree(stage: &mut Stage) -> Result<String> {
    if stage.metrics()?.sum("outrigger_probe_running", &[]) == 0.0 {
        return Ok("NOT TESTED, the probe cannot run here".to_owned());
    }
    let told = stage.metrics_with_timelines()?.sum("outrigger_app_answer_seconds_count", &[]);
    let before = told as usize;
    eventually("every answer has its line", SOON, || Ok(answers(stage)?.len() == before))?;
    let (mut engine, mut client) = (Vec::new(), Vec::new());
    for _ in 0..STREAMS {
        let (answer, took) = stream(100).open(stage.proxy.traffic)?.finish_timed()?;
        ensure!(answer.is_done(), "a stream was cut");
        engine.push(answer.timing("predicted_ms")?);
        client.push(took.as_secs_f64() * 1e3);
    }
    eventually(
        "every stream has its line",
        SOON,
        || Ok(answers(stage)?.len() >= before + STREAMS),
    )?;
    let kernel = answers(stage)?.split_off(before);
    let mean = engine.iter().sum::<f64>() / STREAMS as f64;
    let from_engine = Apart::of("the engine", &kernel, &engine, APART_MOST * mean)?;
    let from_client = Apart::of("the client", &kernel, &client, APART_MOST * mean)?;
    Ok(format!("of {mean:.1} ms apart from {from_engine}, from {from_client}"))
}

/// How far two clocks are apart in milliseconds.
struct Apart {
    from: &'static str,
    median: f64,
    most: f64,
}

impl Apart {
    /// Fails when it is more than so much in half of them.
    fn of(from: &'static str, kernel: &[f64], other: &[f64], limit: f64) -> Result<Self> {
        let mut apart: Vec<f64> = kernel.iter().zip(other).map(|(a, b)| (a - b).abs()).collect();
        apart.sort_by(f64::total_cmp);
        let (median, most) = (apart[STREAMS / 2], apart[STREAMS - 1]);
        ensure!(median <= limit, "the kernel says {kernel:?} ms, {from} {other:?}");
        Ok(Apart { from, median, most })
    }
}

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Apart { from, median, most } = self;
        write!(f, "{from} {:.0} us in the median and {:.0} at most", median * 1e3, most * 1e3)
    }
}

/// From the first write to the last in milliseconds, of every request that has a line in the access log.
fn answers(stage: &Stage) -> Result<Vec<f64>> {
    let log = fs::read_to_string(stage.access_log()).context("the access log")?;
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let took = |line: &str| {
        let line: Value = serde_json::from_str(line).context("a line of the access log")?;
        // A request that was not answered by an engine has none.
        Ok(line["app_answer_ms"].as_f64())
    };
    whole.lines().filter_map(|line| took(line).transpose()).collect()
}
