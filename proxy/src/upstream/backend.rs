//! A backend at work: which endpoints it has now, and which of them takes the next attempt.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use outrigger_config::validated::{self as config, Balance};
use tokio::sync::watch;

use crate::{
    balance::{Candidates, Cost, Policy},
    endpoint::{Endpoint, InFlight, Joined, Registry},
    outlier::{self, Admit, Failure, Outlier, Pass, Transition},
    telemetry::metrics::BackendMetrics,
};

/// A named group of endpoints. Lives as long as its settings do; a reload that leaves them alone keeps it.
pub struct Backend {
    /// Its name, which is the name of every arm that uses it.
    pub name: Arc<str>,
    /// What the user wrote.
    pub settings: config::Backend,
    /// Its series.
    pub metrics: Arc<BackendMetrics>,
    members: ArcSwap<Members>,
    changed: watch::Sender<()>,
    registry: Arc<Registry>,
}

/// The endpoints of a backend at one moment.
pub struct Members {
    /// In the order of the configuration, each name's addresses in order.
    pub list: Vec<Member>,
    policy: Policy,
}

/// An endpoint as a member of its backend.
#[derive(Clone)]
pub struct Member {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its passive health, where the backend has it.
    pub outlier: Option<Arc<Outlier>>,
}

/// What became of looking for an endpoint.
pub enum Choice {
    /// This one, and a place at it.
    Taken(Place),
    /// There are endpoints that could serve, but all are at `max_connections`.
    Full,
    /// None is ready, or every one has been tried.
    Nobody,
}

impl Backend {
    /// A backend whose addresses are known. Names start with what `before`, the same backend with other settings,
    /// knew of them, until they are resolved.
    pub fn new(
        settings: config::Backend,
        registry: Arc<Registry>,
        before: Option<&Backend>,
    ) -> Self {
        let backend = Backend {
            name: settings.name.as_str().into(),
            members: ArcSwap::from_pointee(Members {
                list: Vec::new(),
                policy: Policy::LeastConnection,
            }),
            metrics: registry.metrics().backend(&settings.name),
            settings,
            changed: watch::channel(()).0,
            registry,
        };
        let mut addresses = backend.literal_addresses();
        if backend.has_names() {
            addresses.extend(before.iter().flat_map(|b| b.present_addresses()));
        }
        backend.set_members(&addresses);
        backend
    }

    /// The endpoints now.
    pub fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    /// Whether any endpoint is given by name.
    pub fn has_names(&self) -> bool {
        self.settings.endpoints.iter().any(|e| matches!(e.host, config::Host::Name(_)))
    }

    /// Addresses that need no resolution, with their weights.
    pub fn literal_addresses(&self) -> Vec<(SocketAddr, u32)> {
        let literal = |endpoint: &config::Endpoint| match &endpoint.host {
            config::Host::Ip(ip) => Some((SocketAddr::new(*ip, endpoint.port), endpoint.weight)),
            config::Host::Name(_) => None,
        };
        self.settings.endpoints.iter().filter_map(literal).collect()
    }

    fn present_addresses(&self) -> Vec<(SocketAddr, u32)> {
        let members = self.members.load();
        members.list.iter().map(|m| (m.endpoint.address, m.endpoint.weight())).collect()
    }

    /// Puts these endpoints in the place of the present ones. Those that stay keep everything, those that leave end
    /// what they have in flight. `true` when the set changed.
    pub fn set_members(&self, addresses: &[(SocketAddr, u32)]) -> bool {
        let mut list: Vec<Member> = Vec::with_capacity(addresses.len());
        for &(address, weight) in addresses {
            if !list.iter().any(|known| known.endpoint.address == address) {
                list.push(self.join(address, weight));
            }
        }
        let policy = self.policy(&list);
        let new = Arc::new(Members { list, policy });
        let old = self.members.swap(Arc::clone(&new));
        let left = old.list.iter().filter(|m| !new.has(&m.endpoint));
        let left = left.map(|m| self.registry.leave(&m.endpoint, Instant::now())).count();
        let changed = left > 0 || old.list.len() != new.list.len();
        if changed {
            self.changed.send_replace(());
        }
        changed
    }

