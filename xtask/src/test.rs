//! `cargo xtask test`: every tier that runs everywhere, or (`--engine`) the tier with a real engine.
//!
//! Plain `cargo test`, so that its closing lines are the ones everybody knows.

use std::ffi::OsString;

use anyhow::Result;
use pico_args::Arguments;

use crate::build::{self, FAST};
use crate::setup::{self, Need};
use crate::shell::{cargo, run as execute};
use crate::{engine, nothing_left};

pub(crate) fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.contains("--engine") {
        nothing_left(arguments)?;
        return engine::run();
    }
    let passed_on = arguments.finish();
    everything(passed_on.strip_prefix(&[OsString::from("--")]).unwrap_or(&passed_on))
}

/// Unit, simulation and end-to-end tests. `passed_on` follows on cargo's command line.
pub(crate) fn everything(passed_on: &[OsString]) -> Result<()> {
    setup::ensure(&[Need::Build, Need::Clients])?;
    let programs = build::programs()?;
    let mut command = cargo(&["test"]);
    command.args(FAST).args(passed_on);
    command.env("OUTRIGGER_BIN", programs.outrigger);
    command.env("OUTRIGGER_PYTHON", setup::python());
    execute(&mut command)
}
