//! What all connections of one simulator share: its options, its engine, its faults and what it has seen.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::request::Parts;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::fault::{self, Book, Fault, Rule};
use super::options::Options;
use super::pace::{Pace, Ticket};
use super::telemetry::Extra;

/// How many of the latest requests are remembered.
const REMEMBERED: usize = 1024;

/// What `GET /sim/state` tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The simulator's name.
    pub name: String,
    /// Requests in the engine's batch.
    pub running: usize,
    /// Requests in the engine's queue.
    pub waiting: usize,
    /// Requests whose client went away before the answer was complete, in whatever phase they were.
    pub aborted: u64,
    /// Requests answered completely.
    pub completed: u64,
    /// Requests that a fault ended on the wire.
    pub faulted: u64,
    /// Tokens' worth of KV blocks in use.
    pub kv_used: u64,
    /// Tokens generated.
    pub generated: u64,
    /// Requests that have begun and neither completed, aborted nor were cut by a fault.
    pub in_flight: u64,
    /// Request bodies received to their end.
    pub bodies: u64,
    /// Connections open.
    pub connections: u64,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Whether it has stopped listening.
    pub refusing: bool,
    /// Requests per path, without query; `/sim/*` is not counted.
    pub paths: BTreeMap<String, u64>,
}

impl State {
    /// Requests seen for `path`.
    pub fn seen(&self, path: &str) -> u64 {
        self.paths.get(path).copied().unwrap_or(0)
    }

    /// Requests seen in all, without `/health`, `/metrics` and `/sim/*`.
    pub fn requests(&self) -> u64 {
        let own = |path: &&String| path.as_str() != "/health" && path.as_str() != "/metrics";
        self.paths.iter().filter(|(path, _)| own(path)).map(|(_, count)| count).sum()
    }
}

/// A request as the simulator saw it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its target: path and query.
    pub target: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Its header fields; names in lower case, in order of first appearance.
    pub headers: Vec<(String, String)>,
}

impl Seen {
    /// The first value of the header called `name` (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Everything that connections share.
pub(crate) struct Context {
    pub(crate) options: Options,
    pub(crate) pace: Arc<Pace>,
    pub(crate) faults: Mutex<Book>,
    tally: Mutex<Tally>,
    /// Counts up with every change of anything that [`State`] tells.
    changes: watch::Sender<u64>,
    /// Whether it should listen, and whether it does.
    listening: watch::Sender<bool>,
    listens: watch::Sender<bool>,
    hang_up: watch::Sender<u64>,
    release: watch::Sender<u64>,
    sequence: AtomicU64,
    runtime: Handle,
}

#[derive(Default)]
struct Tally {
    aborted: u64,
    completed: u64,
    faulted: u64,
    in_flight: u64,
    bodies: u64,
    connections: u64,
    accepted: u64,
    paths: BTreeMap<String, u64>,
    seen: VecDeque<Seen>,
}

impl Context {
    /// To be called on the simulator's runtime.
    pub(crate) fn new(options: Options) -> Self {
        Self {
            pace: Pace::new(options.engine.clone(), options.speed),
            faults: Mutex::new(Book::new(options.seed)),
            tally: Mutex::default(),
            changes: watch::Sender::new(0),
            listening: watch::Sender::new(true),
            listens: watch::Sender::new(true),
            hang_up: watch::Sender::new(0),
            release: watch::Sender::new(0),
            sequence: AtomicU64::new(0),
            runtime: Handle::current(),
            options,
        }
    }

    pub(crate) fn state(&self) -> State {
        let load = self.pace.load();
        let tally = lock(&self.tally);
        State {
            name: self.options.name.clone(),
            running: load.running,
            waiting: load.waiting,
            aborted: tally.aborted,
            completed: tally.completed,
            faulted: tally.faulted,
            kv_used: load.kv_blocks_used * self.options.engine.kv_block,
            generated: self.pace.generated_tokens(),
            in_flight: tally.in_flight,
            bodies: tally.bodies,
            connections: tally.connections,
            accepted: tally.accepted,
            refusing: !*self.listens.borrow(),
            paths: tally.paths.clone(),
        }
    }

    pub(crate) fn metrics(&self) -> String {
        let extra = {
            let tally = lock(&self.tally);
            Extra { aborted: tally.aborted, completed: tally.completed, faulted: tally.faulted }
        };
        self.pace.metrics(self.model(), &extra)
    }

