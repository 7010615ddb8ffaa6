//! `cargo xtask fmt`: format the source, or (in `check`) say what is not formatted.

use anyhow::Result;

use crate::shell::{cargo, run};

pub(crate) fn write() -> Result<()> {
    run(&mut cargo(&["fmt", "--all"]))
}

pub(crate) fn check() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))
}
