//! An endpoint and what is known about it right now.
//!
//! Lives outside the configuration and is keyed by backend and address, so that a reload loses no counter and an
//! endpoint that comes back within [`Registry::KEPT_FOR`] finds its history.

pub mod passive;
pub mod readiness;
pub mod slow_start;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use outrigger_config::validated::Ejection;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    admission::gate::Gate,
    balance::{
        Cost, Facts, Peers, Standing,
        reported::{Report, Source},
    },
    clock,
    deadline::Patience,
    outlier::{Failure, Transition},
    probes::{Attendance, Follower, Probes, Watched},
    signal::agent::{Admin, Operating, Word},
    telemetry::metrics::{EndpointMetrics, Metrics},
    upstream::pool::Pool,
};
use passive::Passive;
use readiness::Readiness;

/// One address that serves, with its live state.
pub struct Endpoint {
    /// The backend it belongs to.
    pub backend: Arc<str>,
    /// Where it is.
    pub address: SocketAddr,
    /// Its address as text: the value of labels and log fields.
    pub name: String,
    /// Connections that rest between requests.
    pub pool: Pool,
    /// What has its connections followed in the kernel, if anything does.
    pub follower: Option<Follower>,
    /// Has the kernel asked about it, if anything does.
    pub watched: Option<Arc<Watched>>,
    /// Its series.
    pub metrics: Arc<EndpointMetrics>,
    /// What is counted, learned and reported: what balancing compares.
    pub facts: Facts,
    /// Whether it may be sent requests, and since when.
    pub readiness: Readiness,
    /// How much longer than usual its first bytes are waited for.
    pub patience: Patience,
    /// How much longer than usual its gaps may be.
    pub gap_patience: Patience,
    /// Its backend has a warm-up for it.
    warms_up: AtomicBool,
    /// Going there leaves a pod that has an engine of its own.
    leaves_pod: AtomicBool,
    weight: AtomicU32,
    /// What its agent has said so far.
    agent_word: Mutex<Word>,
    /// How many requests its agent wants at most; 0 = as many as come.
    agent_max: AtomicU32,
    /// Passive health, once a backend wants it.
    passive: OnceLock<Arc<Passive>>,
    /// Where requests wait for a place at it, if they do.
    waiting_room: ArcSwapOption<Gate>,
}

impl Endpoint {
    fn new(
        backend: &str,
        address: SocketAddr,
        peers: &Arc<Peers>,
        metrics: &Metrics,
        probes: &Probes,
    ) -> Self {
        let name = address.to_string();
        let now = clock::now();
        Endpoint {
            backend: backend.into(),
            address,
            pool: Pool::new(),
            follower: probes.follower(backend, &name),
            watched: probes.watch(backend, &name, address),
            metrics: metrics.endpoint(backend, &name),
            facts: Facts::new(xxh3_64(name.as_bytes()), now).among(peers),
            name,
            readiness: Readiness::new(now),
            patience: Patience::default(),
            gap_patience: Patience::default(),
            warms_up: AtomicBool::new(false),
            leaves_pod: AtomicBool::new(false),
            weight: AtomicU32::new(1),
            agent_word: Mutex::default(),
            agent_max: AtomicU32::new(0),
            passive: OnceLock::new(),
            waiting_room: ArcSwapOption::empty(),
        }
    }

    pub(crate) fn set_waiting_room(&self, gate: Option<Arc<Gate>>) {
        self.waiting_room.store(gate);
    }

    /// It takes requests again, or more of them: whoever waits for a place may look.
    pub(crate) fn has_room(&self) {
        if let Some(gate) = &*self.waiting_room.load() {
            gate.endpoints_changed();
        }
    }

    /// Changes whether it may be sent requests, and lets what follows from that happen.
    fn change<R>(&self, change: impl FnOnce() -> R) -> R {
        let before = self.is_ready();
        let result = change();
        let now = self.is_ready();
        self.metrics.ready.set(now.into());
        if now && !before {
            self.has_room();
        }
        result
    }

    /// Its passive health, from now on under these settings.
    pub(crate) fn passive(&self, settings: &Ejection) -> Arc<Passive> {
        let passive = self.passive.get_or_init(|| Arc::new(Passive::new(settings, clock::now())));
        passive.configure(settings);
        Arc::clone(passive)
    }

