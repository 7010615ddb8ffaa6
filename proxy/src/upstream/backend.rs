//! A backend at work: which endpoints it has now, and which of them takes the next attempt.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use outrigger_config::validated::{self as config, Balance, BalancePolicy, HashTable};
use tokio::sync::watch;

use crate::{
    admission::gate::Gate,
    balance::{self, Ask, Candidates, Cost, Facts, Memory, Policy, Standing},
    clock::{self, Every},
    discovery::{self, Found},
    endpoint::{Endpoint, InFlight, Joined, Registry, passive::Passive, slow_start},
    outlier::{
        Admit, Circuit, Failure, Group, Pass, Reason, Transition, peers::Sample, stall::Turn,
    },
    telemetry::metrics::{BackendMetrics, Nearness, Scope},
    upstream::{
        breaker::{BackendBreaker, Permit},
        locality::{self, Locality},
    },
};

/// How late an ejected endpoint may be tried again, so that its like is not looked for among thousands at every request.
const PROBES_EVERY: Duration = Duration::from_millis(50);

/// A named group of endpoints. Lives as long as its settings do; a reload that leaves them alone keeps it.
pub struct Backend {
    /// Its name, which is the name of every arm that uses it.
    pub name: Arc<str>,
    /// What the user wrote.
    pub settings: config::Backend,
    /// Its series.
    pub metrics: Arc<BackendMetrics>,
    /// What requests pass to get here, where something limits them.
    pub gate: Option<Arc<Gate>>,
    members: ArcSwap<Members>,
    /// Where prompts and sessions were served last; outlives changes of the endpoints.
    memory: Arc<Memory>,
    /// What lets requests fail at once while all of it fails; outlives other settings, too.
    breaker: Option<Arc<BackendBreaker>>,
    locality: Locality,
    changed: watch::Sender<()>,
    registry: Arc<Registry>,
    /// When endpoints may be looked through again for one that is due for its probe.
    probes: Every,
}

/// The endpoints of a backend at one moment.
pub struct Members {
    /// In the order of the configuration, each name's addresses in order.
    pub list: Vec<Member>,
    /// Whether one of them is the own pod's engine.
    pub has_local: bool,
    policy: Policy,
}

/// An endpoint as a member of its backend.
#[derive(Clone)]
pub struct Member {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its passive health, where the backend has it.
    pub passive: Option<Arc<Passive>>,
    /// How near it is.
    pub nearness: Nearness,
    /// Whether going there leaves a pod that has an engine of its own.
    leaves_pod: bool,
    /// The extra work of going there.
    distance: u64,
    /// Who waits for a place there.
    gate: Option<Arc<Gate>>,
    found: Found,
}

/// What an attempt asks for.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// What the request is like.
    pub ask: &'a Ask,
    /// Endpoints that it has tried.
    pub tried: &'a [SocketAddr],
    /// Endpoints that a scheduler in front has chosen, the best one first.
    pub destinations: &'a [SocketAddr],
    /// It has come from another pod, to be served by this one's engine if there is one.
    pub hopped: bool,
}

