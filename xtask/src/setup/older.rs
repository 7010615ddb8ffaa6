//! Older kernels, and a machine that runs them: what the probes see there is tested in them.
//!
//! The kernels are Debian's small ones for virtual machines, of two of its releases. Their packages are named by the version
//! of the day, which the release's own index tells. Everything is unpacked under the target folder and nothing installed: a
//! kernel that is installed would be the next one to boot.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt;
use crate::shell::{found, program, run, said};
use crate::workspace;

/// Linux 5.10 and 6.1.
const RELEASES: [&str; 2] = ["bullseye", "bookworm"];

/// What names the kernel of the day.
const KERNEL: &str = "linux-image-cloud-amd64";

/// What is missing is no error here: the tests do without, aloud.
pub(super) fn ensure() {
    if !cfg!(target_arch = "x86_64") || is_here() {
        return;
    }
    if !apt::is_debian() {
        println!("setup: no emulator and no older kernels: the probes are not tested in those");
        return;
    }
    println!("setup: older kernels are missing: the probes are tried in them (90 MB, once)");
    if let Err(error) = fetch() {
        println!("setup: no older kernels ({error:#}): the probes are not tested in those");
    }
}

fn folder() -> PathBuf {
    workspace::target().join("older")
}

fn has_emulator() -> bool {
    found("qemu-system-x86_64").is_some() || folder().join("qemu").is_dir()
}

fn is_here() -> bool {
    let has = |name: &str| folder().join(name).is_dir();
    has_emulator() && has("busybox") && RELEASES.iter().all(|name| has(&format!("{name}/boot")))
}

fn fetch() -> Result<()> {
    let folder = folder();
    if !folder.join("busybox").is_dir() {
        whole(&["busybox-static"], &[], &folder.join("busybox"))?;
    }
    if !has_emulator() {
        let install = ["install", "--simulate", "--no-install-recommends", "qemu-system-x86"];
        let told = said(program("apt-get").args(install)).context("apt-get knows no emulator")?;
        whole(&new_packages(&told), &[], &folder.join("qemu"))?;
    }
    RELEASES.iter().try_for_each(|release| kernel(release, &folder.join(release)))
}

/// Unpacks packages at a place where there is either nothing or all of them.
fn whole(packages: &[&str], options: &[String], place: &Path) -> Result<()> {
    let part = place.with_extension("part");
    // Of one that was interrupted.
    let _ = fs::remove_dir_all(&part);
    apt::unpack_all(packages, options, &part)?;
    Ok(fs::rename(part, place)?)
}

/// Unpacks the kernel of a release.
fn kernel(release: &str, folder: &Path) -> Result<()> {
    if folder.join("boot").is_dir() {
        return Ok(());
    }
    let options = index_of(release, &folder.join("apt"))?;
    run(program("apt-get").args(&options).args(["--quiet", "update"]))?;
    let told = said(program("apt-cache").args(&options).args(["depends", KERNEL]));
    let package = told.as_deref().and_then(dependency).context("the release has no kernel")?;
    let unpacked = folder.join("unpacked");
    whole(&[package], &options, &unpacked)?;
    // Its modules are a hundred megabytes, and not needed.
    fs::rename(unpacked.join("boot"), folder.join("boot"))?;
    fs::remove_dir_all(unpacked)?;
    Ok(fs::remove_dir_all(folder.join("apt"))?)
}

/// What apt has to be told to look into a release that is not this machine's, at the same mirror.
fn index_of(release: &str, folder: &Path) -> Result<Vec<String>> {
    let format = ["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"];
    let told = said(program("apt-get").args(format)).unwrap_or_default();
    let mirror = told.lines().find_map(|line| line.strip_prefix("Debian "));
    let mirror = mirror.context("apt has no mirror of Debian")?;
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(part))?;
    }
    let keys = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg";
    let list = folder.join("sources.list");
    fs::write(&list, format!("deb [{keys}] {mirror} {release} main\n"))?;
    let option = |name: &str, path: &str| format!("-o{name}={}", folder.join(path).display());
    Ok(vec![
        option("Dir::Etc::SourceList", "sources.list"),
        "-oDir::Etc::SourceParts=-".to_owned(),
        option("Dir::State::Lists", "lists"),
        option("Dir::Cache", "cache"),
        "-oAcquire::Languages=none".to_owned(),
    ])
}

/// Which packages an installation would bring that are not there in any version, of what `apt-get --simulate` says.
fn new_packages(told: &str) -> Vec<&str> {
    let lines = told.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_once(' '));
    lines.filter(|(_, rest)| rest.starts_with('(')).map(|(name, _)| name).collect()
}

/// The first dependency that `apt-cache depends` names.
fn dependency(told: &str) -> Option<&str> {
    told.lines().find_map(|line| line.trim().strip_prefix("Depends: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_in_another_version_is_not_brought() {
        let told = "Reading state information...\nInst libfdt1 (1.6.1 Debian:12.1 [amd64])\n\
                    Inst libc6 [2.36-9] (2.36-10 Debian:12.1 [amd64])\nConf libfdt1 (1.6.1 Debian:12.1)\n";
        assert_eq!(new_packages(told), ["libfdt1"]);
    }

    #[test]
    fn the_kernel_of_the_day_is_a_dependency() {
        let told = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n";
        assert_eq!(dependency(told), Some("linux-image-6.1.0-9-cloud-amd64"));
        assert_eq!(dependency("N: Unable to locate package x\n"), None);
    }
}
