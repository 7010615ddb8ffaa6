//! The configuration in force, compiled: everything a request needs to know, resolved once and never changed.
//!
//! A request takes its snapshot when it arrives and keeps it to the end, so a reload in between can not change the
//! rules under it. What must outlive a reload is handed over from the snapshot before: backends and splits whose
//! settings did not change, retry budgets, and (in the [`Registry`]) every endpoint's state.

use std::sync::Arc;

use arc_swap::ArcSwap;
use outrigger_config::{
    Config,
    validated::{self as config, ErrorStyle, HedgeAfter, Sticky},
};

use crate::{
    admission::{gate::Gate, rules::Rule},
    answers::Store,
    canary::{self, Canary},
    clock,
    deadline::{self, Knowledge, Learner},
    endpoint::Registry,
    learning::Learning,
    outcome::ErrorFormat,
    phase::{answer::Shelf, batch::Batcher, bound::LoadLevels, hedge::Hedging, mirror::Mirror},
    retry::{self, Budget},
    split::{self, Schedule, ScheduleError},
    telemetry::metrics::{ArmMetrics, Metrics, RouteMetrics, Scope},
    upstream::Backend,
    wire::h1::parse::{HeadLimits, MAX_FIELDS},
};

/// A compiled configuration.
pub struct Snapshot {
    /// What it was compiled from.
    pub config: Config,
    /// Routes in the order in which they are tried.
    pub routes: Vec<Arc<Route>>,
    /// Every backend, in file order.
    pub backends: Vec<Arc<Backend>>,
    /// Stored answers, handed from one configuration to the next.
    pub answers: Arc<Store>,
    /// For requests that no route took.
    pub unrouted: Arc<ArmMetrics>,
    /// Fields of a JSON body that some route looks at.
    pub body_fields: Vec<String>,
    /// Counts compilations, from 1.
    pub generation: u64,
}

/// A route with everything it refers to.
pub struct Route {
    /// What the user wrote.
    pub settings: config::Route,
    /// Where its requests go.
    pub action: Action,
    /// Its series.
    pub metrics: Arc<RouteMetrics>,
    /// When another attempt is made.
    pub retry: Option<retry::Policy>,
    /// How much of the traffic may be retries and hedges.
    pub budget: Arc<Budget>,
    /// How fast its requests may come.
    pub rules: Vec<Arc<Rule>>,
    /// What its requests pass, where something limits them.
    pub gate: Option<Arc<Gate>>,
    /// When a second endpoint is asked while the first one has not begun to answer.
    pub hedging: Option<Arc<Hedging>>,
    /// What takes an arm out that does worse than another.
    pub canary: Option<Arc<Canary>>,
    /// Where copies of its requests go.
    pub mirror: Option<Arc<Mirror>>,
    /// Where its requests find mates to travel with.
    pub batcher: Option<Arc<Batcher>>,
    /// What changes under load.
    pub levels: Option<Arc<LoadLevels>>,
    /// Where its answers are stored.
    pub answers: Option<Shelf>,
}

/// What a route does.
pub enum Action {
    /// Sends to an endpoint of one of the arms.
    Split(Split),
    /// Answers by itself.
    Local(Arc<ArmMetrics>),
}

/// The arms of a route and how requests are dealt out to them.
pub struct Split {
    /// In file order.
    pub arms: Vec<Arm>,
    /// The place of the arm that has a guard.
    guarded: Option<usize>,
    /// By which weights; a canary's guard may put others in their place. Handed to the next configuration.
    dealing: Arc<ArcSwap<Dealing>>,
}

/// The weights in force.
struct Dealing {
    weights: Vec<u32>,
    schedule: Schedule,
    sticky: Keys,
}

/// The arms of keys.
enum Keys {
    /// Each its stretch of one space.
    Side(split::Sticky),
    /// Where one arm is guarded: it has its share of all keys, the others share the keys by weights of their own, so
    /// that a key of theirs never goes to another of them, whatever becomes of the guarded arm.
    Apart {
        guarded: usize,
        /// The others together, then the guarded arm.
        share: split::Sticky,
        others: split::Sticky,
    },
}

/// One arm.
pub struct Arm {
    /// Where its requests go.
    pub backend: Arc<Backend>,
    /// Its series.
    pub metrics: Arc<ArmMetrics>,
    /// What it has learned, where the route learns its deadlines.
    pub learning: Option<Arc<Learning>>,
}

