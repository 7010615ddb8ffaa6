//! Putting the programs of a family into the kernel, and taking them out again: what is loaded lives as long as its
//! [`Loaded`], and no longer than the process, for nothing is pinned.

use std::io;

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError},
    sys::SyscallError,
};
use outrigger_probes::Connection;

use super::{
    facts,
    obstacle::{Obstacle, Rights, explain},
};

/// The programs of the family that follows requests, as `cargo xtask ebpf` built them; empty in a build without.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/requests.o"));

/// Its programs and the tracepoints that they hang on.
const PROGRAMS: [(&str, &str); 4] = [
    ("arrived", "tcp_probe"),
    ("received", "sock_recv_length"),
    ("sent", "sock_send_length"),
    ("destroyed", "tcp_destroy_sock"),
];

/// The words of a [`Connection`].
pub(super) type Words = [u64; Connection::WORDS];

/// Programs that run in the kernel, and the maps that they share with us.
pub(super) struct Loaded {
    /// Holds the programs.
    pub(super) programs: Ebpf,
    pub(super) connections: HashMap<MapData, u64, Words>,
    pub(super) bursts: RingBuf<MapData>,
    pub(super) dropped: PerCpuArray<MapData, u64>,
}

/// Whether this binary has the programs.
pub(super) fn is_built() -> bool {
    !OBJECT.is_empty()
}

/// Loads the family that follows requests and lets it run.
///
/// # Errors
/// What stands in the way; nothing is left in the kernel then.
pub(super) fn requests() -> Result<Loaded, Obstacle> {
    if !is_built() {
        return Err(Obstacle::NotBuilt);
    }
    let facts = facts::gather(&PROGRAMS.map(|(_, tracepoint)| tracepoint))?;
    let btf = Btf::from_sys_fs().map_err(|error| refused(&error))?;
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&btf)).override_global("FACTS", &facts, true);
    let mut programs = loader.load(OBJECT).map_err(|error| obstacle(&error))?;
    for (name, tracepoint) in PROGRAMS {
        attach(&mut programs, name, tracepoint, &btf).map_err(|error| obstacle(&error))?;
    }
    Ok(Loaded {
        connections: map(&mut programs, "CONNECTIONS", HashMap::try_from)?,
        bursts: map(&mut programs, "BURSTS", RingBuf::try_from)?,
        dropped: map(&mut programs, "DROPPED", PerCpuArray::try_from)?,
        programs,
    })
}

fn attach(programs: &mut Ebpf, name: &str, tracepoint: &str, btf: &Btf) -> Result<(), EbpfError> {
    let program = programs.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load(tracepoint, btf)?;
    program.attach()?;
    Ok(())
}

fn map<T>(
    programs: &mut Ebpf,
    name: &str,
    typed: impl FnOnce(aya::maps::Map) -> Result<T, MapError>,
) -> Result<T, Obstacle> {
    let Some(map) = programs.take_map(name) else {
        return Err(Obstacle::Refused { why: format!("the object has no map {name}") });
    };
    typed(map).map_err(|error| refused(&error))
}

/// What an error of aya says, judged by what we may do.
fn obstacle(error: &EbpfError) -> Obstacle {
    match io_error(error) {
        Some(error) if error.kind() == io::ErrorKind::PermissionDenied => explain(&Rights::own()),
        _ => refused(error),
    }
}

/// The error of the system call at the bottom of the chain.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error);
        }
        match error.downcast_ref::<SyscallError>() {
            Some(SyscallError { io_error, .. }) => return Some(io_error),
            None => cause = error.source(),
        }
    }
    None
}

/// The whole chain in one line.
fn refused(error: &dyn std::error::Error) -> Obstacle {
    let mut why = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        why.push_str(": ");
        why.push_str(&error.to_string());
        cause = error.source();
    }
    // The verifier's last words tell why; what it said of each instruction does not fit into a line.
    let mut lines = why.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or_default().to_owned();
    let why = match lines.rev().nth(1) {
        Some(last) => format!("{first} … {last}"),
        None => first,
    };
    Obstacle::Refused { why }
}
