//! What builds the probes: a compiler that can build `core` for BPF, and bpf-linker for the LLVM of that compiler.
//!
//! Two ways lead there: rustup's nightly with `rust-src`, and Debian's own compiler with its source, told by an environment
//! variable to take what only a nightly takes. What is here is used, and Debian's packages are installed only where there is
//! none of it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::apt;
use crate::shell::{cargo, found, program, run, said};

/// Pinned: another version may give other bytes.
const LINKER: &str = "0.13.0";

/// The LLVM that Debian has beside its compiler. A linker must know the format of the compiler's LLVM or of a later one.
const LLVM: &str = "22";

/// What compiles and links programs for the kernel.
pub(crate) struct Toolchain {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    /// It has to be told to take unstable options.
    pub(crate) bootstrap: bool,
    pub(crate) sysroot: PathBuf,
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// The one that is here.
    ///
    /// # Errors
    /// What is missing, by name.
    pub(crate) fn find() -> Result<Self> {
        let compiler = nightly().or_else(debian).context(
            "no compiler for the probes: `rustup toolchain install nightly --component rust-src`, or Debian's \
             rustc-web, cargo-web and rust-web-src",
        )?;
        let linker = linker().context("no bpf-linker: run `cargo xtask setup`")?;
        let llvm = compiler.llvm();
        if llvm.is_none_or(|version| version > LLVM.parse().unwrap_or_default()) {
            bail!("the compiler's LLVM ({llvm:?}) is newer than that of bpf-linker ({LLVM})");
        }
        let Compiler { cargo, rustc, bootstrap, sysroot } = compiler;
        Ok(Self { cargo, rustc, bootstrap, sysroot, linker })
    }
}

struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    bootstrap: bool,
    sysroot: PathBuf,
}

impl Compiler {
    /// At this place, if it is there and has the source of `core`.
    fn at(folder: &Path, bootstrap: bool) -> Option<Self> {
        let (cargo, rustc) = (folder.join("cargo"), folder.join("rustc"));
        let sysroot = PathBuf::from(said(program(&rustc).args(["--print", "sysroot"]))?);
        let source = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
        (cargo.is_file() && source.is_file()).then_some(Self { cargo, rustc, bootstrap, sysroot })
    }

    fn llvm(&self) -> Option<u32> {
        let version = said(program(&self.rustc).arg("-vV"))?;
        llvm_of(&version)
    }
}

fn nightly() -> Option<Compiler> {
    let sysroot =
        said(program("rustc").env("RUSTUP_TOOLCHAIN", "nightly").args(["--print", "sysroot"]))?;
    Compiler::at(&Path::new(&sysroot).join("bin"), false)
}

fn debian() -> Option<Compiler> {
    Compiler::at(Path::new("/usr/bin"), true)
}

/// The LLVM version that `rustc -vV` names.
fn llvm_of(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

fn linker() -> Option<PathBuf> {
    let installed = || {
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))?;
        Some(home.join("bin/bpf-linker")).filter(|path| path.is_file())
    };
    found("bpf-linker").or_else(installed)
}

/// Installs what is missing. What cannot be had is said, and is no failure: only the probes need it.
pub(super) fn ensure() {
    if let Err(error) = install() {
        println!("setup: the probes cannot be built here: {error:#}");
    }
}

fn install() -> Result<()> {
    if nightly().or_else(debian).is_none() {
        println!("setup: no compiler for the probes is here");
        apt::install(&["rustc-web", "cargo-web", "rust-web-src"])?;
    }
    if linker().is_none() {
        println!("setup: bpf-linker is missing: it links the probes (once, a few minutes)");
        let prefix = format!("/usr/lib/llvm-{LLVM}");
        if !Path::new(&prefix).join("bin/llvm-config").is_file() {
            apt::install(&[&format!("llvm-{LLVM}-dev")])?;
        }
        let feature = format!("llvm-{LLVM}");
        let mut command = cargo(&["install", "--locked", "bpf-linker", "--version", LINKER]);
        command.args(["--no-default-features", "--features", &feature]);
        command.env("LLVM_PREFIX", &prefix).env(format!("LLVM_SYS_{LLVM}1_PREFIX"), &prefix);
        run(&mut command)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_says_which_llvm_it_has() {
        let version = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nhost: x\nLLVM version: 22.1.4";
        assert_eq!(llvm_of(version), Some(22));
        assert_eq!(llvm_of("rustc 1.97.0"), None);
    }
}
