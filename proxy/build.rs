//! Embeds the probes' objects, if `OUTRIGGER_PROBES` says where `cargo xtask ebpf` has put them. A plain `cargo build` has
//! none, and the binary says so when it is asked for a probe.

use std::{env, fs, io, path::PathBuf};

/// The programs of `ebpf/src/bin`.
const FAMILIES: &[&str] = &["cuda", "driver", "fences", "jobs", "requests"];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=OUTRIGGER_PROBES");
    let folder = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let built = env::var_os("OUTRIGGER_PROBES").map(PathBuf::from);
    for family in FAMILIES {
        let place = folder.join(family).with_extension("o");
        match &built {
            Some(built) => {
                let object = built.join(family);
                println!("cargo::rerun-if-changed={}", object.display());
                fs::copy(object, place)?;
            }
            None => fs::write(place, [])?,
        }
    }
    Ok(())
}
