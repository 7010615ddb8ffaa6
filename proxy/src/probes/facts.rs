//! What the programs are told of this kernel before they are loaded.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use outrigger_probes::Fact;

use super::{btf::Btf, obstacle::Obstacle};

/// Where the kernel describes its types.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Every offset, and where it is to be found.
const OFFSETS: [(Fact, &str, &[&str]); Fact::COUNT - 1] = [
    (Fact::OwnAddress, "sock_common", &["skc_rcv_saddr"]),
    (Fact::OwnAddressV6, "sock_common", &["skc_v6_rcv_saddr"]),
    (Fact::OwnPort, "sock_common", &["skc_num"]),
    (Fact::FormerPort, "inet_sock", &["inet_sport"]),
    (Fact::PeerPort, "sock_common", &["skc_dport"]),
    (Fact::Family, "sock_common", &["skc_family"]),
    (Fact::Namespace, "sock_common", &["skc_net"]),
    (Fact::NamespaceNumber, "net", &["ns", "inum"]),
    (Fact::BytesReceived, "tcp_sock", &["bytes_received"]),
    (Fact::WriteSequence, "tcp_sock", &["write_seq"]),
    (Fact::SegmentLength, "sk_buff", &["len"]),
    (Fact::SegmentData, "sk_buff", &["data"]),
];

/// The facts of the running kernel, when it has `tracepoints`.
///
/// # Errors
/// What it lacks.
pub(super) fn gather(tracepoints: &[&'static str]) -> Result<[u32; Fact::COUNT], Obstacle> {
    let bytes = fs::read(VMLINUX).map_err(|error| Obstacle::NoBtf(error.kind()))?;
    let btf = Btf::parse(&bytes).ok_or(Obstacle::NoBtf(io::ErrorKind::InvalidData))?;
    if let Some(missing) = tracepoints.iter().find(|name| !btf.has_tracepoint(name)) {
        return Err(Obstacle::NoTracepoint(missing));
    }
    facts(&btf, own_namespace()?)
}

fn facts(btf: &Btf<'_>, namespace: u32) -> Result<[u32; Fact::COUNT], Obstacle> {
    let mut facts = [0; Fact::COUNT];
    for (fact, structure, path) in OFFSETS {
        let offset = btf.offset(structure, path);
        facts[fact as usize] = offset.ok_or_else(|| Obstacle::NoField {
            field: format!("{structure}.{}", path.join(".")),
        })?;
    }
    facts[Fact::OwnNamespace as usize] = namespace;
    Ok(facts)
}

/// The number of the network namespace that the proxy is in: of the file that stands for it.
fn own_namespace() -> Result<u32, Obstacle> {
    let file = fs::metadata(Path::new("/proc/self/ns/net"));
    let number = file.ok().and_then(|file| u32::try_from(file.ino()).ok());
    number.ok_or(Obstacle::NoNamespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_but_the_namespace_has_a_place_in_the_kernel() {
        for (at, (fact, ..)) in OFFSETS.iter().enumerate() {
            assert_eq!(*fact as usize, at, "in the order of the table");
        }
        assert_eq!(Fact::OwnNamespace as usize, OFFSETS.len());
    }
}
