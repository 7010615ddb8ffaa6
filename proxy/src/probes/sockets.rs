//! The probe that asks the kernel about sockets and threads instead of running programs in it: needs no BPF and no
//! privilege, and knows less.
//!
//! Why beside the other one: where BPF is not permitted this is what remains. It looks once a second, so what it says of
//! waiting is a lower bound and no request's own time; and it tells of transport and scheduler what the other does not.
//!
//! What it decides: it asks about the ports of endpoints only. What it cannot see (an application in another network
//! namespace, processes of other users) it leaves out, and the rest stays.
//!
//! Left out: unix sockets, states other than listening and established, single requests.

mod ask;
mod diag;
mod fold;
mod owners;
mod read;
mod schedule;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{Builder, JoinHandle},
};

use parking_lot::Mutex;

use super::kernel::Obstacle;
use crate::telemetry::metrics::{Metrics, SocketMetrics};
use ask::Line;
use read::Reader;

/// An endpoint that is asked about as long as this is there.
pub struct Watched {
    address: SocketAddr,
    metrics: Arc<SocketMetrics>,
    /// Our ends of the connections that were made since the last round.
    dialled: Mutex<Vec<SocketAddr>>,
}

impl Watched {
    /// A connection to it was made, from this address.
    pub fn dial(&self, own: SocketAddr) {
        let mut dialled = self.dialled.lock();
        if dialled.len() < MOST_DIALLED {
            dialled.push(own);
        }
    }

    /// The connections that were made since this was last asked: our ends, and its address.
    fn dialled(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let dialled = std::mem::take(&mut *self.dialled.lock());
        dialled.into_iter().map(|own| (plain(own), self.address)).collect()
    }
}

/// There are no more ports than these; a reader that does not come must not cost memory without end.
const MOST_DIALLED: usize = 1 << 16;

/// An address as the kernel's answers are read: of IPv4 where it can be, and no more than address and port.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The endpoints that are asked about.
#[derive(Default)]
struct Watching(Mutex<Vec<Weak<Watched>>>);

impl Watching {
    fn add(&self, watched: &Arc<Watched>) {
        self.0.lock().push(Arc::downgrade(watched));
    }

    /// Those that are still there.
    fn now(&self) -> Vec<Arc<Watched>> {
        let mut all = self.0.lock();
        all.retain(|watched| watched.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Whether it can run here: asks once.
///
/// # Errors
/// What stands in the way.
pub(super) fn attempt() -> Result<(), Obstacle> {
    open().map(drop)
}

fn open() -> Result<Line, Obstacle> {
    let unanswered = |error: std::io::Error| Obstacle::NoAnswer { why: error.to_string() };
    let mut line = Line::open().map_err(unanswered)?;
    // A port that hardly anybody uses: an answer is all that is wanted.
    line.sockets(&[1]).map_err(unanswered)?;
    Ok(line)
}

/// The probe, while it runs.
pub(super) struct Sockets {
    watching: Arc<Watching>,
    metrics: Metrics,
    stop: Arc<AtomicBool>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Sockets {
    /// Starts it.
    ///
    /// # Errors
    /// What stands in the way.
    pub(super) fn start(metrics: &Metrics) -> Result<Self, Obstacle> {
        let (stop, watching) = (Arc::new(AtomicBool::new(false)), Arc::<Watching>::default());
        let (seen, until) = (Arc::clone(&watching), Arc::clone(&stop));
        let reader = Reader::new(open()?, seen, metrics.namespace(), until);
        let reader = Builder::new().name("sockets".to_owned()).spawn(move || reader.run());
        let reader = reader.map_err(|error| Obstacle::Refused { why: error.to_string() })?;
        Ok(Sockets { watching, metrics: metrics.clone(), stop, reader: Mutex::new(Some(reader)) })
    }

    /// Asks about an endpoint from the next round on.
    pub(super) fn watch(&self, backend: &str, endpoint: &str, address: SocketAddr) -> Arc<Watched> {
        let metrics = self.metrics.sockets(backend, endpoint);
        let watched = Watched { address: plain(address), metrics, dialled: Mutex::default() };
        let watched = Arc::new(watched);
        self.watching.add(&watched);
        watched
    }

    /// Asks no more.
    pub(super) fn finish(&self) {
        self.stop.store(true, SeqCst);
        if let Some(reader) = self.reader.lock().take() {
            reader.thread().unpark();
            // A reader that panicked has said so.
            let _ = reader.join();
        }
    }
}
