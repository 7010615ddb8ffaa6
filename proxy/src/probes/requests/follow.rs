//! The proxy's end of following requests: which connections are to be followed, and which bytes of them a request was.
//!
//! On the path of a request this costs, when it is on, a few additions and one push to a queue without a lock; a system
//! call and a lock when a connection is made. When the queue is full the newest note is lost and counted.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    thread::Thread,
    time::Duration,
};

use aya::maps::{Array, HashMap, MapData};
use crossbeam_queue::ArrayQueue;
use outrigger_probes::{Burst, Connection, fold_v6, key};
use parking_lot::Mutex;

use super::{Timeline, Words, fold::Span};
use crate::{
    endpoint::Endpoint,
    probes::{
        kernel::monotonic,
        pressure::{Interval, Pressure},
    },
    telemetry::{
        access_log::Kept,
        metrics::{AppMetrics, FollowMetrics, TimelineResult},
        trace::Finished,
    },
};

/// Notes that wait for the reader: what comes in 20 ms at 400,000 requests per second.
const NOTES: usize = 8192;

/// What the reader is told.
pub(super) enum Note {
    /// A request was sent to a followed endpoint, at this time.
    Began(u64),
    /// It is over.
    Ceased(u64),
    /// A connection is followed.
    Opened(u64),
    /// It was closed by the proxy; its key.
    Closed(u64, u64),
    /// A request on it has ended.
    Ended(Span, Ended),
}

/// What is to be done when the timeline of a request is known.
pub(super) struct Ended {
    pub(super) app: Arc<App>,
    /// Its line of the access log, if there is one.
    pub(super) line: Option<Box<Kept>>,
    /// Its trace, if it is traced.
    pub(super) trace: Option<Box<Finished>>,
}

/// What is told of a request that has ended: its line of the access log, its trace.
pub type Told = (Option<Box<Kept>>, Option<Box<Finished>>);

/// The application at one endpoint, as far as the kernel tells of it.
pub(super) struct App {
    pub(super) metrics: Arc<AppMetrics>,
    /// What the kernel knows it by.
    number: u64,
    /// Where what is seen is to have effect: how many requests it may have at once.
    pressure: Option<Pressure>,
    /// The reader's alone.
    interval: Mutex<Interval>,
    endpoint: OnceLock<Weak<Endpoint>>,
}

impl App {
    pub(super) fn new(metrics: Arc<AppMetrics>, number: u64, has_effect: bool) -> Self {
        App {
            metrics,
            number,
            pressure: has_effect.then(Pressure::default),
            interval: Mutex::default(),
            endpoint: OnceLock::new(),
        }
    }

    /// A request was read there at this time, after it had waited so long.
    pub(super) fn waited(&self, at: u64, wait: Duration) {
        let Some(pressure) = &self.pressure else { return };
        let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let has_room = pressure.waited(&mut self.interval.lock(), at, wait);
        self.metrics.limit.set(pressure.most().map_or(0, i64::from));
        if has_room && let Some(endpoint) = self.endpoint.get().and_then(Weak::upgrade) {
            endpoint.has_room();
        }
    }
}

/// The kernel's maps of what is followed.
pub(super) struct Registry {
    pub(super) connections: HashMap<MapData, u64, Words>,
    /// Ports that endpoints have, one bit each.
    pub(super) ports: Array<MapData, u64>,
    /// Those that were told there.
    pub(super) known: HashSet<u16>,
}

impl Registry {
    /// Whether there was room for a connection to a server's port.
    fn add(&mut self, key: u64, words: Words, port: u16) -> bool {
        (self.known.contains(&port) || self.tell(port))
            && self.connections.insert(key, words, 0).is_ok()
    }

    /// Whether the programs look at this port from now on.
    fn tell(&mut self, port: u16) -> bool {
        let (place, bit) = (u32::from(port >> 6), 1 << (port & 63));
        let ports = self.ports.get(&place, 0).unwrap_or(0);
        self.ports.set(place, ports | bit, 0).is_ok() && self.known.insert(port)
    }
}

/// What the path of requests and the reader share.
pub(super) struct Shared {
    /// Locked for two or three system calls.
    registry: Mutex<Registry>,
    pub(super) notes: ArrayQueue<Note>,
    next: AtomicU64,
    metrics: Arc<FollowMetrics>,
    /// It matters how many requests are in flight.
    counts: bool,
    pub(super) in_flight: AtomicU32,
    /// The reader sleeps until it is woken.
    pub(super) asleep: AtomicBool,
    pub(super) reader: OnceLock<Thread>,
}

impl Shared {
    pub(super) fn new(registry: Registry, metrics: Arc<FollowMetrics>, counts: bool) -> Self {
        Shared {
            counts,
            in_flight: AtomicU32::new(0),
            registry: Mutex::new(registry),
            notes: ArrayQueue::new(NOTES),
            // Zero is nobody.
            next: AtomicU64::new(1),
            metrics,
            asleep: AtomicBool::new(false),
            reader: OnceLock::new(),
        }
    }

    fn note(&self, note: Note) -> Result<(), Note> {
        let result = self.notes.push(note);
        if result.is_err() {
            self.metrics.notes_dropped.inc();
        }
        // The reader looks at the queue once more after it has said that it sleeps.
        if self.asleep.load(SeqCst)
            && self.asleep.swap(false, SeqCst)
            && let Some(reader) = self.reader.get()
        {
            reader.unpark();
        }
        result
    }

    /// The burst under way on the connection with this key.
    pub(super) fn look_up(&self, key: u64) -> Option<Burst> {
        let words = self.registry.lock().connections.get(&key, 0).ok()?;
        Some(Connection::from_words(words).burst())
    }

