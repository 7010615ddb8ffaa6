//! Who served, and whether everybody counts the same: the answers, the engines' metrics, and ours.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{chat, stream};
use crate::demo::scrape::Scrape;
use crate::engine::client::{Chat, Usage};
use crate::engine::observe::{SOON, eventually};
use crate::engine::stage::Stage;

/// By the answer's header and by the engines' own counts.
pub(super) fn forced_arm(stage: &mut Stage) -> Result<String> {
    let (stable, canary) = (&stage.stable, &stage.canary);
    for (arm, forced, other) in [("stable", stable, canary), ("canary", canary, stable)] {
        let (before, idle) = (forced.predicted()?, other.predicted()?);
        for _ in 0..5 {
            let answer = Chat { arm: Some(arm), ..chat(7) }.ask(stage.proxy.traffic)?;
            ensure!(answer.arm()? == arm, "{} served instead of {arm}", answer.arm()?);
        }
        let what = format!("{arm} has counted 35 tokens");
        eventually(&what, SOON, || Ok(forced.predicted()? == before + 35))?;
        ensure!(other.predicted()? == idle, "the other engine worked too");
    }
    Ok("5 chats each, 35 tokens counted by each engine".to_owned())
}

/// Smooth weighted turns: of any hundred requests in a row exactly ten go to the canary.
pub(super) fn split(stage: &mut Stage) -> Result<String> {
    let before = stage.metrics()?;
    let mut canary = 0;
    for _ in 0..100 {
        canary += u32::from(chat(1).ask(stage.proxy.traffic)?.arm()? == "canary");
    }
    ensure!(canary == 10, "{canary} of 100 were served by the canary");
    stage.counted("requests_total says 90 and 10", &before, |since| {
        let of = |arm| since.sum("outrigger_requests_total", &[("route", "chat"), ("arm", arm)]);
        (of("stable"), of("canary")) == (90.0, 10.0)
    })?;
    Ok("90 and 10 of 100".to_owned())
}

/// How many chats the books are compared over.
const CHATS: u64 = 20;

/// Three books about the same chats, half of them streamed.
pub(super) fn metrics(stage: &mut Stage) -> Result<String> {
    let before = stage.metrics()?;
    let predicted = |stage: &Stage| -> Result<u64> {
        Ok(stage.stable.predicted()? + stage.canary.predicted()?)
    };
    let earlier = predicted(stage)?;
    let started = Instant::now();
    let told = ask_all(stage)?;
    let elapsed = started.elapsed().as_secs_f64();
    let what = format!("the engines have counted {} tokens", told.completion);
    eventually(&what, SOON, || Ok(predicted(stage)? == earlier + told.completion))?;
    let good = [("route", "chat"), ("outcome", "ok"), ("code", "200")];
    let since = stage.counted("requests_total says 20 good ones", &before, |since| {
        since.sum("outrigger_requests_total", &good) == CHATS as f64
    })?;
    agree(&since, told, elapsed)?;
    Ok(format!("{CHATS} chats, {} tokens in, {} out", told.prompt, told.completion))
}

/// What the answers say was read and written.
fn ask_all(stage: &Stage) -> Result<Usage> {
    let mut told = Usage::default();
    for number in 0..CHATS {
        let tokens = 5 + number;
        let asked = if number % 2 == 0 { stream(tokens) } else { chat(tokens) };
        let usage = asked.ask(stage.proxy.traffic)?.usage()?;
        ensure!(usage.completion == tokens, "asked for {tokens}: {usage:?}");
        told.prompt += usage.prompt;
        told.completion += usage.completion;
    }
    Ok(told)
}

fn agree(since: &Scrape, told: Usage, elapsed: f64) -> Result<()> {
    let of_chats = |name: &str| since.sum(name, &[("route", "chat")]);
    let tokens = |direction| {
        let labels = [("route", "chat"), ("direction", direction)];
        since.sum("outrigger_tokens_total", &labels) as u64
    };
    let counted = Usage { prompt: tokens("in"), completion: tokens("out") };
    ensure!(counted == told, "tokens_total says {counted:?}, the engines {told:?}");
    ensure!(of_chats("outrigger_requests_total") == CHATS as f64, "other outcomes were counted");
    for name in ["first_byte", "request_duration"] {
        let count = of_chats(&format!("outrigger_{name}_seconds_count"));
        let sum = of_chats(&format!("outrigger_{name}_seconds_sum"));
        ensure!(count == CHATS as f64, "{name}_seconds counted {count} of {CHATS}");
        ensure!(sum > 0.0 && sum <= elapsed, "{name}_seconds adds up to {sum} in {elapsed} s");
    }
    Ok(())
}

/// Every chat, streamed or not, in all its steps: it was read, answered, and answered to the end.
pub(super) fn timelines(stage: &mut Stage) -> Result<String> {
    if stage.metrics()?.sum("outrigger_probe_running", &[]) == 0.0 {
        return Ok("NOT TESTED, the probe cannot run here".to_owned());
    }
    let before = stage.metrics_with_timelines()?;
    ask_all(stage)?;
    let since = stage.counted("there are 20 timelines", &before, |since| {
        since.sum("outrigger_app_timelines_total", &[]) >= CHATS as f64
    })?;
    let complete = since.sum("outrigger_app_timelines_total", &[("result", "complete")]);
    ensure!(complete == CHATS as f64, "{complete} of {CHATS} timelines are complete");
    let sum = |step: &str| since.sum(&format!("outrigger_app_{step}_seconds_sum"), &[]);
    let steps = [sum("socket_wait"), sum("first_byte"), sum("answer")];
    let whole = since.sum("outrigger_request_duration_seconds_sum", &[("route", "chat")]);
    ensure!(steps.iter().sum::<f64>() <= whole, "{steps:?} s are more than the {whole} s of all");
    ensure!(steps[2] > 0.0, "streams are more than one write");
    let [wait, first, answer] = steps.map(|step| step * 1e3 / CHATS as f64);
    Ok(format!(
        "{CHATS} complete; {wait:.2} ms in the socket, {first:.2} to the first byte, {answer:.2} to the last"
    ))
}