impl Snapshot {
    /// Compiles `config`, taking over from `old` what did not change.
    ///
    /// # Errors
    /// Weights that make no schedule; validation refuses them before.
    pub fn compile(
        config: Config,
        old: Option<&Snapshot>,
        registry: &Arc<Registry>,
        metrics: &Metrics,
    ) -> Result<Self, ScheduleError> {
        let backends: Vec<_> =
            config.backends.iter().map(|settings| backend(settings, old, registry)).collect();
        let answers = answers(&config.answers, old, metrics);
        let routes = config
            .routes
            .iter()
            .map(|settings| Route::compile(settings, &backends, &answers, old, metrics))
            .map(|route| route.map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let body_fields = body_fields(&config);
        Ok(Snapshot {
            routes,
            backends,
            answers,
            unrouted: metrics.arm("-", "-"),
            body_fields,
            generation: old.map_or(1, |old| old.generation + 1),
            config,
        })
    }

    /// How large a request head may be.
    pub fn head_limits(&self) -> HeadLimits {
        let limits = &self.config.limits;
        let bytes = usize::try_from(limits.header_bytes).unwrap_or(usize::MAX).min(16 << 20);
        HeadLimits { bytes, fields: limits.headers.min(MAX_FIELDS) }
    }

    /// Puts the limits and queues of this configuration into force, and takes those of `old` away that it has no more:
    /// whoever waits there may go.
    pub fn open_gates(&self, old: &Snapshot, metrics: &Metrics) {
        for route in &self.routes {
            if let Some(gate) = &route.gate {
                gate.configure(route.settings.limit.as_ref(), route.settings.queue.as_ref());
            }
        }
        for backend in &self.backends {
            if let Some(gate) = &backend.gate {
                gate.configure(backend.settings.limit.as_ref(), backend.settings.queue.as_ref());
            }
        }
        let gone = |route: &&Arc<Route>| {
            self.route(&route.settings.name).is_none_or(|new| new.gate.is_none())
        };
        for route in old.routes.iter().filter(gone) {
            if let Some(gate) = &route.gate {
                gate.configure(None, None);
                metrics.forget_gate(Scope::Route, &route.settings.name);
            }
        }
        let new = |name: &str| self.backends.iter().find(|backend| *backend.name == *name);
        let gone =
            |backend: &&Arc<Backend>| new(&backend.name).is_none_or(|new| new.gate.is_none());
        for backend in old.backends.iter().filter(gone) {
            if let Some(gate) = &backend.gate {
                gate.configure(None, None);
                gate.endpoints_changed();
                metrics.forget_gate(Scope::Backend, &backend.name);
            }
        }
    }

    /// Endpoints that no backend of `new` has any more leave.
    pub fn dismiss_endpoints_not_in(&self, new: &Snapshot, registry: &Registry) {
        let now = clock::now();
        for backend in &self.backends {
            let successor = new.backends.iter().find(|b| b.name == backend.name);
            for member in &backend.members().list {
                let stays = |b: &Arc<Backend>| b.members().has(&member.endpoint);
                if !successor.is_some_and(stays) {
                    registry.leave(&member.endpoint, now);
                }
            }
        }
    }

    /// Guards of `old` that are not in force any more fall silent, and new ones say where they stand.
    pub fn guards_take_over(&self, old: Option<&Snapshot>) {
        let (before, now) = (old.map(Snapshot::canaries).unwrap_or_default(), self.canaries());
        let is_among = |canary: &Arc<Canary>, others: &[&Arc<Canary>]| {
            others.iter().any(|other| Arc::ptr_eq(canary, other))
        };
        before.iter().filter(|old| !is_among(old, &now)).for_each(|old| old.relieve());
        now.iter().filter(|new| !is_among(new, &before)).for_each(|new| new.take_over());
    }

    fn canaries(&self) -> Vec<&Arc<Canary>> {
        self.routes.iter().filter_map(|route| route.canary.as_ref()).collect()
    }

    fn route(&self, name: &str) -> Option<&Arc<Route>> {
        self.routes.iter().find(|route| route.settings.name == name)
    }
}

fn backend(
    settings: &config::Backend,
    old: Option<&Snapshot>,
    registry: &Arc<Registry>,
) -> Arc<Backend> {
    let before = old.and_then(|old| old.backends.iter().find(|b| *b.name == *settings.name));
    match before {
        Some(same) if same.settings == *settings => Arc::clone(same),
        before => {
            Arc::new(Backend::new(settings.clone(), Arc::clone(registry), before.map(|b| &**b)))
        }
    }
}

fn answers(
    settings: &config::AnswerStore,
    old: Option<&Snapshot>,
    metrics: &Metrics,
) -> Arc<Store> {
    let Some(old) = old else { return Arc::new(Store::new(settings, metrics)) };
    old.answers.adjust(settings, metrics);
    Arc::clone(&old.answers)
}

/// Every body field that a match, a split, a rewrite or a backend needs, each once.
fn body_fields(config: &Config) -> Vec<String> {
    let mut fields = Vec::new();
    for route in config.routes.iter().filter(|route| route.reads_body()) {
        fields.push("model".to_owned());
        fields.extend(route.key_fields.iter().cloned());
        if let Some(Sticky::Body(field)) = &route.sticky {
            fields.push(field.clone());
        }
    }
    fields.sort();
    fields.dedup();
    fields
}

impl Route {
    fn compile(
        settings: &config::Route,
        backends: &[Arc<Backend>],
        answers: &Arc<Store>,
        old: Option<&Snapshot>,
        metrics: &Metrics,
    ) -> Result<Self, ScheduleError> {
        let old = old.and_then(|old| old.route(&settings.name));
        let action = match &settings.action {
            config::Action::Split(arms) => {
                let same = |old: &&Arc<Route>| old.settings.guard == settings.guard;
                let before = old.filter(same).and_then(|old| old.split_of(arms));
                let known = learned(settings, arms, old, metrics);
                Action::Split(Split::compile(settings, arms, backends, before, known, metrics)?)
            }
            config::Action::Redirect(_) | config::Action::Respond(_) => {
                Action::Local(metrics.arm(&settings.name, "-"))
            }
        };
        let guard = settings.guard.as_ref();
        if let (None, Some(gone)) = (guard, old.and_then(|old| old.settings.guard.as_ref())) {
            metrics.forget_canary(&settings.name, &gone.arm_name);
        }
        let canary = guard.map(|guard| canary(guard, settings, old, metrics));
        let mirror = mirror(settings, backends, old, metrics);
        let batcher = batcher(settings, old, metrics);
        let levels = levels(settings, old, metrics);
        let answers = settings.answers.as_ref().map(|wanted| {
            let metrics = metrics.answers(&settings.name);
            Shelf::new(wanted, &settings.name, Arc::clone(answers), metrics)
        });
        let same_budget = |old: &&Arc<Route>| budget_of(&old.settings) == budget_of(settings);
        let budget = match old.filter(same_budget) {
            Some(old) => Arc::clone(&old.budget),
            None => Arc::new(new_budget(settings)),
        };
        let hedging = hedging(settings, old);
        let retry = settings.retry.as_ref().map(retry_policy);
        let rules = rules(settings, old, metrics);
        let gate = gate(settings, old, metrics);
        let metrics = metrics.route(&settings.name);
        let settings = settings.clone();
        Ok(Route {
            settings,
            action,
            metrics,
            retry,
            budget,
            rules,
            gate,
            hedging,
            canary,
            mirror,
            batcher,
            levels,
            answers,
        })
    }