    /// Its share among the endpoints of the backend.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Relaxed);
    }

    /// Whether going there leaves a pod that has an engine of its own.
    pub fn leaves_pod(&self) -> bool {
        self.leaves_pod.load(Relaxed)
    }

    pub(crate) fn set_leaves_pod(&self, leaves: bool) {
        self.leaves_pod.store(leaves, Relaxed);
    }

    /// Whether its active check and its warm-up, if it has them, say that it can serve.
    pub fn is_ready(&self) -> bool {
        self.readiness.is_ready()
    }

    /// What its active check says from now on. One that could not serve needs its warm-up again.
    pub(crate) fn set_checked(&self, checked: bool) {
        if !checked {
            self.chill();
        }
        self.change(|| self.readiness.set_checked(checked, clock::now()));
    }

    /// It has joined, or joined again: whatever is to be done before it serves is to be done, and without that it serves at
    /// once (`unchecked`), slowly at first.
    pub(crate) fn begin_anew(&self, unchecked: bool) {
        self.chill();
        self.change(|| self.readiness.set_checked(unchecked, clock::now()));
        self.readiness.begin(clock::now());
    }

    /// The warm-up of this number has run to its end; whether that is enough.
    pub(crate) fn warmed_up(&self, chill: u64) -> bool {
        self.change(|| self.readiness.warmed_up(chill, clock::now()))
    }

    /// Whether its backend has a warm-up for it.
    pub(crate) fn set_warms_up(&self, warms_up: bool) {
        self.warms_up.store(warms_up, Relaxed);
        if !warms_up {
            self.change(|| self.readiness.set_warm(clock::now()));
        }
    }

    /// It may have been started anew: what was learned of it may hold no longer, and where there is a warm-up it gets no
    /// request before that is done.
    fn chill(&self) {
        if let Some(passive) = self.passive.get() {
            passive.forget();
        }
        self.want_warm_up();
    }

    fn want_warm_up(&self) {
        if self.warms_up.load(Relaxed) {
            self.change(|| self.readiness.chill(clock::now()));
        }
    }

    /// Attempts from the choice of this endpoint until their last byte or their abort.
    pub fn in_flight(&self) -> u32 {
        self.facts.in_flight()
    }

    /// The work in flight, in the units of [`Cost`].
    pub fn load(&self) -> u64 {
        self.facts.load()
    }

    /// Does as its agent says, which is what it said before where it does not mention something.
    pub(crate) fn obey(&self, newer: Word) {
        let mut word = self.agent_word.lock();
        word.update(newer);
        self.follow(&word);
    }

    /// It has no agent any more.
    pub(crate) fn forget_agent(&self) {
        let mut word = self.agent_word.lock();
        *word = Word::default();
        self.follow(&word);
    }

    fn follow(&self, word: &Word) {
        let share = word.weight.map(|weight| weight.share(self.weight()));
        self.facts.reported().set_agent_weight(share);
        let most = word.maxconn.unwrap_or(0);
        let before = self.agent_max.swap(most, Relaxed);
        let works = matches!(word.operating, None | Some(Operating::Up));
        let takes = matches!(word.admin, None | Some(Admin::Ready));
        self.change(|| self.readiness.set_willing(works && takes, clock::now()));
        // 0 is no bound of its own.
        if before != 0 && (most == 0 || most > before) {
            self.has_room();
        }
    }

    /// How many requests may be in flight: the least of what is configured, what its agent wants, and what it picks up
    /// without leaving others in its socket.
    pub(crate) fn limit(&self, configured: Option<usize>) -> Option<usize> {
        let wanted = Some(self.agent_max.load(Relaxed) as usize).filter(|max| *max > 0);
        let picked_up = self.follower.as_ref().and_then(Follower::most);
        [configured, wanted, picked_up].into_iter().flatten().min()
    }

    /// It said this of its load, when we had `own` requests in flight there.
    pub(crate) fn learn(&self, report: &Report, source: Source, own: u32) {
        self.facts.reported().update(report, source, own, clock::now());
        let values = [report.waiting, report.running, report.kv_usage];
        for (level, value) in self.metrics.reported.iter().zip(values) {
            if let Some(value) = value {
                level.set(value);
            }
        }
    }

    /// Says in log and metrics what a verdict changed, and lets what follows from it happen.
    pub(crate) fn announce(&self, transition: Option<Transition>) {
        let Some(transition) = transition else { return };
        let (backend, endpoint) = (&self.backend, &self.name);
        match transition {
            Transition::Ejected { until, reason, failure } => {
                self.metrics.ejection(reason);
                self.metrics.ejected.set(1);
                let span = until.saturating_duration_since(clock::now());
                let reason = failure.map_or(reason.as_str(), Failure::as_str);
                tracing::warn!(%backend, endpoint, reason, ?span, "endpoint ejected");
                // What is known of it stays: others still wait there, and a probe must not wait for longer than they.
                self.want_warm_up();
            }
            Transition::Restored => {
                self.metrics.ejected.set(0);
                self.readiness.begin(clock::now());
                // It was out of service for them.
                self.facts.pardon(clock::now());
                tracing::info!(%backend, endpoint, "endpoint restored");
                self.has_room();
            }
            Transition::KeptAsLast { reason, failure } => {
                let reason = failure.map_or(reason.as_str(), Failure::as_str);
                tracing::warn!(%backend, endpoint, reason, "endpoint fails but too few others are left");
            }
        }
    }

    /// Counts an attempt in, unless `max` of them are in flight already.
    pub(crate) fn admit(self: &Arc<Self>, cost: Cost, max: Option<usize>) -> Option<InFlight> {
        let standing = self.facts.enter(cost);
        let mut held = InFlight { endpoint: Arc::clone(self), cost, standing, attendance: None };
        self.metrics.in_flight.inc();
        // Counted first and asked then, so that two can not both be the last one in.
        if max.is_some_and(|max| standing.in_flight as usize > max) {
            return None;
        }
        held.attendance = self.follower.as_ref().and_then(|it| it.attend(standing.in_flight));
        Some(held)
    }
}

