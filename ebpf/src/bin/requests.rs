//! Follows requests through the sockets of the application.
//!
//! Hooks: the tracepoints `tcp_probe` (a segment has come), `sock_recv_length` (something was read), `sock_send_length`
//! (something was written) and `tcp_destroy_sock` (a connection is gone), by their types in the kernel's BTF (`tp_btf`), so
//! that no tracefs has to be mounted. Where the kernel is older than the two in the middle, or does not show them what
//! sendfile writes, the returns of `tcp_recvmsg`, `tcp_sendmsg` and `tcp_sendpage` instead (fexit).
//! Kernel: 5.10, built with BTF; run on 5.10, 5.15, 6.1, 6.12 and 6.18.
//! Capabilities: CAP_BPF and CAP_PERFMON.
//! Cost per event: see `ebpf/README.md`; a socket of another network namespace costs a look at its namespace, one that is
//! not followed a look into the map more.
//!
//! User space registers the connections of the proxy in `CONNECTIONS` before it sends on them, and nothing is done for any
//! other. When the next burst comes, or the connection ends, the burst before goes into the ring, without waking anyone.
//! The burst under way is in the map for everyone to look up. What is decided is in `outrigger_probes::Connection`; here it
//! is only fetched.

#![no_std]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "the macros make public functions of their own, without a word"
)]

#[path = "../counts.rs"]
mod counts;
#[path = "../program.rs"]
mod program;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_pidns_info},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_ns_current_pid_tgid, bpf_probe_read_kernel,
        bpf_skc_to_tcp_sock,
    },
    macros::{btf_tracepoint, fexit, map},
    maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    programs::{BtfTracePointContext, FExitContext},
};
use aya_log_ebpf::debug;
use outrigger_probes::{Connection, Histogram, SocketFact, fold_v6, key};
use program::now;

/// Connections that can be followed at once: about 2 MiB of the kernel's memory.
const CONNECTIONS_MOST: u32 = 16_384;

/// Endpoints whose writes are counted: more than there can be series of metrics for.
const ENDPOINTS_MOST: u32 = 1024;

/// Room for 10,000 bursts, which is half a second of 20,000 requests per second.
const RING_BYTES: u32 = 1 << 20;

/// Room for 6,500 writes.
const WRITES_BYTES: u32 = 1 << 18;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The segment ends the stream.
const FIN: u8 = 1;

/// Nothing was taken out of the socket by such a read.
const MSG_PEEK: i32 = 2;

/// Such a read is of what the socket says of bytes that were sent, and not of bytes that came.
const MSG_ERRQUEUE: i32 = 0x2000;

/// The facts of [`SocketFact`], put in before loading.
#[unsafe(no_mangle)]
static FACTS: [u32; SocketFact::COUNT] = [0; SocketFact::COUNT];

/// The connections that are followed, by [`key`].
#[map]
static CONNECTIONS: HashMap<u64, Connection> = HashMap::with_max_entries(CONNECTIONS_MOST, 0);

/// Ports that endpoints have, one bit each: whoever has another is not looked at further.
#[map]
static PORTS: Array<u64> = Array::with_max_entries(1024, 0);

/// Bursts that have ended.
#[map]
static BURSTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Writes of answers, the first of each left out, as many as [`SocketFact::WritesTold`] says.
#[map]
static WRITES: RingBuf = RingBuf::with_byte_size(WRITES_BYTES, 0);

/// How far apart writes in a row were, by [`Connection::endpoint`].
#[map]
static GAPS: PerCpuHashMap<u64, Histogram> =
    PerCpuHashMap::with_max_entries(ENDPOINTS_MOST, BPF_F_NO_PREALLOC);

/// Bursts for which there was no room; writes.
#[map]
static DROPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// A socket of the kernel.
#[derive(Clone, Copy)]
struct Socket(*const u8);

/// Both ends of a socket, but for its own port.
struct Ends {
    peer_port: u16,
    address: u32,
}

impl Ends {
    #[inline(always)]
    fn key(&self, own_port: u16) -> u64 {
        key(self.peer_port, own_port, self.address)
    }
}

/// A segment has come for an established connection.
#[btf_tracepoint(function = "tcp_probe")]
fn arrived(ctx: BtfTracePointContext) -> i32 {
    let socket = Socket(ctx.arg(0));
    let Some(connection) = socket.followed() else { return 0 };
    if !has_data(ctx.arg(1)) {
        return 0;
    }
    let Some(tcp) = socket.tcp() else { return 0 };
    let (offset, sequence) =
        (tcp.typed(SocketFact::BytesReceived), tcp.typed(SocketFact::WriteSequence));
    let now = now();
    if let Some(burst) = connection.arrives(now, offset, sequence) {
        tell(&BURSTS, burst, 0);
    }
    0
}