    /// The split of this route, if it deals out by just these arms.
    fn split_of(&self, arms: &[config::Arm]) -> Option<&Split> {
        match (&self.action, &self.settings.action) {
            (Action::Split(split), config::Action::Split(own)) if own == arms => Some(split),
            _ => None,
        }
    }

    /// The shape of our own error bodies for a request to this path.
    pub fn error_format(&self, path: &str) -> ErrorFormat {
        match self.settings.errors {
            ErrorStyle::Openai => ErrorFormat::OpenAi,
            ErrorStyle::Problem => ErrorFormat::Problem,
            ErrorStyle::Auto => auto_error_format(path),
        }
    }
}

/// The shape of error bodies where no route says otherwise.
pub fn auto_error_format(path: &str) -> ErrorFormat {
    if path.starts_with("/v1/") { ErrorFormat::OpenAi } else { ErrorFormat::Problem }
}

impl Split {
    fn compile(
        route: &config::Route,
        arms: &[config::Arm],
        backends: &[Arc<Backend>],
        before: Option<&Split>,
        learned: Vec<Option<Arc<Learning>>>,
        metrics: &Metrics,
    ) -> Result<Self, ScheduleError> {
        let weights = canary::initial_weights(route.guard.as_ref(), arms);
        let guarded = route.guard.as_ref().map(|guard| guard.arm);
        let dealing = match before {
            Some(before) => Arc::clone(&before.dealing),
            None => Arc::new(ArcSwap::from_pointee(Dealing::new(weights, guarded)?)),
        };
        let arm = |(arm, learning): (&config::Arm, Option<Arc<Learning>>)| Arm {
            backend: Arc::clone(&backends[arm.backend]),
            metrics: metrics.arm(&route.name, &arm.name),
            learning,
        };
        Ok(Split { arms: arms.iter().zip(learned).map(arm).collect(), guarded, dealing })
    }

