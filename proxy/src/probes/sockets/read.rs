//! The thread that asks once a second, and gives what it learns to the metrics.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::park_timeout,
    time::{Duration, Instant},
};

use super::{
    Watched, Watching,
    ask::Line,
    fold::{App, Facts, Fold},
    owners::{Owners, threads},
    schedule::{Ledger, Ran, tcp_ext},
};
use crate::{
    probes::Obstacle,
    telemetry::metrics::{NamespaceMetrics, SocketMetrics},
};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(1);

pub(super) struct Reader {
    line: Line,
    watching: Arc<Watching>,
    namespace: Arc<NamespaceMetrics>,
    /// Connections that were made and no answer has shown yet: our ends, and where to.
    dialled: HashSet<(SocketAddr, SocketAddr)>,
    fold: Fold,
    owners: Owners,
    ledger: Ledger,
    overflows: Overflows,
    /// It was said that the application's processes cannot be seen, or they could.
    has_told: bool,
    stop: Arc<AtomicBool>,
}

/// Connections that listeners of the namespace turned away by the last round, for want of room and for any reason.
#[derive(Clone, Copy)]
struct Overflows {
    overflowed: u64,
    dropped: u64,
}

impl Overflows {
    fn now() -> Option<Self> {
        let text = fs::read_to_string("/proc/net/netstat").ok()?;
        let number = |name| tcp_ext(&text, name);
        Some(Overflows { overflowed: number("ListenOverflows")?, dropped: number("ListenDrops")? })
    }
}

impl Reader {
    pub(super) fn new(
        line: Line,
        watching: Arc<Watching>,
        namespace: Arc<NamespaceMetrics>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Reader {
            line,
            watching,
            namespace,
            dialled: HashSet::new(),
            fold: Fold::default(),
            owners: Owners::default(),
            ledger: Ledger::default(),
            overflows: Overflows::now().unwrap_or(Overflows { overflowed: 0, dropped: 0 }),
            has_told: false,
            stop,
        }
    }

    pub(super) fn run(mut self) {
        while !self.stop.load(SeqCst) {
            let watched = self.watching.now();
            if !watched.is_empty()
                && let Err(error) = self.round(&watched)
            {
                self.namespace.rounds_failed.inc();
                tracing::debug!(%error, "the kernel did not tell of its sockets");
                // Half an answer may be left in this one.
                if let Ok(line) = Line::open() {
                    self.line = line;
                }
            }
            park_timeout(ROUND);
        }
    }

    fn round(&mut self, watched: &[Arc<Watched>]) -> io::Result<()> {
        let addresses: HashSet<_> = watched.iter().map(|it| it.address).collect();
        let ports: HashSet<_> = addresses.iter().map(SocketAddr::port).collect();
        // Before the kernel is asked: what was dialled is in the answer then, or closed already.
        self.dialled.extend(watched.iter().flat_map(|it| it.dialled()));
        let sockets = self.line.sockets(&Vec::from_iter(ports))?;
        let now = Instant::now();
        let told = self.fold.round(now, &addresses, &sockets, &self.dialled);
        self.dialled.clear();
        let ran = self.ran(now, &told);
        for it in watched {
            if let Some(facts) = told.get(&it.address) {
                write(facts, &it.metrics);
                self.write_processes(facts, &ran, &it.metrics);
            }
        }
        self.write_overflows();
        Ok(())
    }

    /// What the application's processes did since the last round.
    fn ran(&mut self, now: Instant, told: &HashMap<SocketAddr, Facts>) -> HashMap<u32, Ran> {
        let apps = || told.values().filter_map(|facts| facts.app.as_ref());
        let listeners = apps().filter(|app| app.accept.is_some()).flat_map(|app| &app.inodes);
        let all = apps().flat_map(|app| &app.inodes);
        let (listeners, all) = (listeners.copied().collect(), all.copied().collect());
        self.owners.look(now, &listeners, &all);
        let processes = self.owners.of(&Vec::from_iter(all.iter().copied()));
        self.tell(!processes.is_empty(), !all.is_empty());
        self.ledger.round(processes.into_iter().map(|it| (it, threads(it))).collect())
    }

    /// Says once when the application's processes cannot be seen though its sockets can.
    fn tell(&mut self, are_seen: bool, are_sought: bool) {
        if self.has_told || !are_sought {
            return;
        }
        self.has_told = true;
        if !are_seen {
            let obstacle = Obstacle::Processes;
            let remedy = obstacle.remedy();
            tracing::warn!(
                probe = "sockets",
                "nothing is told of the application's processes: {obstacle}; {remedy}"
            );
        }
    }

    fn write_processes(&self, facts: &Facts, ran: &HashMap<u32, Ran>, metrics: &SocketMetrics) {
        let Some(app) = &facts.app else { return };
        for process in self.owners.of(&app.inodes) {
            if let Some(ran) = ran.get(&process) {
                metrics.processes_ran(ran.cpu, ran.waited);
            }
        }
    }

    fn write_overflows(&mut self) {
        let Some(now) = Overflows::now() else { return };
        let before = std::mem::replace(&mut self.overflows, now);
        self.namespace.overflowed.add(now.overflowed.saturating_sub(before.overflowed));
        self.namespace.dropped.add(now.dropped.saturating_sub(before.dropped));
    }
}

fn write(facts: &Facts, metrics: &SocketMetrics) {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    metrics.rtt.set_or_unknown(seconds(facts.rtt));
    metrics.min_rtt.set_or_unknown(seconds(facts.min_rtt));
    metrics.unacked.set(float(facts.unacked));
    metrics.retransmits.add(facts.retransmits);
    let app = facts.app.as_ref();
    let of_app = |value: fn(&App) -> f64| app.map(value);
    metrics.unread_bytes.set_or_unknown(of_app(|app| float(app.unread_bytes)));
    metrics.unread_connections.set_or_unknown(of_app(|app| app.unread_connections.into()));
    metrics.unread_for.set_or_unknown(of_app(|app| app.unread_for.as_secs_f64()));
    let accept = app.and_then(|app| app.accept);
    metrics.accept_queue.set_or_unknown(accept.map(|accept| float(accept.waiting)));
    metrics.accept_limit.set_or_unknown(accept.map(|accept| float(accept.limit)));
}

#[expect(clippy::cast_precision_loss, reason = "bytes in queues, far below 2^53")]
fn float(number: u64) -> f64 {
    number as f64
}
