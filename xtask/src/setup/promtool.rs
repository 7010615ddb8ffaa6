//! promtool, which checks alert rules and scrape configurations.
//!
//! Debian has it only inside the package of the Prometheus server, and installing that starts a server. So the
//! package is downloaded and unpacked under the target folder, where nothing runs it but us; this needs no root.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::shell::found;
use crate::workspace;

/// promtool from PATH, or the one that was unpacked.
pub(crate) fn program_path() -> Option<PathBuf> {
    found("promtool").or_else(|| Some(unpacked()).filter(|program| program.is_file()))
}

/// promtool, or what to do about it.
pub(crate) fn path() -> Result<PathBuf> {
    program_path().context("promtool is missing: run `cargo xtask setup`")
}

pub(super) fn ensure() -> Result<()> {
    if program_path().is_some() {
        return Ok(());
    }
    if !apt::is_debian() {
        bail!("promtool is missing: install Prometheus, or put its promtool into PATH");
    }
    println!("setup: promtool is missing: it checks the files under deploy/prometheus");
    apt::unpack("prometheus", &folder())
}

fn unpacked() -> PathBuf {
    folder().join("usr/bin/promtool")
}

fn folder() -> PathBuf {
    workspace::target().join("prometheus")
}