/// Something was read from a socket, or could not be.
#[btf_tracepoint(function = "sock_recv_length")]
fn received(ctx: BtfTracePointContext) -> i32 {
    is_received(Socket(ctx.arg(0)), ctx.arg(1), ctx.arg(2));
    0
}

/// The same, as `tcp_recvmsg` was up to Linux 5.18: socket, message, length, whether to wait, flags, address.
#[fexit(function = "tcp_recvmsg")]
fn received_of_six(ctx: FExitContext) -> i32 {
    is_received(Socket(ctx.arg(0)), ctx.arg(6), ctx.arg(4));
    0
}

/// The same, as it was from 5.19 on: socket, message, length, flags, address.
#[fexit(function = "tcp_recvmsg")]
fn received_of_five(ctx: FExitContext) -> i32 {
    is_received(Socket(ctx.arg(0)), ctx.arg(5), ctx.arg(3));
    0
}

/// Something was written to a socket, or could not be.
#[btf_tracepoint(function = "sock_send_length")]
fn sent(ctx: BtfTracePointContext) -> i32 {
    is_sent(Socket(ctx.arg(0)), ctx.arg(1));
    0
}

/// The same; its arguments are socket, message and length.
#[fexit(function = "tcp_sendmsg")]
fn sent_message(ctx: FExitContext) -> i32 {
    is_sent(Socket(ctx.arg(0)), ctx.arg(3));
    0
}

/// A piece of a file, or of a pipe, was written. Its arguments are socket, page, offset, length and flags.
#[fexit(function = "tcp_sendpage")]
fn sent_page(ctx: FExitContext) -> i32 {
    is_sent(Socket(ctx.arg(0)), ctx.arg(5));
    0
}

/// A connection is gone.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn destroyed(ctx: BtfTracePointContext) -> i32 {
    let socket = Socket(ctx.arg(0));
    let Some(ends) = socket.ends() else { return 0 };
    // By now the socket has given its port back, but still knows which one it was.
    let Some(port) = socket.read(SocketFact::FormerPort).map(u16::from_be) else { return 0 };
    let key = ends.key(port);
    let Some(connection) = CONNECTIONS.get_ptr_mut(key) else { return 0 };
    // SAFETY: as in `Socket::followed`.
    let connection = unsafe { &mut *connection };
    if connection.has_begun() {
        tell(&BURSTS, connection.burst(), 0);
    }
    debug!(
        (),
        "connection {} is gone, of which {} bytes were read",
        connection.connection,
        connection.consumed
    );
    // It may have been registered anew, which cannot be while its ports are in use.
    let _ = CONNECTIONS.remove(key);
    0
}

/// So many bytes were read from a socket with such flags; less than one is an error.
#[inline(always)]
fn is_received(socket: Socket, length: i32, flags: i32) {
    if length <= 0 || flags & (MSG_PEEK | MSG_ERRQUEUE) != 0 {
        return;
    }
    let Some(connection) = socket.followed() else { return };
    let Some(tcp) = socket.tcp() else { return };
    let sequence = tcp.typed(SocketFact::WriteSequence);
    let now = now();
    let task = if connection.picked == 0 { reader() } else { 0 };
    connection.is_read(now, length as u64, task, sequence);
}

/// So many bytes were written to a socket; less than one is an error.
#[inline(always)]
fn is_sent(socket: Socket, length: i32) {
    if length <= 0 {
        return;
    }
    let Some(connection) = socket.followed() else { return };
    let Some(tcp) = socket.tcp() else { return };
    let sequence = tcp.typed(SocketFact::WriteSequence);
    if let Some(gap) = connection.is_written(now(), length as u64, sequence) {
        counts::count(&GAPS, connection.endpoint, gap);
        if connection.writes <= u64::from(fact(SocketFact::WritesTold)) {
            tell(&WRITES, connection.write(length as u64), 1);
        }
    }
}