/// What became of looking for an endpoint.
pub enum Choice {
    /// This one, and a place at it.
    Taken(Place),
    /// The backend as a whole is left alone, for so long.
    Open(Duration),
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
        let memory = before.map_or_else(|| Arc::new(Memory::new()), |b| Arc::clone(&b.memory));
        let zone = std::env::var(locality::ZONE_VARIABLE).ok();
        let name: Arc<str> = settings.name.as_str().into();
        let metrics = registry.metrics().backend(&settings.name);
        let breaker = settings.breaker.as_ref().map(|wanted| {
            let known = before.and_then(|before| before.breaker.as_ref());
            let new = || Arc::new(BackendBreaker::new(wanted, &name, &metrics));
            let breaker = known.map_or_else(new, Arc::clone);
            breaker.configure(wanted);
            breaker
        });
        let backend = Backend {
            name,
            members: ArcSwap::from_pointee(Members {
                list: Vec::new(),
                has_local: false,
                policy: Policy::new(policy_kind(&settings.balance), &[], &memory),
            }),
            memory,
            breaker,
            locality: Locality::new(&settings.locality, zone),
            metrics,
            gate: gate(&settings, &registry, before),
            settings,
            changed: watch::channel(()).0,
            registry,
            probes: Every::new(PROBES_EVERY, clock::now()),
        };
        let mut found = discovery::literal(&backend.settings.endpoints);
        if discovery::is_needed(&backend.settings.endpoints) {
            found.extend(before.into_iter().flat_map(discovery::inherited));
        }
        backend.set_members(&found);
        backend
    }

    /// The endpoints now.
    pub fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    /// The endpoints now, as discovery would find them.
    pub fn present(&self) -> Vec<Found> {
        self.members.load().list.iter().map(|member| member.found.clone()).collect()
    }

    /// Puts these endpoints in the place of the present ones. Those that stay keep everything, those that leave end
    /// what they have in flight. `true` when the set changed.
    pub fn set_members(&self, found: &[Found]) -> bool {
        let has_local = found.iter().any(|found| found.local);
        let mut list: Vec<Member> = Vec::with_capacity(found.len());
        for found in found {
            if !list.iter().any(|known| known.endpoint.address == found.address) {
                list.push(self.join(found, has_local));
            }
        }
        let weights: Vec<_> =
            list.iter().map(|m| (m.endpoint.facts.id(), m.endpoint.weight())).collect();
        let policy = Policy::new(policy_kind(&self.settings.balance), &weights, &self.memory);
        let new = Arc::new(Members { list, has_local, policy });
        let old = self.members.swap(Arc::clone(&new));
        let left = old.list.iter().filter(|m| !new.has(&m.endpoint));
        let left = left.map(|m| self.registry.leave(&m.endpoint, clock::now())).count();
        let changed = left > 0 || old.list.len() != new.list.len();
        if changed {
            self.changed.send_replace(());
            if let Some(gate) = &self.gate {
                gate.endpoints_changed();
            }
        }
        changed
    }

    /// Tells of every change of the endpoints.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn join(&self, found: &Found, has_local: bool) -> Member {
        let (endpoint, joined) = self.registry.join(&self.name, found.address);
        endpoint.set_weight(found.weight);
        endpoint.set_warms_up(self.settings.warm_up.is_some());
        if self.settings.signals.agent.is_none() {
            endpoint.forget_agent();
        }
        match (&self.settings.health, joined) {
            // What serves there may be another process than before.
            (_, Joined::New | Joined::Back) => endpoint.begin_anew(self.settings.health.is_none()),
            // Without a check there is nothing to wait for.
            (None, Joined::Stayed) => endpoint.set_checked(true),
            (Some(_), Joined::Stayed) => {}
        }
        let ejection = self.settings.ejection.as_ref();
        let passive = ejection.map(|ejection| endpoint.passive(ejection));
        let nearness = self.locality.nearness(found.local, found.zone.as_deref());
        let distance = self.locality.distance(nearness, has_local);
        let leaves_pod = has_local && nearness != Nearness::Local;
        endpoint.set_leaves_pod(leaves_pod);
        let gate = self.gate.clone().filter(|_| self.settings.queue.is_some());
        let found = found.clone();
        endpoint.set_waiting_room(gate.clone());
        Member { endpoint, passive, nearness, leaves_pod, distance, gate, found }
    }

    /// Chooses the endpoint of an attempt.
    pub fn choose(&self, wanted: Wanted<'_>, now: Instant, rng: &mut impl rand::Rng) -> Choice {
        let permit = match self.breaker.as_ref().map(|breaker| breaker.enter(now)).transpose() {
            Ok(permit) => permit,
            Err(wait) => return Choice::Open(wait),
        };
        let members = self.members.load();
        // An ejected endpoint is better than none: the last resort ignores ejection.
        for taste in [Taste::Sound, Taste::LastResort] {
            let view = View { backend: self, members: &members, wanted, now, taste };
            let place = view.take_destination().or_else(|| view.take_due());
            if let Some(place) = place.or_else(|| view.take_picked(rng)) {
                self.metrics.sent(place.member.nearness);
                return Choice::Taken(Place { permit, ..place });
            }
        }
        let could = |m: &Member| m.endpoint.is_ready() && wanted.allows(m);
        if members.list.iter().any(could) { Choice::Full } else { Choice::Nobody }
    }

    /// Chooses the endpoint of a second attempt while another one is open: one that serves like any other, and none that
    /// is being tried. Nothing is remembered of it before it has won ([`Backend::hedge_won`]).
    pub fn choose_rival(
        &self,
        wanted: Wanted<'_>,
        now: Instant,
        rng: &mut impl rand::Rng,
    ) -> Option<Place> {
        let permit = match &self.breaker {
            Some(breaker) if !breaker.is_closed() => return None,
            Some(breaker) => Some(breaker.enter(now).ok()?),
            None => None,
        };
        let members = self.members.load();
        let view = View { backend: self, members: &members, wanted, now, taste: Taste::Rival };
        let place = view.take_destination().or_else(|| view.take_picked(rng))?;
        Some(Place { permit, ..place })
    }

    /// The second attempt is on its way.
    pub fn hedge_sent(&self, place: &Place) {
        self.metrics.sent(place.member.nearness);
    }

    /// The second attempt is the one whose answer is passed on: what follows of its session or its prompt goes there.
    pub fn hedge_won(&self, place: &Place, ask: &Ask, now: Instant) {
        self.members.load().policy.sent(ask, &place.endpoint().facts, now);
    }

    /// Where its breaker stands; `None` where it has none.
    pub fn circuit(&self, now: Instant) -> Option<Circuit> {
        self.breaker.as_ref().map(|breaker| breaker.circuit(now))
    }

    /// Whether its breaker would let nobody in now.
    pub fn is_shut(&self, now: Instant) -> bool {
        self.breaker.as_ref().is_some_and(|breaker| !breaker.admits(now))
    }

    /// Whether there is an endpoint to try that is not in `tried`; as a last resort an ejected one.
    pub fn has_untried(&self, tried: &[SocketAddr]) -> bool {
        let members = self.members.load();
        members.list.iter().any(|m| !tried.contains(&m.endpoint.address) && m.endpoint.is_ready())
    }

    /// Leaves an endpoint alone for a while, unless too few others are left. It may have been in trouble since `since`.
    /// Whether there is something new to say.
    pub fn eject(&self, member: &Member, reason: Reason, since: Instant, now: Instant) -> bool {
        let Some(passive) = &member.passive else { return false };
        let group = || self.group_of(&member.endpoint);
        let transition = passive.outlier.eject(reason, since, now, group);
        member.endpoint.announce(transition);
        transition.is_some()
    }

    /// How the others stand when this endpoint is about to be ejected.
    fn group_of(&self, endpoint: &Arc<Endpoint>) -> Group {
        let members = self.members.load();
        let others = || members.list.iter().filter(|m| !Arc::ptr_eq(&m.endpoint, endpoint));
        Group {
            all: members.list.len(),
            out: others().filter(|member| member.is_ejected()).count(),
            serving: others().filter(|member| member.is_serving()).count(),
        }
    }

    /// Whether any endpoint could serve now.
    pub fn is_ready(&self) -> bool {
        self.members.load().list.iter().any(|member| member.endpoint.is_ready())
    }
}