/// One attempt's place at an endpoint; dropping it gives the place back, whatever path led there.
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    /// What it still holds.
    cost: Cost,
    standing: Standing,
    /// That it is in flight, for what is shared among all who are.
    attendance: Option<Attendance>,
}

impl InFlight {
    /// What it found there, itself included.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The first byte is there, which teaches something where it is that of a good answer: the prompt has been worked
    /// off.
    pub fn first_byte(&mut self, after: Option<Duration>, now: Instant) {
        let facts = &self.endpoint.facts;
        if let Some(after) = after {
            facts.first_byte(self.standing, after, now);
        }
        facts.give_back(std::mem::take(&mut self.cost.prefill));
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.facts.leave(self.cost.total());
        self.endpoint.metrics.in_flight.dec();
    }
}

/// Every endpoint there is or lately was.
pub struct Registry {
    metrics: Metrics,
    probes: Arc<Probes>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    endpoints: HashMap<(String, SocketAddr), Entry>,
    /// What the endpoints of a backend are compared by, for each backend.
    peers: HashMap<String, Arc<Peers>>,
}

struct Entry {
    endpoint: Arc<Endpoint>,
    left: Option<Instant>,
}

impl Registry {
    /// How long the state of an endpoint that left is kept for its return.
    pub const KEPT_FOR: Duration = Duration::from_secs(600);

    /// A registry without endpoints.
    pub fn new(metrics: Metrics, probes: Arc<Probes>) -> Self {
        Registry { metrics, probes, known: Mutex::default() }
    }

    /// The series that endpoints are counted in.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The endpoint of `backend` at `address`: the one known, or a new one.
    pub fn join(&self, backend: &str, address: SocketAddr) -> (Arc<Endpoint>, Joined) {
        let mut known = self.known.lock();
        let Known { endpoints, peers } = &mut *known;
        let peers = peers.entry(backend.to_owned()).or_default();
        let mut joined = Joined::Stayed;
        let entry = endpoints.entry((backend.to_owned(), address)).or_insert_with(|| {
            joined = Joined::New;
            let endpoint =
                Arc::new(Endpoint::new(backend, address, peers, &self.metrics, &self.probes));
            if let Some(follower) = &endpoint.follower {
                follower.belongs_to(&endpoint);
            }
            Entry { endpoint, left: None }
        });
        if entry.left.take().is_some() {
            joined = Joined::Back;
        }
        entry.endpoint.pool.open();
        (Arc::clone(&entry.endpoint), joined)
    }

    /// The endpoint gets no new requests; those in flight go on. Its resting connections are closed.
    pub fn leave(&self, endpoint: &Endpoint, now: Instant) {
        endpoint.pool.close();
        let endpoints = &mut self.known.lock().endpoints;
        if let Some(entry) = endpoints.get_mut(&(endpoint.backend.to_string(), endpoint.address)) {
            entry.left = Some(now);
        }
        endpoints.retain(|_, entry| {
            let gone = entry.left.is_some_and(|left| now.duration_since(left) > Self::KEPT_FOR);
            if gone {
                self.metrics.forget_endpoint(&entry.endpoint.backend, &entry.endpoint.name);
            }
            !gone
        });
    }

    /// Drops resting connections that have been idle for longer than their backend allows.
    pub fn sweep(&self, now: Instant) {
        let all: Vec<_> = {
            let known = self.known.lock();
            known.endpoints.values().map(|entry| Arc::clone(&entry.endpoint)).collect()
        };
        for endpoint in all {
            endpoint.pool.sweep(now);
        }
    }
}

/// Whether an endpoint was known before it joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It is new.
    New,
    /// It had left and is back, with its history; what serves at its address may be another process.
    Back,
    /// It has been here all the time.
    Stayed,
}
