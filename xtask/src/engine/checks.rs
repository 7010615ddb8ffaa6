//! What must hold, in the order in which it is checked. The last ones kill an engine and end the proxy.

mod clocks;
mod leaving;
mod load;
mod telling;

use anyhow::{Result, ensure};

use super::client::Chat;
use super::stage::{MODEL, Stage};
use crate::setup;
use crate::shell::program;

pub(super) struct Check {
    pub(super) name: &'static str,
    /// What it found, in a few words, or why it failed.
    pub(super) run: fn(&mut Stage) -> Result<String>,
}

pub(super) const CHECKS: &[Check] = &[
    Check { name: "openai-python lists the models", run: |stage| openai(stage, "models") },
    Check { name: "openai-python chats", run: |stage| openai(stage, "chats") },
    Check { name: "openai-python streams with usage", run: |stage| openai(stage, "streams") },
    Check { name: "openai-python completes", run: |stage| openai(stage, "completes") },
    Check { name: "openai-python embeds", run: |stage| openai(stage, "embeds") },
    Check { name: "openai-python reads our 404", run: |stage| openai(stage, "sees_no_route") },
    Check { name: "a forced arm is the one that serves", run: telling::forced_arm },
    Check { name: "the split is exact", run: telling::split },
    Check { name: "metrics agree with what was sent", run: telling::metrics },
    Check { name: "the kernel sees every chat", run: telling::timelines },
    Check { name: "the kernel's clock agrees with the engine's", run: clocks::agree },
    Check { name: "two engines share 16 streams", run: load::shared },
    Check { name: "an engine's own gauges steer traffic", run: load::steered },
    Check { name: "hanging up frees the slot", run: leaving::mid_stream },
    Check { name: "hanging up in the engine's queue costs no slot", run: leaving::queued },
    Check { name: "a killed engine loses no request without a byte", run: load::killed },
    Check { name: "a drain lets a running stream end", run: leaving::drained },
];

/// A subject of the script that the end-to-end tests also run against the simulator.
fn openai(stage: &Stage, subject: &str) -> Result<String> {
    let url = format!("http://{}/v1", stage.proxy.traffic);
    let mut script = program(setup::python());
    let output = script.arg("tests/clients/openai_calls.py").args([subject, &url]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", said.lines().last().unwrap_or("no reason given"));
    Ok(String::new())
}

fn chat(tokens: u64) -> Chat<'static> {
    Chat { model: MODEL, tokens, streamed: false, arm: None }
}

fn stream(tokens: u64) -> Chat<'static> {
    Chat { streamed: true, ..chat(tokens) }
}