    /// The arm whose turn it is.
    pub fn next(&self) -> &Arm {
        &self.arms[self.dealing.load().schedule.next()]
    }

    /// The arm of `key`, the same each time.
    pub fn sticky(&self, key: &[u8]) -> &Arm {
        &self.arms[self.dealing.load().sticky.arm(key)]
    }

    /// The weights in force, one for each arm.
    pub fn weights(&self) -> Vec<u32> {
        self.dealing.load().weights.clone()
    }

    /// Deals by these weights from now on, one for each arm.
    ///
    /// # Errors
    /// Weights that make no schedule; the old ones stay.
    pub fn deal_by(&self, weights: Vec<u32>) -> Result<(), ScheduleError> {
        self.dealing.store(Arc::new(Dealing::new(weights, self.guarded)?));
        Ok(())
    }

    /// The arm of that name.
    pub fn named(&self, name: &[u8]) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.backend.name.as_bytes() == name)
    }
}

impl Dealing {
    fn new(weights: Vec<u32>, guarded: Option<usize>) -> Result<Self, ScheduleError> {
        let (schedule, sticky) = (Schedule::fitted(&weights)?, Keys::new(&weights, guarded)?);
        Ok(Dealing { weights, schedule, sticky })
    }
}

impl Keys {
    fn new(weights: &[u32], guarded: Option<usize>) -> Result<Self, ScheduleError> {
        let Some(guarded) = guarded else { return split::Sticky::new(weights).map(Keys::Side) };
        let mut others = weights.to_vec();
        let own = std::mem::take(&mut others[guarded]);
        let rest = others.iter().sum();
        match split::Sticky::new(&others) {
            Ok(others) => {
                Ok(Keys::Apart { guarded, share: split::Sticky::new(&[rest, own])?, others })
            }
            // Nothing but the guarded arm has a weight.
            Err(_) => split::Sticky::new(weights).map(Keys::Side),
        }
    }

    fn arm(&self, key: &[u8]) -> usize {
        match self {
            Keys::Side(sticky) => sticky.arm(key),
            Keys::Apart { guarded, share, others } => match share.arm_apart(key) {
                0 => others.arm(key),
                _ => *guarded,
            },
        }
    }
}

/// The guard of this route: the one at work if nothing about it and its split has changed, else a new one.
fn canary(
    guard: &config::Guard,
    route: &config::Route,
    old: Option<&Arc<Route>>,
    metrics: &Metrics,
) -> Arc<Canary> {
    let same = |old: &&Arc<Route>| {
        (&old.settings.guard, &old.settings.action) == (&route.guard, &route.action)
    };
    let old = old.filter(same).and_then(|old| old.canary.as_ref());
    old.map_or_else(
        || Arc::new(Canary::new(guard, route, metrics.canary(&route.name, &guard.arm_name))),
        Arc::clone,
    )
}

/// How this route hedges: with what was saved up so far, if nothing about it has changed.
fn hedging(route: &config::Route, old: Option<&Arc<Route>>) -> Option<Arc<Hedging>> {
    let (hedge, retry) = (route.hedge.as_ref()?, route.retry.as_ref()?);
    let same = |old: &&Arc<Route>| {
        let attempts = old.settings.retry.as_ref().map(|retry| retry.attempts);
        old.settings.hedge == route.hedge && attempts == Some(retry.attempts)
    };
    let old = old.filter(same).and_then(|old| old.hedging.as_ref());
    Some(old.map_or_else(|| Arc::new(Hedging::new(hedge, retry)), Arc::clone))
}

