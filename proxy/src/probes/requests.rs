//! The family that follows requests through the sockets of the application: when one reached the application's socket, when
//! the application read it, when it wrote the answer.
//!
//! Why it can be exact: the proxy is in the path. It knows each request's connection and which bytes of it the request was,
//! so that what the kernel saw of the connection is joined with the request by numbers, without a guess.
//!
//! Left out: HTTP/2 to endpoints (one connection carries many requests at once: those are said to be unattributed), and
//! applications in another network namespace.

mod fold;
mod follow;
mod gaps;
mod read;
mod timeline;
mod writes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{Builder, JoinHandle},
};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use outrigger_probes::{Connection, SocketFact};
use parking_lot::Mutex;

pub use fold::Span;
pub use follow::{Attendance, Follower, Told, Watch};
pub use timeline::Timeline;

use super::{
    kernel::{Function, Hook, Kernel, Obstacle, Programs, Way, own_namespace, own_pids},
    overlap::Waits,
};
use crate::telemetry::{access_log::AccessLog, metrics::Metrics};
use follow::{App, Shared};
use gaps::Numbers;
use read::Reader;

/// The programs, as `cargo xtask ebpf` built them; empty in a build without.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/requests.o"));

/// When a segment has come, and when a connection is gone, is told alike everywhere.
const ARRIVED: (&str, Hook) = ("arrived", Hook::Tracepoint("tcp_probe"));
const DESTROYED: (&str, Hook) = ("destroyed", Hook::Tracepoint("tcp_destroy_sock"));

const SENT_MESSAGE: (&str, Hook) = ("sent_message", returned("tcp_sendmsg", 3));
const SENT_PAGE: (&str, Hook) = ("sent_page", returned("tcp_sendpage", 5));

const BY_FUNCTIONS: &str = "by functions of TCP";

/// How reads and writes are seen. `tcp_sendpage` is in kernels before 6.5, and what sendfile writes goes through it alone
/// there: their tracepoints, if they have them, do not see it.
const WAYS: &[Way] = &[
    Way {
        told: BY_FUNCTIONS,
        programs: &[
            ARRIVED,
            ("received_of_five", returned("tcp_recvmsg", 5)),
            SENT_MESSAGE,
            SENT_PAGE,
            DESTROYED,
        ],
    },
    Way {
        told: BY_FUNCTIONS,
        programs: &[
            ARRIVED,
            ("received_of_six", returned("tcp_recvmsg", 6)),
            SENT_MESSAGE,
            SENT_PAGE,
            DESTROYED,
        ],
    },
    Way {
        told: "by tracepoints of sockets",
        programs: &[
            ARRIVED,
            ("received", Hook::Tracepoint("sock_recv_length")),
            ("sent", Hook::Tracepoint("sock_send_length")),
            DESTROYED,
        ],
    },
];

const fn returned(name: &'static str, parameters: u32) -> Hook {
    Hook::Return(Function { name, parameters })
}

/// Every fact but the namespaces, and where it is to be found.
const FIELDS: [(SocketFact, &str, &[&str]); SocketFact::COUNT - 4] = [
    (SocketFact::OwnAddress, "sock_common", &["skc_rcv_saddr"]),
    (SocketFact::OwnAddressV6, "sock_common", &["skc_v6_rcv_saddr"]),
    (SocketFact::OwnPort, "sock_common", &["skc_num"]),
    (SocketFact::FormerPort, "inet_sock", &["inet_sport"]),
    (SocketFact::PeerPort, "sock_common", &["skc_dport"]),
    (SocketFact::Family, "sock_common", &["skc_family"]),
    (SocketFact::Namespace, "sock_common", &["skc_net"]),
    (SocketFact::NamespaceNumber, "net", &["ns", "inum"]),
    (SocketFact::BytesReceived, "tcp_sock", &["bytes_received"]),
    (SocketFact::WriteSequence, "tcp_sock", &["write_seq"]),
    (SocketFact::SegmentStart, "tcp_skb_cb", &["seq"]),
    (SocketFact::SegmentEnd, "tcp_skb_cb", &["end_seq"]),
    (SocketFact::SegmentFlags, "tcp_skb_cb", &["tcp_flags"]),
];

/// The words of a [`Connection`].
type Words = [u64; Connection::WORDS];

/// Programs that run in the kernel, and the maps that they share with us.
struct Loaded {
    way: &'static Way,
    /// Holds the programs.
    programs: Programs,
    connections: HashMap<MapData, u64, Words>,
    ports: Array<MapData, u64>,
    bursts: RingBuf<MapData>,
    writes: RingBuf<MapData>,
    /// Of bursts, of writes.
    dropped: PerCpuArray<MapData, u64>,
    gaps: PerCpuHashMap<MapData, u64, gaps::Words>,
}

