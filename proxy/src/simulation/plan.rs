//! One scenario: a configuration, a fleet, what goes wrong with it, and who asks for what.

use std::{fmt::Write, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    client::{CLASSES, Wish},
    engine::{Mode, Prices},
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Faults begin after this.
const CALM: Duration = Duration::from_secs(3);
/// And have ended by then.
pub(crate) const FAULTS_END: Duration = Duration::from_secs(9);
/// From here to the end everything has to be well again. Twelve seconds: the longest ejection and the longest breaker one
/// after the other, jitter included, and a few rounds of a limit that adapts.
pub(crate) const WELL_FROM: Duration = Duration::from_secs(21);
/// The last client asks.
pub(crate) const END: Duration = Duration::from_secs(24);

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) engine: usize,
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    pub(crate) mode: Mode,
}

/// What is set where it can be set; what the checks need to know of the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) route_limit: Option<u64>,
    pub(crate) backend_limit: Option<u64>,
    pub(crate) route_queue: Option<usize>,
    pub(crate) backend_queue: Option<usize>,
    pub(crate) adaptive: bool,
    pub(crate) max_connections: Option<usize>,
    pub(crate) max_share: Option<f64>,
    pub(crate) breaker: bool,
    pub(crate) attempts: u32,
    pub(crate) percent: u64,
    pub(crate) reserve: u64,
    pub(crate) hedge_share: Option<f64>,
    /// Requests for each second, and how many at once.
    pub(crate) rate: Option<(u64, u64)>,
    pub(crate) levels: bool,
    pub(crate) priority: bool,
    pub(crate) compares_latency: bool,
    /// Nothing ever goes wrong with the engines.
    pub(crate) calm: bool,
    /// From when on everything has to be well.
    pub(crate) well_from: Option<Duration>,
    /// Floor and ceiling of the deadline for the first byte.
    pub(crate) first_byte: (Duration, Duration),
    pub(crate) total: Duration,
}

impl Rules {
    /// How many requests may be worked on at once, where engines have so many slots.
    fn places(&self, engines: usize, slots: usize) -> usize {
        let limits = [self.route_limit, self.backend_limit].into_iter().flatten();
        let limit = limits.min().map_or(usize::MAX, |limit| limit as usize);
        let most = self.max_connections.map_or(usize::MAX, |most| most * engines);
        slots.min(limit).min(most)
    }

    /// Whether a request may have to go although there is no fault.
    pub(crate) fn has_limits(&self) -> bool {
        let fixed = self.route_limit.or(self.backend_limit).is_some();
        fixed || self.adaptive || self.max_connections.is_some()
    }

    /// Whether nothing turns requests away.
    pub(crate) fn is_free(&self) -> bool {
        !self.has_limits() && self.rate.is_none() && !self.levels
    }

    /// Whether only a limit that adapts does.
    pub(crate) fn only_adapts(&self) -> bool {
        let fixed = self.route_limit.or(self.backend_limit).is_some();
        self.adaptive
            && !fixed
            && self.max_connections.is_none()
            && self.rate.is_none()
            && !self.levels
    }

    /// Whether deadlines are learned.
    pub(crate) fn learns(&self) -> bool {
        self.first_byte.0 < self.first_byte.1
    }
}

/// A scenario.
pub(crate) struct Plan {
    pub(crate) yaml: String,
    pub(crate) rules: Rules,
    pub(crate) engines: usize,
    pub(crate) slots: usize,
    pub(crate) prices: Prices,
    pub(crate) faults: Vec<Fault>,
    pub(crate) wishes: Vec<Wish>,
}

impl Plan {
    /// The scenario of this seed.
    pub(crate) fn draw(seed: u64) -> Self {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let (engines, slots) = (rng.random_range(1..=4), rng.random_range(2..=4));
        let prices = Prices {
            base: MILLI * rng.random_range(20..=120),
            byte: Duration::from_micros(rng.random_range(20..=150)),
            piece: MILLI * rng.random_range(10..=60),
            connect: MILLI * rng.random_range(1..=3),
        };
        let (yaml, mut rules) = configuration(engines, rng);
        let faults = faults(engines, rng);
        (rules.calm, rules.well_from) = (faults.is_empty(), Some(WELL_FROM));
        let places = rules.places(engines, engines * slots);
        let wishes = wishes(places, &prices, rng);
        Plan { yaml, rules, engines, slots, prices, faults, wishes }
    }
}

fn chance(rng: &mut SmallRng, share: f64) -> bool {
    rng.random_bool(share)
}

fn one_of<T: Copy>(all: &[T], rng: &mut SmallRng) -> T {
    all[rng.random_range(0..all.len())]
}

