//! cargo-deny, which reads deny.toml: licences, sources, banned crates, advisories.

use anyhow::Result;

use crate::shell::{cargo, run, succeeds};

/// Pinned: a newer version may judge the same tree differently.
const VERSION: &str = "0.20.2";

pub(super) fn ensure() -> Result<()> {
    if succeeds(&mut cargo(&["deny", "--version"])) {
        return Ok(());
    }
    println!("setup: cargo-deny is missing: it checks what we depend on (once, a few minutes)");
    run(&mut cargo(&["install", "--locked", "cargo-deny", "--version", VERSION]))
}

/// Whether the database of security advisories is here or can be fetched. It is no package but a repository on
/// github.com, which a build machine may be unable to reach.
pub(crate) fn advisories_at_hand() -> bool {
    succeeds(&mut cargo(&["deny", "fetch", "db"]))
}
