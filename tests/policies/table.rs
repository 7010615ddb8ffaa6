//! Every policy in every world, side by side.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use outrigger::balance::{Kind, Table};

use crate::fleet::run;
use crate::measure::Figures;
use crate::worlds::World;

/// The policies, under the names that a configuration gives them; the default comes first.
pub(crate) const POLICIES: &[(&str, Kind)] = &[
    ("least_load", Kind::LeastLoad),
    ("least_connection", Kind::LeastConnection),
    ("power_of_two", Kind::PowerOfTwo),
    ("peak_ewma", Kind::PeakEwma),
    ("least_time", Kind::LeastTime),
    ("prequal", Kind::Prequal),
    ("consistent_hash", Kind::ConsistentHash { table: Table::Maglev, bounded_load: Some(1.25) }),
    ("prefix_affinity", Kind::PrefixAffinity),
    ("session_affinity", Kind::SessionAffinity),
    ("round_robin", Kind::RoundRobin),
];

/// What came out: the mean over some seeds, by world and policy.
#[derive(Debug)]
pub(crate) struct Grid {
    worlds: Vec<World>,
    /// As many for each world as there are policies.
    figures: Vec<Figures>,
}

impl Grid {
    /// Runs all of it, on every core.
    pub(crate) fn run(worlds: Vec<World>, seeds: &[u64]) -> Self {
        let cells = worlds.len() * POLICIES.len();
        let runs = spread(cells * seeds.len(), |k| {
            let (cell, seed) = (k / seeds.len(), seeds[k % seeds.len()]);
            run(&worlds[cell / POLICIES.len()], POLICIES[cell % POLICIES.len()].1, seed)
        });
        let figures = runs.chunks(seeds.len()).map(Figures::mean).collect();
        Self { worlds, figures }
    }

    /// The worlds.
    pub(crate) fn worlds(&self) -> impl Iterator<Item = &str> {
        self.worlds.iter().map(|world| world.name)
    }

    /// What this policy came to in this world.
    pub(crate) fn of(&self, world: &str, policy: &str) -> Figures {
        let row = self.worlds.iter().position(|known| known.name == world).expect("a world");
        let column = POLICIES.iter().position(|(name, _)| *name == policy).expect("a policy");
        self.figures[row * POLICIES.len() + column]
    }

    /// The best of a figure in a world.
    pub(crate) fn best(&self, world: &str, figure: &Figure) -> f64 {
        let all = POLICIES.iter().map(|(policy, _)| (figure.of)(&self.of(world, policy)));
        all.fold(f64::NAN, if figure.more_is_better { f64::max } else { f64::min })
    }

    /// The worlds and all figures as tables in Markdown, aligned for those who read it as it is.
    pub(crate) fn markdown(&self) -> String {
        let figures = FIGURES.iter().map(|figure| self.table(figure));
        let tables: Vec<_> = std::iter::once(self.parameters()).chain(figures).collect();
        tables.join("\n")
    }

    fn parameters(&self) -> String {
        let head = ["", "endpoints", "proxies", "requests/s", "busy", "first byte", "gap"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.worlds.iter().map(|world| {
            let busy = self.of(world.name, POLICIES[0].0).utilization;
            vec![
                world.name.to_owned(),
                world.endpoints.to_string(),
                world.balancers.to_string(),
                world.rate.to_string(),
                format!("{:.0} %", 100.0 * busy),
                format!("{} ms", world.first_byte.as_millis()),
                format!("{} ms", world.gap.as_millis()),
            ]
        }));
        align(&rows)
    }

    /// Without the worlds in which there is nothing to tell.
    fn table(&self, figure: &Figure) -> String {
        let worlds: Vec<_> = self.worlds().filter(|world| self.best(world, figure) > 0.0).collect();
        let names = worlds.iter().map(|world| (*world).to_owned());
        let mut rows = vec![std::iter::once(String::new()).chain(names).collect()];
        rows.extend(POLICIES.iter().map(|(policy, _)| self.row(policy, &worlds, figure)));
        format!("{}\n\n{}", figure.title, align(&rows))
    }

    /// The best of each world is in bold.
    fn row(&self, policy: &str, worlds: &[&str], figure: &Figure) -> Vec<String> {
        let cell = |world: &&str| {
            let text = figure.text((figure.of)(&self.of(world, policy)));
            let is_best = text == figure.text(self.best(world, figure));
            if is_best { format!("**{text}**") } else { text }
        };
        std::iter::once(format!("`{policy}`")).chain(worlds.iter().map(cell)).collect()
    }
}

/// One thing that is told of every run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    title: &'static str,
    pub(crate) of: fn(&Figures) -> f64,
    digits: usize,
    pub(crate) more_is_better: bool,
}

impl Figure {
    /// At least two digits.
    fn text(&self, value: f64) -> String {
        let digits = if (1.0..10.0).contains(&value) { self.digits.max(1) } else { self.digits };
        format!("{value:.digits$}")
    }
}

/// First byte, 99th percentile.
pub(crate) const P99: Figure = Figure {
    title: "99 % of first bytes within, ms:",
    of: |figures| figures.p99,
    digits: 0,
    more_is_better: false,
};

/// Good answers per second.
pub(crate) const GOODPUT: Figure = Figure {
    title: "Good answers per second (first byte and gaps within the bounds of the world):",
    of: |figures| figures.goodput,
    digits: 0,
    more_is_better: true,
};

const P50: Figure = Figure {
    title: "Half of first bytes within, ms:",
    of: |figures| figures.p50,
    digits: 0,
    more_is_better: false,
};

/// The busiest engine.
pub(crate) const IMBALANCE: Figure = Figure {
    title: "Busy time of the busiest engine over the mean:",
    of: |figures| figures.imbalance,
    digits: 2,
    more_is_better: false,
};

const FOUND: Figure = Figure {
    title: "Prompt tokens found in a cache, %:",
    of: |figures| figures.found * 100.0,
    digits: 0,
    more_is_better: true,
};

const FIGURES: &[Figure] = &[P99, GOODPUT, P50, IMBALANCE, FOUND];

/// `f(0)..f(count)`, worked off by as many threads as there are cores.
fn spread<T: Send>(count: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    let work = || {
        while let Some(k) = Some(next.fetch_add(1, Relaxed)).filter(|k| *k < count) {
            let result = f(k);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((k, result));
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores).for_each(|_| drop(scope.spawn(work)));
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(k, _)| *k);
    done.into_iter().map(|(_, result)| result).collect()
}

/// A Markdown table; the first row is its head. Names to the left, numbers to the right.
fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let _ = write!(text, "| {:<1$} |", row[0], widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let _ = write!(text, " {cell:>width$} |");
        }
        text.push('\n');
        if number == 0 {
            let _ = write!(text, "|{}|", "-".repeat(widths[0] + 2));
            widths[1..]
                .iter()
                .for_each(|width| text.push_str(&format!("{}:|", "-".repeat(width + 1))));
            text.push('\n');
        }
    }
    text
}