impl Wanted<'_> {
    fn allows(&self, member: &Member) -> bool {
        let stays = !self.hopped || !member.leaves_pod;
        stays && !self.tried.contains(&member.endpoint.address)
    }
}

impl Members {
    pub(crate) fn has(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.list.iter().any(|member| Arc::ptr_eq(&member.endpoint, endpoint))
    }
}

impl Member {
    /// Whether it takes requests like any other: it is ready and not ejected.
    pub fn is_serving(&self) -> bool {
        self.endpoint.is_ready() && !self.is_ejected()
    }

    /// Whether it is ejected, or being tried after an ejection.
    pub fn is_ejected(&self) -> bool {
        self.passive.as_ref().is_some_and(|passive| passive.outlier.is_ejected())
    }

    /// Whether it has stopped working on everything it has.
    pub fn has_stalled(&self, now: Instant) -> bool {
        self.passive.as_ref().is_some_and(|passive| passive.progress.stalled(now))
    }

    /// What it did lately.
    pub fn sample(&self, now: Instant) -> Sample {
        self.passive.as_ref().map_or_else(Sample::default, |passive| passive.window.sample(now))
    }

    /// Where its own breaker stands; [`Circuit::Closed`] is what we call not ejected.
    pub fn circuit(&self, now: Instant) -> Circuit {
        self.passive.as_ref().map_or(Circuit::Closed, |passive| passive.outlier.circuit(now))
    }

