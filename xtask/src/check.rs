//! `cargo xtask check`: what CI runs, in CI's order, the quick and the likely to fail first.
//!
//! Clippy and the documentation use the profile of the tests, so that build scripts (jemalloc, zlib-ng) and
//! procedural macros are built once for all three.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::build::FAST;
use crate::setup;
use crate::shell::{cargo, run as execute};
use crate::{audit, demo, deploy, ebpf, engine, fmt, test};

struct Step {
    name: &'static str,
    run: fn() -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { name: "setup", run: || setup::ensure(setup::EVERYTHING) },
    Step { name: "fmt", run: fmt::check },
    Step { name: "audit", run: audit::check },
    // Before anything that embeds them.
    Step { name: "probes", run: ebpf::check },
    Step { name: "clippy", run: clippy },
    Step { name: "docs", run: docs },
    Step { name: "deny", run: deny },
    Step { name: "test", run: || test::everything(&[]) },
    Step { name: "deploy", run: deploy::check },
    Step { name: "demo", run: demo::brief },
    Step { name: "engine", run: engine::check },
];

/// Runs the steps and stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    for (index, step) in STEPS.iter().enumerate() {
        println!("\n=== {}/{} {}", index + 1, STEPS.len(), step.name);
        let step_started = Instant::now();
        (step.run)().with_context(|| format!("check failed at step `{}`", step.name))?;
        println!("=== {} passed in {}", step.name, seconds(step_started.elapsed()));
    }
    println!("\ncheck passed in {}", seconds(started.elapsed()));
    Ok(())
}

fn clippy() -> Result<()> {
    let mut command = cargo(&["clippy"]);
    execute(command.args(FAST).args(["--all-targets", "--", "-D", "warnings"]))
}

fn docs() -> Result<()> {
    let mut command = cargo(&["doc"]);
    execute(command.args(FAST).arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings"))
}

/// Advisories live in a database outside the package registries; where it cannot be had the rest is still checked,
/// and the gap is said aloud.
fn deny() -> Result<()> {
    let mut checks = vec!["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    if setup::advisories_at_hand() {
        checks.push("advisories");
    } else {
        println!("NOT CHECKED here: advisories (their database on github.com cannot be fetched)");
    }
    execute(&mut cargo(&checks))
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
