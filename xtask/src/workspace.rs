//! Where things are: the root of the repository and the folder for what is built.

use std::env;
use std::path::{Path, PathBuf};

/// The repository's root.
///
/// Cargo says at run time where this package is; the folder it was compiled in may have moved since.
pub(crate) fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned());
    package.parent().map_or_else(|| package.clone(), Path::to_owned)
}

/// The target folder, found from this very program, which cargo put there, so that every way of moving it counts.
pub(crate) fn target() -> PathBuf {
    let program = env::current_exe().unwrap_or_default();
    program.ancestors().nth(2).map_or_else(|| root().join("target"), Path::to_owned)
}