    fn suits(&self, taste: Taste, now: Instant) -> bool {
        let admits = || self.passive.as_ref().map_or(Admit::Yes, |it| it.outlier.admits(now));
        match taste {
            Taste::Sound => admits() != Admit::No,
            Taste::Rival => admits() == Admit::Yes,
            Taste::LastResort => true,
        }
    }

    /// Takes a place at this endpoint, unless another request was faster.
    fn take(&self, cost: Cost, max: Option<usize>, now: Instant, taste: Taste) -> Option<Place> {
        let freed = Freed(self.gate.clone());
        // Also one that is one too many is counted for a moment, and may have been in somebody's way.
        let in_flight = self.endpoint.admit(cost, max)?;
        let pass = match (&self.passive, taste) {
            (Some(passive), Taste::Sound | Taste::Rival) => passive.outlier.acquire(now)?,
            (Some(_), Taste::LastResort) | (None, _) => Pass::ordinary(),
        };
        let (member, pass) = (self.clone(), Some(pass));
        Some(Place { in_flight, member, pass, permit: None, _freed: freed })
    }
}

/// One attempt's place at an endpoint, from the choice until the last byte or the abort.
pub struct Place {
    in_flight: InFlight,
    member: Member,
    pass: Option<Pass>,
    /// What the breaker of the backend, if it has one, let it pass by.
    permit: Option<Permit>,
    /// The last to be dropped: the place is free by then.
    _freed: Freed,
}

/// Tells those who wait that a place is free.
struct Freed(Option<Arc<Gate>>);

impl Drop for Freed {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.place_freed();
        }
    }
}