    /// Tells of every change of the endpoints.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn join(&self, address: SocketAddr, weight: u32) -> Member {
        let (endpoint, joined) = self.registry.join(&self.name, address);
        endpoint.set_weight(weight);
        match (&self.settings.health, joined) {
            // Without a check there is nothing to wait for.
            (None, _) => endpoint.set_ready(true),
            (Some(_), Joined::New) => endpoint.set_ready(false),
            (Some(_), Joined::Again) => {}
        }
        let outlier = self.settings.ejection.as_ref().map(|ejection| {
            endpoint.outlier(outlier::Settings {
                failures: ejection.failures,
                base: ejection.base,
                max: ejection.max,
            })
        });
        Member { endpoint, outlier }
    }

    fn policy(&self, list: &[Member]) -> Policy {
        let weights: Vec<u32> = list.iter().map(|member| member.endpoint.weight()).collect();
        match self.settings.balance {
            // No endpoints, no schedule; nobody can be picked either way.
            Balance::RoundRobin => Policy::round_robin(&weights).unwrap_or(Policy::LeastConnection),
            Balance::LeastConnection => Policy::LeastConnection,
        }
    }

    /// Chooses the endpoint of an attempt among those that are not in `tried`.
    pub fn choose(
        &self,
        cost: Cost,
        tried: &[SocketAddr],
        now: Instant,
        rng: &mut impl rand::Rng,
    ) -> Choice {
        let members = self.members.load();
        let max = self.settings.max_connections;
        // An ejected endpoint is better than none: the last resort ignores ejection.
        for last_resort in [false, true] {
            let view = View { members: &members, max, tried, now, last_resort, cost };
            // Another request may take the place between looking and taking; then look again.
            while let Some(picked) = members.policy.pick(&view, rng) {
                if let Some(place) = members.list[picked].take(cost, max, now, last_resort) {
                    return Choice::Taken(place);
                }
            }
        }
        let could = |m: &Member| m.endpoint.is_ready() && !tried.contains(&m.endpoint.address);
        if members.list.iter().any(could) { Choice::Full } else { Choice::Nobody }
    }

    /// Whether there is an endpoint to try that is not in `tried`; as a last resort an ejected one.
    pub fn has_untried(&self, tried: &[SocketAddr]) -> bool {
        let members = self.members.load();
        members.list.iter().any(|m| !tried.contains(&m.endpoint.address) && m.endpoint.is_ready())
    }

    /// Whether an endpoint that is not in `tried` could serve now, and is not ejected.
    pub fn has_other(&self, tried: &[SocketAddr], now: Instant) -> bool {
        let members = self.members.load();
        members.list.iter().any(|m| !tried.contains(&m.endpoint.address) && m.could_serve(now))
    }

    /// Whether any endpoint could serve now.
    pub fn is_ready(&self) -> bool {
        self.members.load().list.iter().any(|member| member.endpoint.is_ready())
    }
}

impl Members {
    pub(crate) fn has(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.list.iter().any(|member| Arc::ptr_eq(&member.endpoint, endpoint))
    }
}

impl Member {
    fn could_serve(&self, now: Instant) -> bool {
        self.endpoint.is_ready() && self.admits(now)
    }

    fn admits(&self, now: Instant) -> bool {
        self.outlier.as_ref().is_none_or(|outlier| outlier.admits(now) != Admit::No)
    }

    /// Takes a place at this endpoint, unless another request was faster.
    fn take(
        &self,
        cost: Cost,
        max: Option<usize>,
        now: Instant,
        last_resort: bool,
    ) -> Option<Place> {
        let in_flight = self.endpoint.admit(cost, max)?;
        let pass = match &self.outlier {
            Some(outlier) if !last_resort => outlier.acquire(now)?,
            _ => Pass::ordinary(),
        };
        Some(Place { in_flight, member: self.clone(), pass: Some(pass) })
    }
}

/// One attempt's place at an endpoint, from the choice until the last byte or the abort.
pub struct Place {
    in_flight: InFlight,
    member: Member,
    pass: Option<Pass>,
}

impl Place {
    /// Where the attempt is.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.member.endpoint
    }

    /// The first byte is there: the prompt has been worked off, and a probe has its answer. An ordinary attempt is
    /// judged at its end, since an engine can still fail in the middle.
    pub fn first_byte(&mut self, now: Instant) -> Option<Transition> {
        self.in_flight.release_prefill();
        if self.pass.as_ref().is_some_and(Pass::is_probe) { self.succeeded(now) } else { None }
    }

    /// The endpoint did what it should.
    pub fn succeeded(&mut self, now: Instant) -> Option<Transition> {
        let (outlier, pass) = (self.member.outlier.as_ref()?, self.pass.take()?);
        outlier.on_success(pass, now)
    }

    /// The endpoint failed, even if it had begun well.
    pub fn failed(
        &mut self,
        failure: Failure,
        backend: &Backend,
        now: Instant,
    ) -> Option<Transition> {
        let outlier = self.member.outlier.as_ref()?;
        let pass = self.pass.take().unwrap_or(Pass::ordinary());
        let own = [self.member.endpoint.address];
        outlier.on_failure(pass, failure, now, || backend.has_other(&own, now))
    }
}

/// What one attempt may choose from.
struct View<'a> {
    members: &'a Members,
    max: Option<usize>,
    tried: &'a [SocketAddr],
    now: Instant,
    last_resort: bool,
    cost: Cost,
}

impl Candidates for View<'_> {
    fn len(&self) -> usize {
        self.members.list.len()
    }

    fn usable(&self, i: usize) -> bool {
        let member = &self.members.list[i];
        let endpoint = &member.endpoint;
        endpoint.is_ready()
            && !self.tried.contains(&endpoint.address)
            && self.max.is_none_or(|max| (endpoint.in_flight() as usize) < max)
            && (self.last_resort || member.admits(self.now))
    }

    fn load(&self, i: usize) -> u64 {
        self.members.list[i].endpoint.load()
    }

    fn weight(&self, i: usize) -> u32 {
        self.members.list[i].endpoint.weight()
    }

    fn cost(&self) -> u64 {
        self.cost.total()
    }
}