/// What each arm has learned of how long things take: what it knew before, if that is learned as it was, else nothing but
/// what the route knew.
fn learned(
    route: &config::Route,
    arms: &[config::Arm],
    old: Option<&Arc<Route>>,
    metrics: &Metrics,
) -> Vec<Option<Arc<Learning>>> {
    let hedges = route.hedge.as_ref().map(|hedge| hedge.after);
    if !route.deadline.is_learned() && !matches!(hedges, Some(HedgeAfter::Percentile(_))) {
        return vec![None; arms.len()];
    }
    let adaptive = |bound: &config::Bound| bound.adaptive().cloned();
    let settings = deadline::Settings {
        connect: adaptive(&route.deadline.connect),
        first_byte: adaptive(&route.deadline.first_byte),
        gap: adaptive(&route.deadline.gap),
    };
    let before: &[Arm] = match old.map(|old| &old.action) {
        Some(Action::Split(split)) => &split.arms,
        Some(Action::Local(_)) | None => &[],
    };
    let before: Vec<_> = before
        .iter()
        .filter_map(|arm| Some((&arm.backend.name, arm.learning.as_ref()?)))
        .filter(|(_, learning)| *learning.learner.settings() == settings)
        .collect();
    let of_route = before.iter().find_map(|(_, learning)| learning.learner.route());
    let of_route =
        (arms.len() > 1).then(|| of_route.unwrap_or_else(|| Arc::new(Knowledge::new(&settings))));
    let of_arm = |arm: &config::Arm| {
        let same = before.iter().find(|(name, _)| ***name == *arm.name);
        let same =
            same.filter(|(_, learning)| learning.learner.route().is_some() == of_route.is_some());
        let new = || {
            let learner = Learner::new(settings.clone(), of_route.clone());
            Arc::new(Learning { learner, metrics: metrics.deadlines(&route.name, &arm.name) })
        };
        Some(same.map_or_else(new, |(_, learning)| Arc::clone(learning)))
    };
    arms.iter().map(of_arm).collect()
}

/// Where copies of a route's requests go, by the mirror at work if it is the same.
fn mirror(
    route: &config::Route,
    backends: &[Arc<Backend>],
    old: Option<&Arc<Route>>,
    metrics: &Metrics,
) -> Option<Arc<Mirror>> {
    let mirror = route.mirror.as_ref()?;
    let backend = &backends[mirror.backend];
    let same = old.and_then(|old| old.mirror.as_ref()).filter(|m| m.is_same(mirror, backend));
    let metrics = || metrics.mirror(&route.name, &mirror.name);
    let new = || Arc::new(Mirror::new(mirror.clone(), Arc::clone(backend), metrics()));
    Some(same.map_or_else(new, Arc::clone))
}

fn batcher(
    route: &config::Route,
    old: Option<&Arc<Route>>,
    metrics: &Metrics,
) -> Option<Arc<Batcher>> {
    let batch = route.batch.as_ref()?;
    let same = old.filter(|old| old.settings.batch == route.batch);
    let new = || Arc::new(Batcher::new(batch, metrics.batches(&route.name)));
    Some(same.and_then(|old| old.batcher.clone()).unwrap_or_else(new))
}

fn levels(
    route: &config::Route,
    old: Option<&Arc<Route>>,
    metrics: &Metrics,
) -> Option<Arc<LoadLevels>> {
    let Some(levels) = &route.levels else {
        if old.is_some_and(|old| old.levels.is_some()) {
            metrics.forget_levels(&route.name);
        }
        return None;
    };
    let same = old.filter(|old| old.settings.levels.as_ref() == Some(levels));
    let new = || Arc::new(LoadLevels::new(levels, metrics.levels(&route.name)));
    Some(same.and_then(|old| old.levels.clone()).unwrap_or_else(new))
}

/// What lets requests into a route: the gate at work, whatever its settings were.
fn gate(route: &config::Route, old: Option<&Arc<Route>>, metrics: &Metrics) -> Option<Arc<Gate>> {
    let limit = route.limit.as_ref()?;
    let series = || metrics.gate(Scope::Route, &route.name);
    let new = || Gate::new(Some(limit), route.queue.as_ref(), series());
    Some(old.and_then(|old| old.gate.clone()).unwrap_or_else(new))
}

/// The rules of a route: a rule that was there before goes on, another begins with full allowances.
fn rules(settings: &config::Route, old: Option<&Arc<Route>>, metrics: &Metrics) -> Vec<Arc<Rule>> {
    let mut known: Vec<_> = old.map_or_else(Vec::new, |old| old.rules.clone());
    let rule = |rate: &config::RateLimit| {
        let same = known.iter().position(|rule| rule.settings == *rate);
        let new = || Arc::new(Rule::new(rate.clone(), metrics.rates(&settings.name, rate.per)));
        same.map_or_else(new, |index| known.swap_remove(index))
    };
    settings.rates.iter().map(rule).collect()
}

fn budget_of(route: &config::Route) -> Option<config::RetryBudget> {
    route.retry.as_ref().map(|retry| retry.budget)
}

fn new_budget(route: &config::Route) -> Budget {
    let (percent, min) = budget_of(route).map_or((0, 0), |b| (b.percent, b.min_per_second));
    Budget::new(percent, min, clock::now())
}

fn retry_policy(retry: &config::Retry) -> retry::Policy {
    retry::Policy {
        attempts: retry.attempts,
        on: retry.when,
        backoff: retry.backoff,
        max_backoff: retry.max_backoff,
        max_retry_after: retry.max_retry_after,
    }
}
