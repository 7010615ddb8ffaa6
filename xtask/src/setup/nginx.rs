//! nginx, a server that the probes are tried on.
//!
//! Installing Debian's package starts it. So the package is downloaded and unpacked under the target folder, where nothing
//! runs it but the tests. Its libraries are those of every Debian; where it cannot run, its tests say so.

use std::path::{Path, PathBuf};

use super::apt;
use crate::shell::found;
use crate::workspace;

/// What is missing is no error here: the tests do without, aloud.
pub(super) fn ensure() {
    let is_here = found("nginx").is_some() || Path::new("/usr/sbin/nginx").is_file();
    if is_here || folder().join("usr/sbin/nginx").is_file() {
        return;
    }
    if !apt::is_debian() {
        println!("setup: nginx is missing: what the probes see of it is not tested");
        return;
    }
    println!("setup: nginx is missing: the probes are tried on it");
    if let Err(error) = apt::unpack("nginx", &folder()) {
        println!("setup: no nginx ({error:#}): what the probes see of it is not tested");
    }
}

fn folder() -> PathBuf {
    workspace::target().join("nginx")
}
