//! `cargo xtask setup`: installs what building, testing and checking need, and only what is missing.
//!
//! On Debian as root it installs by itself. Elsewhere it says exactly what to install and stops: it never asks for
//! a password and never replaces what is there. Whatever can live under the target folder does (Python clients,
//! promtool), so that a machine is left as it was found but for compilers.

mod apt;
mod deny;
mod nginx;
mod older;
pub(crate) mod probes;
mod promtool;
mod python;

use anyhow::Result;

pub(crate) use deny::advisories_at_hand;
pub(crate) use promtool::path as promtool;
pub(crate) use python::{MODEL as MODEL_WRITER, interpreter as python};

/// What a task is about to do, and therefore needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Compile the workspace.
    Build,
    /// Run the tests: clients and servers written by others.
    Clients,
    /// Check dependencies and deployment files.
    Checks,
    /// Build the probes. What is missing for that is no error here.
    Probes,
}

pub(crate) const EVERYTHING: &[Need] = &[Need::Build, Need::Clients, Need::Checks, Need::Probes];

/// Makes sure that everything is there, quietly when it is.
///
/// # Errors
/// When something is missing and cannot be installed from here; the message says what to do.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    apt::ensure(needs)?;
    if needs.contains(&Need::Clients) {
        python::CLIENTS.ensure()?;
        nginx::ensure();
        older::ensure();
    }
    if needs.contains(&Need::Checks) {
        promtool::ensure()?;
        deny::ensure()?;
    }
    if needs.contains(&Need::Probes) {
        probes::ensure();
    }
    Ok(())
}
