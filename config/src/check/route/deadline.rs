//! Deadlines and load levels: what a strategy does not know is not set, floors lie below ceilings, and
//! levels go up.

use std::time::Duration;

use crate::check::{Checker, on};
use crate::read::tree::Node;
use crate::schema::{self, File, Learning, Switch};
use crate::validated::{
    Action, Adaptive, Bound, Deadline, Level, LevelAction, Levels, LoadMeasure, Strategy,
};

/// The floor and the ceiling of deadlines that are learned, in milliseconds. A ceiling is what the
/// deadline is when it is not learned. To connect, less than the 1 s after which a lost packet is
/// sent again says that another endpoint is better; a first byte below a second hurts nobody; and
/// engines pause for some hundred milliseconds to read a long prompt of somebody else.
const CONNECT: [u64; 2] = [250, 2_000];
const FIRST_BYTE: [u64; 2] = [1_000, 120_000];
const GAP: [u64; 2] = [2_000, 60_000];

impl Checker<'_> {
    pub(super) fn deadline(&mut self, node: &Node, deadline: &schema::Deadline) -> Deadline {
        Deadline {
            connect: self.bound(node.at("connect"), &deadline.connect, CONNECT),
            first_byte: self.bound(node.at("first_byte"), &deadline.first_byte, FIRST_BYTE),
            gap: self.bound(node.at("gap"), &deadline.gap, GAP),
            total: on(&deadline.total).map(|time| time.0),
            client_budget: deadline.client_budget,
            tell_endpoint: on(&deadline.tell_endpoint).copied(),
        }
    }

    fn bound(&mut self, node: &Node, bound: &Switch<schema::Bound>, limits: [u64; 2]) -> Bound {
        match on(bound) {
            None => Bound::Off,
            Some(schema::Bound::Fixed(time)) => Bound::Fixed(time.0),
            Some(schema::Bound::Adaptive(written)) => {
                Bound::Adaptive(self.adaptive(node, written, limits))
            }
        }
    }

    fn adaptive(&mut self, node: &Node, written: &schema::Adaptive, limits: [u64; 2]) -> Adaptive {
        let [floor, ceiling] = limits.map(Duration::from_millis);
        let floor = written.floor.map_or(floor.min(ceiling_of(written, ceiling)), |it| it.0);
        let ceiling = ceiling_of(written, ceiling.max(floor));
        self.ordered(node, ("floor", floor), ("ceiling", ceiling));
        let strategy = self.strategy(node, written);
        Adaptive { strategy, floor, ceiling, explore: written.explore.map_or(0.01, |it| it.0) }
    }

    /// What one strategy needs means nothing to another.
    fn strategy(&mut self, node: &Node, written: &schema::Adaptive) -> Strategy {
        let (strategy, foreign): (_, &[&str]) = match written.strategy {
            None | Some(Learning::Quantile) => (
                Strategy::Quantile {
                    quantile: written.quantile.map_or(0.999, |it| it.0),
                    margin: written.margin.map_or(2.0, |it| it.0),
                },
                &["samples", "deviations"],
            ),
            Some(Learning::MeanStddev) => (
                Strategy::MeanStddev {
                    samples: written.samples.map_or(200, |it| it.0 as usize),
                    deviations: written.deviations.map_or(6.0, |it| it.0),
                },
                &["quantile", "margin"],
            ),
            Some(Learning::Rto) => {
                (Strategy::Rto, &["quantile", "margin", "samples", "deviations"])
            }
        };
        for key in foreign.iter().filter_map(|key| node.get(key)) {
            let message = format!("means nothing to the strategy {}", strategy.name());
            self.wrong_key(key, message, None);
        }
        strategy
    }

    pub(super) fn levels(
        &mut self,
        node: &Node,
        levels: &Switch<schema::Levels>,
        action: Option<&Action>,
        file: &File,
    ) -> Option<Levels> {
        let levels = on(levels)?;
        let at = node.at("table");
        if levels.table.is_empty() {
            self.wrong(at, "no levels: at least one is needed", None);
        }
        let items = self.document.items(at, levels.table.len());
        let mut table: Vec<Level> = Vec::new();
        for (item, level) in items.into_iter().zip(&levels.table) {
            table.extend(self.level(item, level, table.last()));
        }
        if levels.by == LoadMeasure::Queue {
            self.queue_is_told(node.at("by"), action, file);
        }
        let (hysteresis, hold) = (levels.hysteresis.0, levels.hold.0);
        Some(Levels { by: levels.by, table, hysteresis, hold })
    }

    fn level(
        &mut self,
        node: &Node,
        level: &schema::Level,
        before: Option<&Level>,
    ) -> Option<Level> {
        let Some(from) = level.from.map(|from| f64::from(from.0)) else {
            self.missing(node, "from");
            return None;
        };
        if let Some(before) = before.filter(|before| before.from >= from) {
            let message = format!("{from} does not go up from {}", before.from);
            self.wrong(node.at("from"), message, None);
        }
        if level.scale.is_some() && level.first_byte.is_some() {
            let help = "the one multiplies what the other replaces".to_owned();
            self.wrong(node, "has both `scale` and `first_byte`", Some(help));
        }
        let turned_away = matches!(level.action, LevelAction::Shed);
        for key in ["scale", "first_byte", "total"].iter().filter_map(|key| node.get(key)) {
            if turned_away {
                self.warn(key, "has no effect: the level turns every request away");
            }
        }
        Some(Level {
            from,
            scale: level.scale.map_or(1.0, |it| it.0),
            first_byte: level.first_byte.map(|it| it.0),
            total: level.total.map(|it| it.0),
            action: level.action,
        })
    }

    /// Queues are known only where engines tell of them.
    fn queue_is_told(&mut self, node: &Node, action: Option<&Action>, file: &File) {
        let Some(Action::Split(arms)) = action else { return };
        let told = arms.iter().filter_map(|arm| file.backends.get(&arm.name)).any(|backend| {
            let signals = &backend.signals;
            signals.orca || !matches!(signals.scrape, Switch::Off)
        });
        if !told {
            let help = "give a backend `signals.scrape` or `signals.orca`".to_owned();
            self.wrong(node, "no backend of the route reports its queue", Some(help));
        }
    }
}

fn ceiling_of(written: &schema::Adaptive, usual: Duration) -> Duration {
    written.ceiling.map_or(usual, |it| it.0)
}