    /// The connection needs not be followed any more, unless another one has its key by now.
    pub(super) fn dismiss(&self, connection: u64, key: u64) {
        let connections = &mut self.registry.lock().connections;
        let is_same = |words: &Words| Connection::from_words(*words).connection == connection;
        if connections.get(&key, 0).as_ref().is_ok_and(is_same) {
            // The kernel may have been faster.
            let _ = connections.remove(&key);
        }
    }
}

/// Has the connections to one endpoint followed.
#[derive(Clone)]
pub struct Follower {
    shared: Arc<Shared>,
    app: Arc<App>,
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>, app: App) -> Self {
        Follower { shared, app: Arc::new(app) }
    }

    /// Whose follower this is; said once, when the endpoint exists.
    pub fn belongs_to(&self, endpoint: &Arc<Endpoint>) {
        // An endpoint is made once.
        let _ = self.app.endpoint.set(Arc::downgrade(endpoint));
    }

    /// How many requests the endpoint may have at once, by what is seen in its socket; `None` for any number.
    #[must_use]
    pub fn most(&self) -> Option<usize> {
        Some(self.app.pressure.as_ref()?.most()? as usize)
    }

    /// Has a connection followed that nothing was sent on yet; `None` when there are too many.
    #[must_use]
    pub fn follow(&self, own: SocketAddr, server: SocketAddr) -> Option<Watch> {
        let key = key(own.port(), server.port(), fold(server));
        let connection = self.shared.next.fetch_add(1, Relaxed);
        let words = Connection::new(connection, self.app.number).to_words();
        if !self.shared.registry.lock().add(key, words, server.port()) {
            self.shared.metrics.unregistered.inc();
            return None;
        }
        let watch = Watch {
            shared: Arc::clone(&self.shared),
            connection,
            key,
            sent: 0,
            start: 0,
            since: 0,
        };
        self.shared.note(Note::Opened(connection)).is_ok().then_some(watch)
    }

    /// A request is in flight from now on, with so many in all, as long as this is there; `None` where that does not
    /// matter.
    #[must_use]
    pub fn attend(&self, in_flight: u32) -> Option<Attendance> {
        if let Some(pressure) = &self.app.pressure {
            pressure.enters(in_flight);
        }
        if !self.shared.counts {
            return None;
        }
        // Counted before it is told of, and told to have ended before it is no longer counted: whoever finds that nobody is
        // in flight has been told of all who were.
        self.shared.in_flight.fetch_add(1, SeqCst);
        let is_told = self.shared.note(Note::Began(monotonic())).is_ok();
        Some(Attendance { shared: Arc::clone(&self.shared), is_told })
    }

    /// What was seen so far of a request that is being answered: one system call.
    #[must_use]
    pub fn so_far(&self, span: &Span) -> Option<Timeline> {
        let burst = self.shared.look_up(span.key).filter(|burst| span.has(burst))?;
        Timeline::of((span.sent, span.ended), [burst])
    }

    /// A request to the endpoint has ended. Gives back what is to be told of it without a timeline.
    ///
    /// # Errors
    /// That.
    pub fn ended(&self, span: Option<Span>, (line, trace): Told) -> Result<(), Told> {
        let Some(span) = span else {
            self.app.metrics.timeline(TimelineResult::Unattributed);
            return Err((line, trace));
        };
        let ended = Ended { app: Arc::clone(&self.app), line, trace };
        match self.shared.note(Note::Ended(span, ended)) {
            Err(Note::Ended(_, ended)) => Err((ended.line, ended.trace)),
            _ => Ok(()),
        }
    }
}

/// A request in flight.
pub struct Attendance {
    shared: Arc<Shared>,
    /// Its beginning was told, so its end has to be.
    is_told: bool,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        if self.is_told {
            let _ = self.shared.note(Note::Ceased(monotonic()));
        }
        self.shared.in_flight.fetch_sub(1, SeqCst);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({}, {} bytes sent)", self.connection, self.sent)
    }
}

/// A connection that is followed, as long as this is there.
pub struct Watch {
    shared: Arc<Shared>,
    connection: u64,
    key: u64,
    sent: u64,
    start: u64,
    /// When the present request began to be sent.
    since: u64,
}

impl Watch {
    /// What is sent from now on is another request.
    pub fn begin(&mut self) {
        self.start = self.sent;
        self.since = 0;
    }

    /// Something is about to be sent.
    pub fn sends(&mut self) {
        if self.since == 0 {
            self.since = monotonic();
        }
    }

    /// So many bytes were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// The present request so far.
    #[must_use]
    pub fn span(&self, complete: bool) -> Span {
        let Self { connection, key, start, sent: end, since: sent, .. } = *self;
        Span { connection, key, start, end, sent, ended: monotonic(), complete }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.shared.note(Note::Closed(self.connection, self.key)).is_err() {
            self.shared.dismiss(self.connection, self.key);
        }
    }
}

/// The server's address in 32 bits, as the kernel's side makes it.
fn fold(server: SocketAddr) -> u32 {
    match server {
        SocketAddr::V4(server) => u32::from_ne_bytes(server.ip().octets()),
        SocketAddr::V6(server) => {
            let octets = server.ip().octets();
            let word = |at: usize| std::array::from_fn(|byte| octets[4 * at + byte]);
            fold_v6(std::array::from_fn(|at| u32::from_ne_bytes(word(at))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_in_both_its_forms() {
        let v4: SocketAddr = "10.1.2.3:80".parse().expect("an address");
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().expect("an address");
        assert_eq!(fold(v4), fold(mapped));
        assert_eq!(fold(v4), u32::from_ne_bytes([10, 1, 2, 3]));
    }
}
