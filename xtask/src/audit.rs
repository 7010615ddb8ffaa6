//! That `unsafe` code is where it is meant to be: in the programs for the kernel, and in one module of the proxy.
//!
//! The compiler refuses it everywhere (`[workspace.lints]`), but not to a file that says that it is allowed there. Which files
//! do is what is looked at here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// The lint, in two words so that this file does not name it.
const LINT: &str = concat!("unsafe", "_code");

/// The files that name it: the first forbids it, the second does without.
const NAMED_IN: [&str; 2] = ["ebpf/src/lib.rs", "proxy/src/probes/kernel/bpf.rs"];

/// The package whose programs run in the kernel, which has lints of its own.
const KERNEL: &str = "ebpf";

/// Fails when `unsafe` code is allowed anywhere else.
pub(crate) fn check() -> Result<()> {
    let root = workspace::root();
    let mut naming = BTreeSet::new();
    for package in packages(&root)? {
        let name = package.strip_prefix(&root)?.to_owned();
        let manifest = fs::read_to_string(package.join("Cargo.toml"))?;
        let is_strict = has_lints_of_workspace(&manifest) || name == Path::new(KERNEL);
        ensure!(is_strict, "{} does not have the lints of the workspace", name.display());
        naming.extend(files_naming(&package)?);
    }
    let naming: Vec<_> =
        naming.iter().map(|file| file.strip_prefix(&root)).collect::<Result<_, _>>()?;
    let meant = NAMED_IN.map(Path::new);
    ensure!(naming == meant, "{LINT} is named in {naming:?}, and should be in {meant:?}");
    println!("unsafe code is allowed in {} and in the programs for the kernel only", NAMED_IN[1]);
    Ok(())
}

fn packages(root: &Path) -> Result<Vec<PathBuf>> {
    let folders = entries(root)?.into_iter();
    Ok(folders.filter(|folder| folder.join("Cargo.toml").is_file()).collect())
}

fn has_lints_of_workspace(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]");
    lines.nth(1) == Some("workspace = true")
}

/// The files of Rust in a folder that name the lint.
fn files_naming(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in entries(folder)? {
        if entry.is_dir() {
            found.extend(files_naming(&entry)?);
        } else if entry.extension().is_some_and(|it| it == "rs")
            && fs::read_to_string(&entry)?.contains(LINT)
        {
            found.push(entry);
        }
    }
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_allowed_where_it_is_meant_to_be() {
        check().expect("it is nowhere else");
    }

    #[test]
    fn a_package_without_the_lints_is_found() {
        assert!(has_lints_of_workspace("[package]\n\n[lints]\nworkspace = true\n"));
        for other in ["[package]\n", "[lints]\nworkspace = false", "[lints.rust]\nworkspace = true"]
        {
            assert!(!has_lints_of_workspace(other), "{other}");
        }
    }
}
