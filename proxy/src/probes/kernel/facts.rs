//! What the programs are told of this kernel before they are loaded.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::{
    btf::Btf,
    hook::{Hook, Way, possible},
    obstacle::Obstacle,
};

/// Where the kernel describes its types.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The kernel's description of itself.
pub(in crate::probes) struct Kernel(Vec<u8>);

impl Kernel {
    /// The one that runs.
    ///
    /// # Errors
    /// It does not describe itself.
    pub(in crate::probes) fn running() -> Result<Self, Obstacle> {
        fs::read(VMLINUX).map(Kernel).map_err(|error| Obstacle::NoBtf(error.kind()))
    }

    fn btf(&self) -> Result<Btf<'_>, Obstacle> {
        Btf::parse(&self.0).ok_or(Obstacle::NoBtf(io::ErrorKind::InvalidData))
    }

    /// Those of the ways of which it has all hooks.
    ///
    /// # Errors
    /// There are none, or it does not describe itself.
    pub(super) fn possible(&self, ways: &'static [Way]) -> Result<Vec<&'static Way>, Obstacle> {
        let btf = self.btf()?;
        possible(ways, |hook| match hook {
            Hook::Tracepoint(name) => btf.has_tracepoint(name),
            Hook::Listed(..) => true,
            Hook::Entry(function) | Hook::Return(function) => {
                btf.parameters(function.name) == Some(function.parameters)
            }
        })
    }

    /// How many bytes after the start of its structure each of these fields lies.
    ///
    /// # Errors
    /// The first that there is not.
    pub(in crate::probes) fn offsets<const N: usize>(
        &self,
        fields: [(&str, &[&str]); N],
    ) -> Result<[u32; N], Obstacle> {
        let btf = self.btf()?;
        let mut offsets = [0; N];
        for (place, (structure, path)) in offsets.iter_mut().zip(fields) {
            *place = btf.offset(structure, path).ok_or_else(|| Obstacle::NoField {
                field: format!("{structure}.{}", path.join(".")),
            })?;
        }
        Ok(offsets)
    }
}

/// The number of the network namespace that the proxy is in: of the file that stands for it.
///
/// # Errors
/// It cannot be read.
pub(in crate::probes) fn own_namespace() -> Result<u32, Obstacle> {
    let file = fs::metadata(Path::new("/proc/self/ns/net"));
    let number = file.ok().and_then(|file| u32::try_from(file.ino()).ok());
    number.ok_or(Obstacle::NoNamespace)
}

/// The device and the number of the file that stands for the proxy's PID namespace; zeros, which is none, when it cannot be
/// read.
pub(in crate::probes) fn own_pids() -> [u32; 2] {
    let file = fs::metadata(Path::new("/proc/self/ns/pid"));
    let both = |file: fs::Metadata| {
        Some([u32::try_from(file.dev()).ok()?, u32::try_from(file.ino()).ok()?])
    };
    file.ok().and_then(both).unwrap_or_default()
}