/// Who reads: as the proxy's PID namespace counts, where it has them.
#[inline(always)]
fn reader() -> u64 {
    let mut found = bpf_pidns_info { pid: 0, tgid: 0 };
    let (device, number) = (fact(SocketFact::OwnPidsDevice), fact(SocketFact::OwnPidsNumber));
    // SAFETY: the helper writes no more than the size it is told.
    let result = unsafe {
        let size = size_of::<bpf_pidns_info>() as u32;
        bpf_get_ns_current_pid_tgid(device.into(), number.into(), &raw mut found, size)
    };
    match result {
        0 => (u64::from(found.tgid) << 32) | u64::from(found.pid),
        _ => bpf_get_current_pid_tgid(),
    }
}

/// Whether the segment has data, by what the kernel has made of its header.
fn has_data(segment: *const u8) -> bool {
    // SAFETY: a pointer that the kernel passed, to a type of which BTF said where the fields are; the verifier checks it.
    let (start, end, flags) = unsafe {
        let start = *segment.add(fact(SocketFact::SegmentStart) as usize).cast::<u32>();
        let end = *segment.add(fact(SocketFact::SegmentEnd) as usize).cast::<u32>();
        (start, end, *segment.add(fact(SocketFact::SegmentFlags) as usize))
    };
    // The end of a stream counts as one.
    end.wrapping_sub(start) > u32::from(flags & FIN)
}

impl Socket {
    /// Its connection, if it is one of the proxy's.
    #[inline(always)]
    fn followed(self) -> Option<&'static mut Connection> {
        let own_port: u16 = self.typed(SocketFact::OwnPort);
        if !serves(own_port) {
            return None;
        }
        let ends = self.ends()?;
        let connection = CONNECTIONS.get_ptr_mut(ends.key(own_port))?;
        // SAFETY: the map's memory stays while the program runs. Others may write it at the same time; all words are
        // numbers, of which every value is one.
        Some(unsafe { &mut *connection })
    }

    /// The same as a socket of TCP, of which the verifier knows more fields.
    #[inline(always)]
    fn tcp(self) -> Option<Self> {
        // SAFETY: a socket that the kernel passed; null is what the helper says of others.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.0.cast_mut().cast()) };
        (!tcp.is_null()).then(|| Socket(tcp.cast::<u8>().cast_const()))
    }

    /// Whom it talks with at which address, if it may be a server of ours at all.
    #[inline(always)]
    fn ends(self) -> Option<Ends> {
        let family: u16 = self.typed(SocketFact::Family);
        if (family != AF_INET && family != AF_INET6) || !self.is_in_own_namespace() {
            return None;
        }
        let address = match family {
            AF_INET => self.typed(SocketFact::OwnAddress),
            _ => fold_v6(self.read(SocketFact::OwnAddressV6)?),
        };
        let peer_port: u16 = self.typed(SocketFact::PeerPort);
        Some(Ends { peer_port: u16::from_be(peer_port), address })
    }

    #[inline(always)]
    fn is_in_own_namespace(self) -> bool {
        let namespace: *const u8 = self.typed(SocketFact::Namespace);
        // SAFETY: as in `typed`.
        let number =
            unsafe { *namespace.add(fact(SocketFact::NamespaceNumber) as usize).cast::<u32>() };
        number == fact(SocketFact::OwnNamespace)
    }

    /// A field of the `sock` that the tracepoint has passed, which the verifier knows the type of.
    #[inline(always)]
    fn typed<T: Copy>(self, field: SocketFact) -> T {
        // SAFETY: a pointer that the kernel passed, to a type of which BTF said where the fields are; the verifier
        // checks that there is such a field.
        unsafe { *self.0.add(fact(field) as usize).cast::<T>() }
    }

    /// A field of what the verifier does not know the socket to be.
    #[inline(always)]
    fn read<T>(self, field: SocketFact) -> Option<T> {
        let address = self.0.wrapping_add(fact(field) as usize).cast::<T>();
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(address) }.ok()
    }
}

/// Whether an endpoint has this port.
#[inline(always)]
fn serves(port: u16) -> bool {
    PORTS.get(u32::from(port >> 6)).is_some_and(|ports| ports >> (port & 63) & 1 != 0)
}

#[inline(always)]
fn fact(fact: SocketFact) -> u32 {
    program::fact(&FACTS, fact as usize)
}

#[inline(always)]
fn tell<T: 'static>(ring: &RingBuf, record: T, what: u32) {
    if !program::tell(ring, record)
        && let Some(dropped) = DROPPED.get_ptr_mut(what)
    {
        // SAFETY: memory of this CPU's own.
        unsafe { *dropped += 1 };
    }
}
