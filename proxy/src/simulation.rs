//! The whole path of a request against modelled clients and engines, in virtual time.
//!
//! Why: each decision has a simulation of its own, and what goes wrong between them is seen by none of those: a limit
//! that is never given back after a lost race, a breaker that a client's own short budget opens, a queue that nobody
//! wakes. Here nothing of the proxy is modelled. Requests go through [`gateway::serve`](crate::gateway::serve), answers
//! come over pipes in the place of sockets ([`network`]), and time is tokio's, paused: it jumps to the next timer when
//! nothing is left to do.
//!
//! A seed is a scenario ([`plan`]): a configuration with any of the features on or off, a fleet of engines ([`engine`])
//! that become slow, hang, crash, refuse or break off, and clients ([`client`]) that come one by one or in crowds, with
//! little time or patience. What must hold on every seed stands in [`world`]. A seed that fails is printed with what
//! happened last and how to run it alone.
//!
//! `OUTRIGGER_SEEDS` says how many seeds are run (else [`SEEDS`]), `OUTRIGGER_SEED` runs one.
//!
//! Left out: bodies that come in pieces, HTTP/2, stored answers, batches, reloads.

mod client;
mod engine;
pub(crate) mod network;
mod plan;
mod stories;
mod world;

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use tokio::{runtime::Builder, task::JoinSet, time::sleep_until};

use crate::{app, chance, outcome::Outcome, supervise};
use engine::Engine;
use plan::{Plan, Rules};
use world::World;

/// Scenarios in the ordinary run of the tests.
const SEEDS: u64 = 3_000;
/// How often the proxy is looked at from outside.
const LOOK: Duration = Duration::from_millis(97);

/// What happened in all scenarios together.
#[derive(Debug, Default)]
struct Totals {
    outcomes: BTreeMap<&'static str, usize>,
    requests: usize,
    attempts: usize,
    hedges: usize,
    hedges_won: usize,
    retried: usize,
    queued: usize,
    ejections: usize,
    openings: usize,
    /// Of each class: how many had to wait, where classes are told apart, and were served.
    waited: [(usize, usize); client::CLASSES.len()],
    /// In the time in which all is well again: of those that have all the time they want, and how they ended.
    last: BTreeMap<&'static str, usize>,
    /// Of them, how many were served and how many there were: where nothing limits them, and where a limit adapts.
    last_free: (usize, usize),
    last_adaptive: (usize, usize),
}

impl Totals {
    fn add(&mut self, world: &World, rules: &Rules) {
        world.with_requests(|requests| {
            for seen in requests {
                let outcome = seen.ended.map_or("none", |(_, outcome)| outcome.as_str());
                *self.outcomes.entry(outcome).or_default() += 1;
                self.requests += 1;
                if seen.queued && rules.priority {
                    let (served, all) = &mut self.waited[seen.wish.class];
                    *served += usize::from(matches!(seen.ended, Some((_, Outcome::Ok))));
                    *all += 1;
                }
                self.hedges += seen.hedges as usize;
                self.hedges_won += usize::from(seen.hedge_won);
                self.retried += usize::from(seen.attempts > seen.hedges + 1);
                let patient = seen.wish.budget.is_none() && seen.wish.leaves.is_none();
                if seen.wish.at >= plan::WELL_FROM && patient {
                    *self.last.entry(outcome).or_default() += 1;
                    let served = usize::from(outcome == Outcome::Ok.as_str());
                    for (wanted, (ok, all)) in [rules.is_free(), rules.only_adapts()]
                        .into_iter()
                        .zip([&mut self.last_free, &mut self.last_adaptive])
                    {
                        (*ok, *all) =
                            (*ok + served * usize::from(wanted), *all + usize::from(wanted));
                    }
                }
            }
        });
        let (attempts, ejections, openings, queued) = world.counts();
        self.attempts += attempts;
        self.ejections += ejections;
        self.openings += openings;
        self.queued += queued;
    }
}