fn configuration(engines: usize, rng: &mut SmallRng) -> (String, Rules) {
    let mut rules = Rules { attempts: 1, ..Rules::default() };
    let mut yaml = "access_log: { format: off }\nbackends:\n  fleet:\n    endpoints: [".to_owned();
    for index in 1..=engines {
        let _ = write!(yaml, "\"10.0.0.{index}:8000\",");
    }
    yaml += "]\n";
    backend(&mut yaml, &mut rules, rng);
    yaml += "routes:\n  - name: chat\n    backend: fleet\n";
    let queue = limit(&mut yaml, "    ", 0.4, &mut rules.adaptive, &mut rules.route_limit, rng);
    if queue {
        rules.route_queue = Some(waiting(&mut yaml, "    ", rng));
    }
    if chance(rng, 0.7) {
        rules.priority = true;
        let classes = CLASSES.join(", ");
        let _ = writeln!(yaml, "    priority: {{ header: x-priority, classes: [{classes}] }}");
    }
    deadlines(&mut yaml, &mut rules, rng);
    retries(&mut yaml, &mut rules, rng);
    if chance(rng, 0.2) {
        let (rate, burst) = (rng.random_range(5..=40), rng.random_range(1..=20));
        let _ = writeln!(yaml, "    rates: [{{ requests: {rate}/s, burst: {burst} }}]");
        rules.rate = Some((rate, burst));
    }
    if chance(rng, 0.2) {
        rules.levels = true;
        let from = rng.random_range(5..=60);
        let by = one_of(&["requests_per_second", "in_flight"], rng);
        let action = one_of(&["shed", "normal", "only_stored"], rng);
        let _ = writeln!(
            yaml,
            "    levels:\n      by: {by}\n      hold: 1s\n      table: [{{ from: {from}, scale: 2 }}, \
             {{ from: {}, action: {action} }}]",
            2 * from
        );
    }
    (yaml, rules)
}

fn backend(yaml: &mut String, rules: &mut Rules, rng: &mut SmallRng) {
    const POLICIES: [&str; 7] = [
        "least_load",
        "least_connection",
        "power_of_two",
        "peak_ewma",
        "least_time",
        "prequal",
        "round_robin",
    ];
    let _ = writeln!(yaml, "    balance: {}", one_of(&POLICIES, rng));
    if chance(rng, 0.4) {
        let max = rng.random_range(2..=8);
        rules.max_connections = Some(max);
        let _ = writeln!(yaml, "    max_connections: {max}");
    }
    let queue = limit(yaml, "    ", 0.5, &mut rules.adaptive, &mut rules.backend_limit, rng);
    if queue || (rules.max_connections.is_some() && chance(rng, 0.7)) {
        rules.backend_queue = Some(waiting(yaml, "    ", rng));
    }
    if chance(rng, 0.3) {
        *yaml += "    slow_start: 2s\n";
    }
    if chance(rng, 0.75) {
        ejection(yaml, rules, rng);
    } else {
        *yaml += "    ejection: off\n";
    }
    if chance(rng, 0.5) {
        rules.breaker = true;
        let (failures, attempts) = (rng.random_range(20..=90), rng.random_range(3..=20));
        let _ = writeln!(
            yaml,
            "    breaker: {{ failures: {failures}%, attempts: {attempts}, window: 3s, base: 500ms, max: 2s }}"
        );
    }
}

fn ejection(yaml: &mut String, rules: &mut Rules, rng: &mut SmallRng) {
    let share = one_of(&[10, 34, 50, 100], rng);
    rules.max_share = Some(f64::from(share) / 100.0);
    let failures = rng.random_range(1..=5);
    let rate = one_of(&["off", "{ window: 5s, requests: 10 }"], rng);
    let latency = one_of(&["off", "{ window: 5s, requests: 10, factor: 4 }"], rng);
    rules.compares_latency = latency != "off";
    let stall = one_of(&["off", "{ gaps: 20, floor: 1s }"], rng);
    let _ = writeln!(
        yaml,
        "    ejection: {{ failures: {failures}, base: 500ms, max: 2s, max_share: {share}%, \
         success_rate: {rate}, latency: {latency}, stall: {stall} }}"
    );
}

/// Whether it may be waited for, too.
fn limit(
    yaml: &mut String,
    indent: &str,
    share: f64,
    adaptive: &mut bool,
    fixed: &mut Option<u64>,
    rng: &mut SmallRng,
) -> bool {
    if !chance(rng, share) {
        return false;
    }
    if chance(rng, 0.5) {
        let most = rng.random_range(2..=24);
        *fixed = Some(most);
        let _ = writeln!(yaml, "{indent}limit: {most}");
    } else {
        *adaptive = true;
        let algorithm = one_of(&["gradient", "vegas"], rng);
        let (min, initial) = (rng.random_range(1..=4), rng.random_range(4..=16));
        let _ = writeln!(
            yaml,
            "{indent}limit: {{ adaptive: {{ algorithm: {algorithm}, min: {min}, max: 64, initial: {initial} }} }}"
        );
    }
    chance(rng, 0.7)
}

fn waiting(yaml: &mut String, indent: &str, rng: &mut SmallRng) -> usize {
    let size = rng.random_range(1..=32);
    let (wait, target) = (rng.random_range(500..=4_000), rng.random_range(50..=400));
    let _ = writeln!(yaml, "{indent}queue: {{ size: {size}, wait: {wait}ms, target: {target}ms }}");
    size
}