impl Place {
    /// Where the attempt is.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.member.endpoint
    }

    /// What the attempt found there, itself included.
    pub fn standing(&self) -> Standing {
        self.in_flight.standing()
    }

    /// Whether a request that is served here leaves a pod that has an engine of its own.
    pub fn leaves_pod(&self) -> bool {
        self.member.leaves_pod
    }

    /// Whether it is the own pod's engine.
    pub fn is_local(&self) -> bool {
        self.member.nearness == Nearness::Local
    }

    /// The first byte is there, and the endpoint answers well if it came `after` so long: the prompt has been worked
    /// off, and a probe has its answer. An ordinary attempt is judged at its end, since an engine can still fail in the
    /// middle.
    pub fn first_byte(&mut self, after: Option<Duration>, now: Instant) -> Option<Transition> {
        self.in_flight.first_byte(after, now);
        // A stream may go on for minutes: the backend has done what it should when it begins.
        if let (Some(permit), Some(_)) = (&mut self.permit, after) {
            permit.succeeded(now);
        }
        if self.pass.as_ref().is_some_and(Pass::is_probe) { self.succeeded(now) } else { None }
    }

    /// There is a connection to the endpoint.
    pub fn reached(&self) {
        if let Some(permit) = &self.permit {
            permit.reached();
        }
    }

    /// Whether it tries whether its endpoint, or the whole backend, is back.
    pub fn is_probe(&self) -> bool {
        self.pass.as_ref().is_some_and(Pass::is_probe)
            || self.permit.as_ref().is_some_and(Permit::is_probe)
    }

    /// The request has been sent in full: from now on the endpoint owes bytes, of a stream if it `streams`.
    pub fn begin_turn(&self, prompt_tokens: u64, streams: bool, now: Instant) -> Option<Turn> {
        let passive = self.member.passive.as_ref()?;
        Some(passive.progress.begin(prompt_tokens, streams, now))
    }

    /// When the endpoint will have stopped working on everything it has, if nothing happens until then.
    pub fn stalls_at(&self) -> Option<Instant> {
        self.member.passive.as_ref()?.progress.stalls_at()
    }

    /// A streamed answer began `after` so long, when the prompts before it had so many tokens.
    pub fn stream_began(&self, after: Duration, prompts: u64, now: Instant) {
        if let Some(passive) = &self.member.passive {
            passive.window.first_byte(after, prompts, now);
        }
    }

    /// The endpoint did what it should.
    pub fn succeeded(&mut self, now: Instant) -> Option<Transition> {
        if let Some(permit) = &mut self.permit {
            permit.succeeded(now);
        }
        let (passive, pass) = (self.member.passive.as_ref()?, self.pass.take()?);
        passive.window.succeeded(now);
        let transition = passive.outlier.on_success(pass, now);
        if transition == Some(Transition::Restored) {
            passive.forget();
        }
        transition
    }

    /// The endpoint failed, even if it had begun well.
    pub fn failed(
        &mut self,
        failure: Failure,
        backend: &Backend,
        now: Instant,
    ) -> Option<Transition> {
        if let Some(permit) = &mut self.permit {
            permit.failed(failure, backend.members.load().list.len(), now);
        }
        let pass_left = self.pass.is_some();
        if pass_left {
            // Once for each attempt, also where an error breaks off.
            self.member.endpoint.facts.failed(now);
        }
        let passive = self.member.passive.as_ref()?;
        if pass_left {
            passive.window.failed(now);
        }
        let pass = self.pass.take().unwrap_or(Pass::ordinary());
        let group = || backend.group_of(&self.member.endpoint);
        passive.outlier.on_failure(pass, failure, now, group)
    }
}

/// Which endpoints will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taste {
    /// Those that are not ejected, and one that is due for its probe.
    Sound,
    /// Those that are not ejected, for a second attempt.
    Rival,
    /// Any, since nothing else is left.
    LastResort,
}

/// What one attempt may choose from.
struct View<'a> {
    backend: &'a Backend,
    members: &'a Members,
    wanted: Wanted<'a>,
    now: Instant,
    taste: Taste,
}

impl View<'_> {
    /// A place at the first endpoint that a scheduler in front has named and that can be used.
    fn take_destination(&self) -> Option<Place> {
        self.wanted.destinations.iter().find_map(|address| {
            let named = |m: &Member| m.endpoint.address == *address;
            let index = self.members.list.iter().position(named)?;
            if self.usable(index) { self.take(index) } else { None }
        })
    }

    /// A place at an endpoint whose ejection is over and that waits for its probe. Policies go by what is known of an
    /// endpoint, and of this one that is bad, or old: where the others have little to do it would wait for minutes. A
    /// request that has failed elsewhere is no probe, and neither is one whose key belongs to another endpoint.
    fn take_due(&self) -> Option<Place> {
        let keyed = self.backend.settings.balance.policy == BalancePolicy::ConsistentHash;
        if keyed || self.taste != Taste::Sound || !self.wanted.tried.is_empty() {
            return None;
        }
        let due = |member: &Member| {
            let passive = member.passive.as_ref();
            passive.is_some_and(|passive| passive.outlier.admits(self.now) == Admit::Probe)
        };
        let wanted =
            |i: &usize| due(&self.members.list[*i]) && self.usable(*i) && self.weight(*i) > 0.0;
        if !self.backend.probes.is_due(self.now) {
            return None;
        }
        let Some(index) = (0..self.len()).find(wanted) else {
            self.backend.probes.done(self.now);
            return None;
        };
        let place = self.take(index)?;
        self.members.policy.sent(self.wanted.ask, self.facts(index), self.now);
        Some(place)
    }

    /// A place at the endpoint that the policy picks.
    fn take_picked(&self, rng: &mut impl rand::Rng) -> Option<Place> {
        // Another request may take the place between looking and taking; then look again.
        while let Some(index) = self.members.policy.pick(self, rng) {
            if let Some(place) = self.take(index) {
                if self.taste != Taste::Rival {
                    self.members.policy.sent(self.wanted.ask, self.facts(index), self.now);
                }
                return Some(place);
            }
        }
        None
    }

    fn take(&self, index: usize) -> Option<Place> {
        let member = &self.members.list[index];
        let max = member.endpoint.limit(self.backend.settings.max_connections);
        // Without what of its prompt is cached there.
        let cost = self.members.policy.cost(self, index);
        member.take(cost, max, self.now, self.taste)
    }
}

