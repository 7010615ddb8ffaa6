//! Whether the kernel's times and the engine's own agree.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stream;
use crate::engine::observe::{SOON, eventually};
use crate::engine::stage::Stage;

/// Streams that are compared, one after the other.
const STREAMS: usize = 40;

/// How far apart the two may be in half of them, in milliseconds. The engine notes when it has a token; another of its threads
/// has to be woken to write it, which on a processor that is fought over takes longer for one than for another.
const MEDIAN_MOST: f64 = 2.0;

/// The time from an answer's first write to its last, against what the engine says that it took from its first token to its
/// last.
pub(super) fn agree(stage: &mut Stage) -> Result<String> {
    if stage.metrics()?.sum("outrigger_probe_running", &[]) == 0.0 {
        return Ok("NOT TESTED, the probe cannot run here".to_owned());
    }
    let before = answers(stage)?.len();
    let mut engine = Vec::new();
    for _ in 0..STREAMS {
        let answer = stream(100).ask(stage.proxy.traffic)?;
        ensure!(answer.is_done(), "a stream was cut");
        engine.push(answer.timing("predicted_ms")?);
    }
    eventually(
        "every stream has its line",
        SOON,
        || Ok(answers(stage)?.len() >= before + STREAMS),
    )?;
    let kernel = answers(stage)?.split_off(before);
    let mut apart: Vec<f64> = kernel.iter().zip(&engine).map(|(a, b)| (a - b).abs()).collect();
    apart.sort_by(f64::total_cmp);
    let (median, worst) = (apart[STREAMS / 2], apart[STREAMS - 1]);
    ensure!(median <= MEDIAN_MOST, "the kernel says {kernel:?} ms, the engine {engine:?}");
    let mean = engine.iter().sum::<f64>() / STREAMS as f64;
    Ok(format!(
        "of {mean:.1} ms apart {:.0} us in the median, {:.0} at most",
        median * 1e3,
        worst * 1e3
    ))
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