fn deadlines(yaml: &mut String, rules: &mut Rules, rng: &mut SmallRng) {
    let total = rng.random_range(4_000..=10_000);
    rules.total = MILLI * total;
    let ceiling = rng.random_range(1_500..=4_000);
    let first_byte = if chance(rng, 0.7) {
        let floor = rng.random_range(20..=500);
        rules.first_byte = (MILLI * floor, MILLI * ceiling);
        let strategy = one_of(&["quantile", "mean_stddev", "rto"], rng);
        let explore = one_of(&["1%", "5%"], rng);
        format!(
            "{{ strategy: {strategy}, floor: {floor}ms, ceiling: {ceiling}ms, explore: {explore} }}"
        )
    } else {
        rules.first_byte = (MILLI * ceiling, MILLI * ceiling);
        format!("{ceiling}ms")
    };
    let gap = one_of(&["adaptive", "1500ms", "3s"], rng);
    let connect = one_of(&["300ms", "1s"], rng);
    let _ = writeln!(
        yaml,
        "    deadline: {{ connect: {connect}, first_byte: {first_byte}, gap: {gap}, total: {total}ms }}"
    );
}

fn retries(yaml: &mut String, rules: &mut Rules, rng: &mut SmallRng) {
    if !chance(rng, 0.8) {
        *yaml += "    retry: off\n";
        return;
    }
    rules.attempts = rng.random_range(1..=4);
    (rules.percent, rules.reserve) = (rng.random_range(0..=50), rng.random_range(0..=3));
    let on = one_of(
        &[
            "[connect, refused, reset, overloaded, stalled]",
            "[connect, refused, reset, overloaded, stalled, first_byte, server_error]",
        ],
        rng,
    );
    let _ = writeln!(
        yaml,
        "    retry: {{ attempts: {}, when: {on}, budget: {{ percent: {}, min_per_second: {} }} }}",
        rules.attempts, rules.percent, rules.reserve
    );
    if rules.attempts > 1 && chance(rng, 0.6) {
        let share = rng.random_range(5..=40);
        rules.hedge_share = Some(f64::from(share) / 100.0);
        let after = one_of(&["p95", "p50", "100ms", "400ms"], rng);
        let max = rng.random_range(1..=2);
        let _ = writeln!(yaml, "    hedge: {{ after: {after}, budget: {share}%, max: {max} }}");
    }
}

fn faults(engines: usize, rng: &mut SmallRng) -> Vec<Fault> {
    const MODES: [Mode; 8] = [
        Mode::Slow(5.0),
        Mode::Slow(20.0),
        Mode::Hung,
        Mode::Crashed,
        Mode::Dark,
        Mode::Says(500),
        Mode::Says(503),
        Mode::Breaks,
    ];
    let mut faults = Vec::new();
    if chance(rng, 0.15) {
        return faults;
    }
    let mut from = CALM;
    while from < FAULTS_END {
        let until = (from + SECOND.mul_f64(rng.random_range(0.3..4.0))).min(FAULTS_END);
        let (mode, all) = (one_of(&MODES, rng), chance(rng, 0.3));
        let only = rng.random_range(0..engines);
        for engine in (0..engines).filter(|engine| all || *engine == only) {
            faults.push(Fault { engine, from, until, mode });
        }
        from = until + SECOND.mul_f64(rng.random_range(0.0..2.0));
    }
    faults
}

fn wishes(slots: usize, prices: &Prices, rng: &mut SmallRng) -> Vec<Wish> {
    let typical = prices.base + prices.byte * 600 + prices.piece * 5;
    let capacity = slots as f64 / typical.as_secs_f64();
    let usual = capacity.min(16.0) * rng.random_range(0.15..0.45);
    let crowd = one_of(&[1.0, 1.0, 2.0, 4.0], rng);
    let (bursts, impatient) = (one_of(&[0.0, 0.05, 0.2], rng), one_of(&[0.0, 0.1, 0.4], rng));
    let mut wishes = Vec::new();
    let mut at = Duration::ZERO;
    while at < END {
        let busy = (CALM..FAULTS_END).contains(&at);
        let together = if busy && chance(rng, bursts) { rng.random_range(2..=10) } else { 1 };
        wishes.extend((0..together).map(|_| wish(at, impatient, rng)));
        let rate = if busy { usual * crowd } else { usual };
        let wait = -f64::ln(1.0 - rng.random_range(0.0..1.0)) * f64::from(together) / rate;
        at += Duration::from_secs_f64(wait.min(2.0));
    }
    wishes
}

fn wish(at: Duration, impatient: f64, rng: &mut SmallRng) -> Wish {
    let prompt = one_of(&[200, 200, 400, 800, 1_600], rng);
    let soon = |rng: &mut SmallRng| MILLI * rng.random_range(0..2_000);
    Wish {
        at,
        class: rng.random_range(0..CLASSES.len()),
        prompt,
        pieces: rng.random_range(1..=8),
        streams: chance(rng, 0.7),
        budget: chance(rng, impatient).then(|| soon(rng)),
        leaves: chance(rng, impatient / 2.0).then(|| soon(rng)),
    }
}