impl Totals {
    /// Without having met with all of this the scenarios would prove nothing.
    fn check(&self) {
        for outcome in [
            Outcome::Ok,
            Outcome::ServerError,
            Outcome::ClientGone,
            Outcome::CircuitOpen,
            Outcome::Overloaded,
            Outcome::QueueFull,
            Outcome::QueueTimeout,
            Outcome::Shed,
            Outcome::RateLimited,
            Outcome::ConnectFailed,
            Outcome::ConnectTimeout,
            Outcome::FirstByteTimeout,
            Outcome::GapTimeout,
            Outcome::TotalTimeout,
            Outcome::Stalled,
            Outcome::UpstreamReset,
        ] {
            let count = self.outcomes.get(outcome.as_str()).copied().unwrap_or(0);
            assert!(count >= 10, "{}: {count}", outcome.as_str());
        }
        let rare = [self.hedges, self.hedges_won, self.retried, self.queued, self.ejections];
        assert!(rare.into_iter().chain([self.openings]).all(|count| count >= 50), "{self:?}");
        let share = |class: usize| self.waited[class].0 as f64 / self.waited[class].1 as f64;
        assert!(
            share(0) > share(1) && share(1) > share(2),
            "the higher class goes first: {self:?}"
        );
        let share_of = |(ok, all): (usize, usize)| ok as f64 / all as f64;
        assert!(share_of(self.last_free) > 0.98, "all is well again: {self:?}");
        assert!(share_of(self.last_adaptive) > 0.97, "limits have recovered: {self:?}");
        assert!(share(2) > 0.2, "no class starves: {self:?}");
    }
}

/// Runs one scenario to its end.
fn run(seed: u64, totals: &mut Totals) {
    let plan = Plan::draw(seed);
    let world = run_plan(seed, &plan);
    world.fail_if_broken(seed, &plan.yaml);
    totals.add(&world, &plan.rules);
    if std::env::var_os("OUTRIGGER_SEED").is_some() {
        println!("{}\n{}", plan.yaml, world.trace());
    }
}

fn run_plan(seed: u64, plan: &Plan) -> Arc<World> {
    chance::simulated::seed(Some(seed));
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let world = runtime.block_on(live(plan));
    drop(runtime);
    chance::simulated::seed(None);
    world
}

async fn live(plan: &Plan) -> Arc<World> {
    let world = World::new(plan.rules.clone(), &plan.wishes);
    let engine = |index| Engine::new(index, plan.slots, plan.prices, &world);
    let engines: Vec<_> = (0..plan.engines).map(engine).collect();
    network::consists_of(&engines);
    let config = outrigger_config::parse(&plan.yaml, "plan")
        .unwrap_or_else(|report| panic!("{report}\n{}", plan.yaml));
    let proxy = Arc::new(app::assemble(config).unwrap());
    world.watches(&proxy);
    let supervision = tokio::spawn(supervise::run(Arc::clone(&proxy)));
    let start = tokio::time::Instant::now();
    let mut clients = JoinSet::new();
    for (id, wish) in plan.wishes.iter().cloned().enumerate() {
        let (proxy, world) = (Arc::clone(&proxy), Arc::clone(&world));
        clients.spawn(async move {
            sleep_until(start + wish.at).await;
            client::ask(proxy, world, id, wish).await;
        });
    }
    let watching = tokio::spawn({
        let world = Arc::clone(&world);
        async move {
            loop {
                tokio::time::sleep(LOOK).await;
                world.look().await;
            }
        }
    });
    let happening = faults(plan, &engines, &world);
    happening.await;
    while clients.join_next().await.is_some_and(|ended| ended.is_ok()) {}
    // Engines see closed connections when it is their turn.
    tokio::time::sleep(Duration::from_millis(10)).await;
    supervision.abort();
    watching.abort();
    world.check_end();
    network::consists_of(&[]);
    world
}

/// Lets what is planned happen to the engines.
async fn faults(plan: &Plan, engines: &[Arc<Engine>], world: &World) {
    let start = tokio::time::Instant::now();
    let begin = plan.faults.iter().map(|fault| (fault.from, fault.engine, fault.mode));
    let end = plan.faults.iter().map(|fault| (fault.until, fault.engine, engine::Mode::Well));
    let mut all: Vec<_> = end.chain(begin).collect();
    all.sort_by_key(|(at, ..)| *at);
    for (at, engine, mode) in all {
        sleep_until(start + at).await;
        world.note(format!("engine {engine} is {mode:?} from now on"));
        engines[engine].become_(mode);
    }
}

fn seeds() -> Range<u64> {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    match number("OUTRIGGER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OUTRIGGER_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn scenarios() {
    let (mut totals, seeds) = (Totals::default(), seeds());
    for seed in seeds.clone() {
        run(seed, &mut totals);
    }
    println!("{totals:?}");
    if seeds.end - seeds.start >= SEEDS {
        totals.check();
    }
}
