//! `cargo xtask schema`: writes `config/schema.json` again after the schema changed.
//!
//! The test that fails when the file is stale is also what writes it, so the two cannot disagree.

use anyhow::Result;

use crate::build::FAST;
use crate::shell::{cargo, run};

pub(crate) fn write() -> Result<()> {
    // The profile and the packages of the other tests, which are built already.
    let mut command = cargo(&["test"]);
    command.args(FAST).args(["--lib", "the_committed_schema"]);
    run(command.env("UPDATE_SCHEMA", "1"))
}
