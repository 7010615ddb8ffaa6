//! `cargo xtask schema`: writes `config/schema.json` again after the schema changed.
//!
//! The test that fails when the file is stale is also what writes it, so the two cannot disagree.

use anyhow::Result;

use crate::shell::{cargo, run};

pub(crate) fn write() -> Result<()> {
    let mut command = cargo(&["test", "--package", "outrigger-config", "schema"]);
    run(command.env("UPDATE_SCHEMA", "1"))
}