impl Candidates for View<'_> {
    fn len(&self) -> usize {
        self.members.list.len()
    }

    fn facts(&self, i: usize) -> &Facts {
        &self.members.list[i].endpoint.facts
    }

    fn usable(&self, i: usize) -> bool {
        let member = &self.members.list[i];
        let endpoint = &member.endpoint;
        let max = endpoint.limit(self.backend.settings.max_connections);
        endpoint.is_ready()
            && self.wanted.allows(member)
            && max.is_none_or(|max| (endpoint.in_flight() as usize) < max)
            && member.suits(self.taste, self.now)
    }

    fn weight(&self, i: usize) -> f64 {
        let endpoint = &self.members.list[i].endpoint;
        let weight = f64::from(endpoint.weight());
        match &self.backend.settings.slow_start {
            Some(settings) => {
                weight * slow_start::share(settings, endpoint.readiness.age(self.now))
            }
            None => weight,
        }
    }

    fn distance(&self, i: usize) -> u64 {
        self.members.list[i].distance
    }

    fn ask(&self) -> &Ask {
        self.wanted.ask
    }

    fn now(&self) -> Instant {
        self.now
    }
}

/// What requests pass to get to this backend: what they passed before, if there was something.
fn gate(
    settings: &config::Backend,
    registry: &Registry,
    before: Option<&Backend>,
) -> Option<Arc<Gate>> {
    let (limit, queue) = (settings.limit.as_ref(), settings.queue.as_ref());
    if limit.is_none() && queue.is_none() {
        return None;
    }
    let metrics = || registry.metrics().gate(Scope::Backend, &settings.name);
    let known = before.and_then(|before| before.gate.clone());
    Some(known.unwrap_or_else(|| Gate::new(limit, queue, metrics())))
}

fn policy_kind(balance: &Balance) -> balance::Kind {
    use balance::Kind;
    match balance.policy {
        BalancePolicy::LeastLoad => Kind::LeastLoad,
        BalancePolicy::LeastConnection => Kind::LeastConnection,
        BalancePolicy::PowerOfTwo => Kind::PowerOfTwo,
        BalancePolicy::PeakEwma => Kind::PeakEwma,
        BalancePolicy::LeastTime => Kind::LeastTime,
        BalancePolicy::Prequal => Kind::Prequal,
        BalancePolicy::PrefixAffinity => Kind::PrefixAffinity,
        BalancePolicy::SessionAffinity => Kind::SessionAffinity,
        BalancePolicy::RoundRobin => Kind::RoundRobin,
        BalancePolicy::ConsistentHash => Kind::ConsistentHash {
            table: match balance.table {
                HashTable::Maglev => balance::Table::Maglev,
                HashTable::Ring => balance::Table::Ring,
            },
            bounded_load: balance.bounded_load,
        },
    }
}
