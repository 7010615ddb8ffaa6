//! The model: random weights that a script writes in a moment, the same every time.

use std::path::PathBuf;

use anyhow::Result;

use super::server;
use crate::setup;
use crate::shell::{program, run};

const SCRIPT: &str = "tests/engine/make_model.py";

/// Writes the model anew, which is faster than to find out whether the one that is there is still the right one.
pub(super) fn write() -> Result<PathBuf> {
    let path = server::folder().join("tiny-random.gguf");
    run(program(setup::MODEL_WRITER.interpreter()).arg(SCRIPT).arg(&path))?;
    Ok(path)
}
