//! Programs from the system's packages.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Need;
use crate::shell::{found, program, run, succeeds};

/// A program, the Debian package that brings it, and the reason it is needed.
struct Wanted {
    need: Need,
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const WANTED: &[Wanted] = &[
    wanted(Need::Build, "cc", "gcc", "links every Rust program and compiles the C of dependencies"),
    wanted(Need::Build, "c++", "g++", "compiles the C++ of dependencies"),
    wanted(Need::Build, "make", "make", "builds the allocator, jemalloc"),
    wanted(Need::Build, "cmake", "cmake", "builds zlib-ng, which pingora compresses with"),
    wanted(Need::Build, "pkg-config", "pkg-config", "lets build scripts find system libraries"),
    wanted(Need::Clients, "curl", "curl", "the tests speak HTTP/1.1 and HTTP/2 with it"),
    wanted(Need::Clients, "python3", "python3-venv", "runs the openai and websockets clients"),
    // The server is in the package of the tools, under another name; that of the server would start a service.
    wanted(
        Need::Clients,
        "redis-check-rdb",
        "redis-tools",
        "a Redis keeps the answers that tests store",
    ),
];

const fn wanted(
    need: Need,
    program: &'static str,
    package: &'static str,
    why: &'static str,
) -> Wanted {
    Wanted { need, program, package, why }
}

pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Wanted> =
        WANTED.iter().filter(|it| needs.contains(&it.need) && !is_here(it.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for Wanted { program, package, why, .. } in &missing {
        println!("setup: {program} is missing (package {package}): {why}");
    }
    install(&missing.iter().map(|it| it.package).collect::<Vec<_>>())
}

fn is_here(name: &str) -> bool {
    match name {
        // Debian ships a python3 without the modules that make a virtual environment.
        "python3" => succeeds(program("python3").args(["-c", "import ensurepip, venv"])),
        _ => found(name).is_some(),
    }
}

pub(super) fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !is_debian() {
        bail!("install these with your package manager (Debian's names): {list}");
    }
    if !is_root() {
        bail!("not root; run this, then try again: sudo apt-get install --yes {list}");
    }
    let apt = |arguments: &[&str]| {
        let mut command = program("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet").args(arguments);
        command
    };
    run(&mut apt(&["update"]))?;
    run(apt(&["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// Downloads a package and lays its files out in a folder, which needs no root and starts nothing.
pub(super) fn unpack(package: &str, folder: &Path) -> Result<()> {
    unpack_all(&[package], &[], folder)
}

/// The same with several, when apt is told this besides.
pub(super) fn unpack_all(packages: &[&str], options: &[String], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let apt_get = |arguments: &[&str]| {
        let mut command = program("apt-get");
        command.current_dir(folder).args(options).arg("--quiet").args(arguments);
        command
    };
    let download = || run(apt_get(&["download"]).args(packages));
    if download().is_err() {
        // A fresh container has no package lists yet.
        run(&mut apt_get(&["update"]))?;
        download()?;
    }
    for file in fs::read_dir(folder)? {
        let file = file?.path();
        if file.extension().is_some_and(|end| end == "deb") {
            run(program("dpkg-deb").arg("--extract").arg(&file).arg(folder))?;
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

pub(super) fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && found("apt-get").is_some()
}

/// The owner of our own entry under /proc is who we are; the standard library has no other safe way to ask.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}
