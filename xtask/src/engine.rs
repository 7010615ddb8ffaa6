//! `cargo xtask test --engine`: a real engine behind the real proxy.
//!
//! The simulator shares our understanding of what an engine does; llama.cpp's `llama-server` has its own, and its own
//! HTTP. It runs a tiny random model, so that nothing but packages is downloaded and an answer costs milliseconds.
//! Building it costs minutes of a machine, once: `check` runs this where it was built before, and builds it where that is
//! asked for (`OUTRIGGER_ENGINE_REQUIRED`), as CI does.
//!
//! What it leaves out: the quality of answers, and everything that the simulator can show as well.

mod checks;
mod client;
mod model;
mod observe;
mod server;
mod stage;

use std::env;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};

use self::checks::CHECKS;
use self::stage::Stage;
use crate::build;
use crate::setup::{self, Need};

/// In `check`: where the engine is there, or has to be.
pub(crate) fn check() -> Result<()> {
    if env::var_os("OUTRIGGER_ENGINE_REQUIRED").is_none() && !server::is_there()? {
        println!("NOT TESTED here: a real engine (`cargo xtask test --engine` builds one, once)");
        return Ok(());
    }
    run()
}

/// Obtains the engine, the model and the proxy, and runs every check even when one failed.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Build, Need::Clients])?;
    setup::MODEL_WRITER.ensure()?;
    let engine = server::obtain()?;
    let model = model::write()?;
    let outrigger = outrigger()?;
    let mut stage = Stage::set(&engine, &model, &outrigger)?;
    let failed = CHECKS.iter().filter(|check| !passes(check, &mut stage)).count();
    println!("\n{} passed, {failed} failed", CHECKS.len() - failed);
    if failed > 0 {
        bail!("what the programs said is in {}", stage.keep_folder().display());
    }
    Ok(())
}

/// The proxy under test: the one that `OUTRIGGER_BIN` names, else it is built.
fn outrigger() -> Result<PathBuf> {
    match env::var_os("OUTRIGGER_BIN") {
        Some(program) => Ok(PathBuf::from(program).canonicalize()?),
        None => Ok(build::programs()?.outrigger),
    }
}

/// One line for each check: what it found, or why it failed.
fn passes(check: &checks::Check, stage: &mut Stage) -> bool {
    let started = Instant::now();
    let result = (check.run)(stage);
    let seconds = started.elapsed().as_secs_f64();
    match &result {
        Ok(found) if found.is_empty() => println!("PASS {} ({seconds:.1} s)", check.name),
        Ok(found) => println!("PASS {}: {found} ({seconds:.1} s)", check.name),
        Err(error) => println!("FAIL {}: {error:#} ({seconds:.1} s)", check.name),
    }
    result.is_ok()
}
