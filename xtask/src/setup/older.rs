//! Older kernels, and a machine that runs them: what the probes see there is tested in them.
//!
//! The kernels are Debian's, of two of its releases: the small one for virtual machines, and one that has modules with which
//! fences can be waited for without a GPU. Their packages are named by the version
//! of the day, which the release's own index tells. Everything is unpacked under the target folder and nothing installed: a
//! kernel that is installed would be the next one to boot.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt;
use crate::shell::{found, program, run, said};
use crate::workspace;

/// A kernel of a release of Debian.
struct Kernel {
    release: &'static str,
    /// What names the kernel of the day.
    package: &'static str,
    /// The modules that are kept: files under its folder of modules.
    modules: &'static [&'static str],
}

/// Linux 5.10 and 6.1.
const KERNELS: [Kernel; 2] = [
    Kernel { release: "bullseye", package: "linux-image-cloud-amd64", modules: &[] },
    Kernel {
        release: "bookworm",
        package: "linux-image-amd64",
        modules: &[
            "drivers/gpu/drm/drm.ko",
            "drivers/gpu/drm/drm_shmem_helper.ko",
            "drivers/gpu/drm/vgem/vgem.ko",
            "drivers/gpu/drm/scheduler/gpu-sched.ko",
        ],
    },
];

/// What is missing is no error here: the tests do without, aloud.
pub(super) fn ensure() {
    if !cfg!(target_arch = "x86_64") || is_here() {
        return;
    }
    if !apt::is_debian() {
        println!("setup: no emulator and no older kernels: the probes are not tested in those");
        return;
    }
    println!("setup: older kernels are missing: the probes are tried in them (135 MB, once)");
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
    has_emulator() && has("busybox") && KERNELS.iter().all(|kernel| kernel.is_in(&folder()))
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
    KERNELS.iter().try_for_each(|kernel| kernel.fetch(&folder))
}

/// Unpacks packages at a place where there is either nothing or all of them.
fn whole(packages: &[&str], options: &[String], place: &Path) -> Result<()> {
    let part = place.with_extension("part");
    // Of one that was interrupted.
    let _ = fs::remove_dir_all(&part);
    apt::unpack_all(packages, options, &part)?;
    Ok(fs::rename(part, place)?)
}

impl Kernel {
    /// Whether it is there, with its modules: an earlier version of this kept none.
    fn is_in(&self, folder: &Path) -> bool {
        let folder = folder.join(self.release);
        let mut modules = self.modules.iter().map(|path| folder.join("modules").join(name(path)));
        folder.join("boot").is_dir() && modules.all(|module| module.is_file())
    }

    /// Unpacks it.
    fn fetch(&self, folder: &Path) -> Result<()> {
        if self.is_in(folder) {
            return Ok(());
        }
        let folder = folder.join(self.release);
        // Another one, or of one that was interrupted.
        let _ = fs::remove_dir_all(&folder);
        let options = index_of(self.release, &folder.join("apt"))?;
        run(program("apt-get").args(&options).args(["--quiet", "update"]))?;
        let told = said(program("apt-cache").args(&options).args(["depends", self.package]));
        let package = told.as_deref().and_then(dependency).context("the release has no kernel")?;
        let unpacked = folder.join("unpacked");
        whole(&[package], &options, &unpacked)?;
        self.keep_modules(&unpacked, &folder.join("modules"))?;
        fs::rename(unpacked.join("boot"), folder.join("boot"))?;
        // The other modules are hundreds of megabytes, and not needed.
        fs::remove_dir_all(unpacked)?;
        Ok(fs::remove_dir_all(folder.join("apt"))?)
    }

    fn keep_modules(&self, unpacked: &Path, place: &Path) -> Result<()> {
        fs::create_dir_all(place)?;
        let all = fs::read_dir(unpacked.join("lib/modules"))?.next().context("no modules")??;
        for path in self.modules {
            let from = all.path().join("kernel").join(path);
            fs::rename(&from, place.join(name(path)))
                .with_context(|| from.display().to_string())?;
        }
        Ok(())
    }
}

/// The last part of a path.
fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
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
    fn a_kernel_without_its_modules_is_not_there() {
        let folder = std::env::temp_dir().join(format!("outrigger-older-{}", std::process::id()));
        let [small, kernel] = &KERNELS;
        for release in [small.release, kernel.release] {
            fs::create_dir_all(folder.join(release).join("boot")).expect("writable");
        }
        assert!(small.is_in(&folder) && !kernel.is_in(&folder));
        let modules = folder.join(kernel.release).join("modules");
        fs::create_dir_all(&modules).expect("writable");
        for path in kernel.modules {
            assert!(!kernel.is_in(&folder), "{path} is missing");
            fs::write(modules.join(name(path)), []).expect("writable");
        }
        assert!(kernel.is_in(&folder));
        fs::remove_dir_all(folder).expect("ours");
    }

    #[test]
    fn the_kernel_of_the_day_is_a_dependency() {
        let told = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n";
        assert_eq!(dependency(told), Some("linux-image-6.1.0-9-cloud-amd64"));
        assert_eq!(dependency("N: Unable to locate package x\n"), None);
    }
}
