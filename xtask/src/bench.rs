//! `cargo xtask bench --dir FOLDER`: measures the release binary with a bench kit that lives elsewhere.
//!
//! The kit (peers, origin, load generator) is large and belongs to no one proxy, so it is not part of this
//! repository. It must hold a `bench.py` that takes `run --more FILE`, where FILE names further contestants.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, bail};
use pico_args::Arguments;

use crate::build;
use crate::shell::{program, run as execute};

/// Outrigger as a contestant.
const CONTESTANTS: &str = "xtask/bench/contestants.toml";

const USAGE: &str = "\
usage: cargo xtask bench --dir FOLDER [-- ARGS]

  Builds target/release/outrigger and runs FOLDER/bench.py with it. ARGS are bench.py's, for example
    cargo xtask bench --dir ../bench -- run -c nginx,haproxy,outrigger -w h1-small,sse -r 5
  without ARGS: a short run beside nginx. FOLDER's own README says how to set it up and read it.
";

const SHORT_RUN: [&str; 7] = ["run", "-c", "nginx,outrigger", "-w", "h1-small,sse", "-r", "3"];

pub(crate) fn run(mut arguments: Arguments) -> Result<()> {
    let folder: Option<PathBuf> = arguments.opt_value_from_str("--dir")?;
    let Some(folder) = folder else {
        bail!("{USAGE}");
    };
    let script = folder.join("bench.py");
    if !script.is_file() {
        bail!("{} does not exist\n\n{USAGE}", script.display());
    }
    build::release()?;
    let mut words = arguments.finish();
    if words.first().is_some_and(|word| word == "--") {
        words.remove(0);
    }
    if words.is_empty() {
        words = SHORT_RUN.map(OsString::from).to_vec();
    }
    execute(
        program("python3").arg(script.canonicalize()?).args(&words).args(["--more", CONTESTANTS]),
    )
}
