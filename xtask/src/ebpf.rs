//! `cargo xtask ebpf`: the objects that hold the probes' programs, one per family.
//!
//! A program for the kernel needs `core` built from source, which only a nightly compiler does, or a stable one that is
//! told to behave as one (RUSTC_BOOTSTRAP). Which of the two is here is found out; so is the linker. The same source gives
//! the same bytes with the same toolchain, wherever it is built: paths are mapped away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::{self, Need, probes::Toolchain};
use crate::shell::{program, run};
use crate::workspace;

/// The families: the names of the programs of `ebpf/src/bin`.
const FAMILIES: &[&str] = &["cuda", "driver", "fences", "jobs", "requests"];

const TARGET: &str = "bpfel-unknown-none";

/// Where a build finds the objects that it is to embed.
pub(crate) const VARIABLE: &str = "OUTRIGGER_PROBES";

/// Where the objects are once they are built.
pub(crate) fn folder() -> PathBuf {
    target().join(TARGET).join("probes")
}

fn target() -> PathBuf {
    workspace::target().join("ebpf")
}

/// Installs what is missing and builds the objects.
pub(crate) fn build() -> Result<()> {
    setup::ensure(&[Need::Probes])?;
    build_into(&Toolchain::find()?, &target())
}

/// Builds them if this machine can, and returns whether it did. Where it cannot, that is said and the rest goes on without
/// probes.
pub(crate) fn build_if_possible() -> bool {
    let built = Toolchain::find().and_then(|toolchain| build_into(&toolchain, &target()));
    if let Err(missing) = &built {
        println!("WITHOUT PROBES: {missing:#}");
        // An older one would hide that.
        let _ = fs::remove_dir_all(folder());
    }
    built.is_ok()
}

fn build_into(toolchain: &Toolchain, target: &Path) -> Result<()> {
    run(&mut command(toolchain, target))
}

fn command(toolchain: &Toolchain, target: &Path) -> Command {
    let mut command = program(&toolchain.cargo);
    command.env("RUSTC", &toolchain.rustc);
    // What is set for the compiler of this program is not meant for that one.
    for inherited in ["RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO"] {
        command.env_remove(inherited);
    }
    if toolchain.bootstrap {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command.args(["build", "--locked", "--package", "outrigger-probes", "--bins"]);
    command.args(["--features", "programs", "--profile", "probes", "--target", TARGET]);
    command.args(["--config", &flags(toolchain)]);
    command.args(["-Z", "build-std=core", "--target-dir"]).arg(target);
    command
}

/// The compiler's flags, as a line of cargo's configuration.
fn flags(toolchain: &Toolchain) -> String {
    let root = workspace::root();
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags = vec![
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
        // Without it the object has no type information, and the kernel takes no map and no tp_btf program of it.
        "-Clink-arg=--btf".to_owned(),
        remap(&root, "/outrigger"),
        remap(&toolchain.sysroot, "/rust"),
    ];
    if let Some(home) = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(cargo_home) {
        flags.push(remap(&home, "/cargo"));
    }
    format!("target.{TARGET}.rustflags={flags:?}")
}

fn cargo_home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"))
}

/// Fails unless a second build, into another folder, gives the same bytes.
pub(crate) fn check() -> Result<()> {
    setup::ensure(&[Need::Probes])?;
    if !build_if_possible() {
        return Ok(());
    }
    let again = workspace::target().join("ebpf-again");
    // A build that is not repeated proves nothing.
    let _ = fs::remove_dir_all(&again);
    build_into(&Toolchain::find()?, &again)?;
    for family in FAMILIES {
        let read = |folder: &Path| {
            let file = folder.join(family);
            fs::read(&file).with_context(|| file.display().to_string())
        };
        let same = read(&folder())? == read(&again.join(TARGET).join("probes"))?;
        anyhow::ensure!(same, "two builds of the same source gave different `{family}` objects");
    }
    println!("two builds gave the same bytes");
    Ok(())
}