    pub(crate) fn model(&self) -> &str {
        self.options.models.first().map_or("sim-model", String::as_str)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        lock(&self.tally).seen.iter().cloned().collect()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn notice(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    pub(crate) fn listening(&self) -> watch::Receiver<bool> {
        self.listening.subscribe()
    }

    pub(crate) fn listen(&self, listen: bool) {
        self.listening.send_replace(listen);
    }

    /// The port now has a listener, or none.
    pub(crate) fn listener_is(&self, there: bool) {
        self.listens.send_replace(there);
        self.notice();
    }

    /// Fires when every connection is to be closed.
    pub(crate) fn hang_ups(&self) -> watch::Receiver<u64> {
        self.hang_up.subscribe()
    }

    pub(crate) fn hang_up(&self) {
        self.hang_up.send_modify(|count| *count += 1);
    }

    /// Lets every request go on that stalls before its first byte.
    pub(crate) fn release(&self) {
        self.release.send_modify(|count| *count += 1);
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.sequence.fetch_add(1, Relaxed)
    }

    pub(crate) fn connected(&self) {
        self.count(|tally| {
            tally.connections += 1;
            tally.accepted += 1;
        });
    }

    pub(crate) fn disconnected(&self) {
        self.count(|tally| tally.connections -= 1);
    }

    /// Counts a request from here until its guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>, request: &Parts) -> Guard {
        let headers = request.headers.iter().map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let seen = Seen {
            method: request.method.to_string(),
            target: request.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            version: format!("{:?}", request.version),
            headers: headers.collect(),
        };
        // Before it is counted: who has seen it there can let it go on.
        let released = self.release.subscribe();
        self.count(|tally| {
            *tally.paths.entry(request.uri.path().to_owned()).or_default() += 1;
            tally.in_flight += 1;
            if tally.seen.len() == REMEMBERED {
                tally.seen.pop_front();
            }
            tally.seen.push_back(seen);
        });
        Guard { context: Arc::clone(self), ticket: None, ending: Ending::Aborted, released }
    }

    /// The fault that this request meets: what its header asks for, else what the book says.
    pub(crate) fn fault_for(
        self: &Arc<Self>,
        request: &Parts,
        body: &[u8],
    ) -> Result<Option<Fault>, String> {
        if let Some(text) = request.headers.get(fault::HEADER) {
            let text = text.to_str().map_err(|_| "not text".to_owned())?;
            if let Some(fault) = fault::for_simulator(text, &self.options.name)? {
                return Ok(Some(fault));
            }
        }
        Ok(match request.uri.path() {
            "/metrics" => None,
            path => lock(&self.faults).draw(path, body),
        })
    }

    /// Puts a rule into force.
    pub(crate) fn inflict(self: &Arc<Self>, rule: Rule) {
        match rule.fault {
            Fault::Refuse(after) => self.refuse(after),
            _ => lock(&self.faults).add(rule),
        }
    }

    fn refuse(self: &Arc<Self>, after: Option<Duration>) {
        self.listen(false);
        if let Some(after) = after {
            let context = Arc::clone(self);
            self.runtime.spawn(async move {
                tokio::time::sleep(after).await;
                context.listen(true);
            });
        }
    }

    fn count(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut lock(&self.tally));
        self.notice();
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Aborted,
    Completed,
    Faulted,
}

/// A request in flight. Dropped before it was completed, it counts as aborted and frees its place in the engine.
pub(crate) struct Guard {
    context: Arc<Context>,
    ticket: Option<Ticket>,
    ending: Ending,
    released: watch::Receiver<u64>,
}

impl Guard {
    pub(crate) fn hold(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
    }

    pub(crate) fn completed(&mut self) {
        self.ending = Ending::Completed;
    }

    pub(crate) fn faulted(&mut self) {
        self.ending = Ending::Faulted;
    }

    /// Ready when requests that stall have been let go on since this one came.
    pub(crate) async fn released(&mut self) {
        // The sender lives in the context that `self` holds.
        let _ = self.released.changed().await;
    }

    pub(crate) fn body_received(&self) {
        self.context.count(|tally| tally.bodies += 1);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.ticket.take());
        let ending = self.ending;
        self.context.count(|tally| {
            tally.in_flight -= 1;
            match ending {
                Ending::Aborted => tally.aborted += 1,
                Ending::Completed => tally.completed += 1,
                Ending::Faulted => tally.faulted += 1,
            }
        });
    }
}

/// Locks; a panic elsewhere does not take the simulator down with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