/// Loads the programs and lets them run.
fn load(writes_told: u32) -> Result<Loaded, Obstacle> {
    let kernel = Kernel::running()?;
    let mut facts = facts(&kernel)?;
    facts[SocketFact::WritesTold as usize] = writes_told;
    let (mut programs, way) = Programs::hung(OBJECT, &facts, &kernel, WAYS)?;
    Ok(Loaded {
        way,
        connections: programs.map("CONNECTIONS", HashMap::try_from)?,
        ports: programs.map("PORTS", Array::try_from)?,
        bursts: programs.map("BURSTS", RingBuf::try_from)?,
        writes: programs.map("WRITES", RingBuf::try_from)?,
        dropped: programs.map("DROPPED", PerCpuArray::try_from)?,
        gaps: programs.map("GAPS", PerCpuHashMap::try_from)?,
        programs,
    })
}

fn facts(kernel: &Kernel) -> Result<[u32; SocketFact::COUNT], Obstacle> {
    let mut facts = [0; SocketFact::COUNT];
    let offsets = kernel.offsets(FIELDS.map(|(_, structure, path)| (structure, path)))?;
    for ((fact, ..), offset) in FIELDS.iter().zip(offsets) {
        facts[*fact as usize] = offset;
    }
    // Where TCP keeps what it has made of a segment's header.
    let [own] = kernel.offsets([("sk_buff", &["cb"])])?;
    for fact in [SocketFact::SegmentStart, SocketFact::SegmentEnd, SocketFact::SegmentFlags] {
        facts[fact as usize] += own;
    }
    facts[SocketFact::OwnNamespace as usize] = own_namespace()?;
    let [device, number] = own_pids();
    facts[SocketFact::OwnPidsDevice as usize] = device;
    facts[SocketFact::OwnPidsNumber as usize] = number;
    Ok(facts)
}

/// Whether it can run here, and how: loads it and takes it out again.
///
/// # Errors
/// What stands in the way.
pub(super) fn attempt() -> Result<String, Obstacle> {
    Ok(format!("reads and writes are seen {}", load(0)?.way.told))
}

/// The probe, while it runs.
pub(super) struct Requests {
    shared: Arc<Shared>,
    numbers: Arc<Numbers>,
    metrics: Metrics,
    has_effect: bool,
    stop: Arc<AtomicBool>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Requests {
    /// Starts it. Where it has effect, what is seen in an endpoint's socket bounds how many requests it gets at once. Where
    /// requests are traced, they are told single writes.
    ///
    /// # Errors
    /// What stands in the way.
    pub(super) fn start(
        metrics: &Metrics,
        log: &AccessLog,
        waits: Option<Waits>,
        has_effect: bool,
        is_traced: bool,
    ) -> Result<Self, Obstacle> {
        let loaded = load(if is_traced { writes::TOLD } else { 0 })?;
        tracing::info!("reads and writes of the application are seen {}", loaded.way.told);
        let stop = Arc::new(AtomicBool::new(false));
        let reader = Reader::new(loaded, metrics.follow(), log.clone(), waits, Arc::clone(&stop));
        let (shared, numbers) = (reader.shared(), reader.numbers());
        let reader = Builder::new().name("probes".to_owned()).spawn(move || reader.run());
        let reader = reader.map_err(|error| Obstacle::Refused { why: error.to_string() })?;
        Ok(Requests {
            shared,
            numbers,
            metrics: metrics.clone(),
            has_effect,
            stop,
            reader: Mutex::new(Some(reader)),
        })
    }

    /// What follows the connections to an endpoint.
    pub(super) fn follower(&self, backend: &str, endpoint: &str) -> Follower {
        let metrics = self.metrics.app(backend, endpoint);
        let number = self.numbers.of(&metrics);
        let app = App::new(metrics, number, self.has_effect);
        Follower::new(Arc::clone(&self.shared), app)
    }

    /// Waits a moment for the last timelines, and takes the programs out of the kernel.
    pub(super) fn finish(&self) {
        self.stop.store(true, SeqCst);
        if let Some(reader) = self.reader.lock().take() {
            reader.thread().unpark();
            // A reader that panicked has said so.
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_but_the_namespaces_has_a_place_in_the_kernel() {
        for (at, (fact, ..)) in FIELDS.iter().enumerate() {
            assert_eq!(*fact as usize, at, "in the order of the table");
        }
        assert_eq!(SocketFact::OwnNamespace as usize, FIELDS.len());
    }
}
