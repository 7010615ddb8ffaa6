//! Limits that can be met, classes that can be told apart, and rates that limit something.

use super::{Checker, text};
use crate::read::nearest;
use crate::read::tree::Node;
use crate::schema::{self, Brief, Rate, Switch, Whole};
use crate::validated::{AdaptiveLimit, Allowance, Limit, PerTime, Priority, Queue, RateLimit};

/// How many classes there may be.
const MOST_CLASSES: usize = 8;

impl Checker<'_> {
    pub(super) fn limit(
        &mut self,
        node: &Node,
        limit: &Switch<Brief<schema::Limit>>,
    ) -> Option<Limit> {
        let Switch::On(Brief(limit)) = limit else { return None };
        match (limit.in_flight, &limit.adaptive) {
            (Some(most), None) => Some(Limit::InFlight(most.0 as usize)),
            (None, Some(adaptive)) => {
                Some(Limit::Adaptive(self.adaptive_limit(node.at("adaptive"), adaptive)))
            }
            _ => {
                self.wrong(node, "needs exactly one of `in_flight` and `adaptive`", None);
                None
            }
        }
    }

    fn adaptive_limit(&mut self, node: &Node, adaptive: &schema::AdaptiveLimit) -> AdaptiveLimit {
        let (min, max, initial) = (adaptive.min.0, adaptive.max.0, adaptive.initial.0);
        if max < min {
            let at = if node.get("max").is_some() { "max" } else { "min" };
            self.wrong(node.at(at), format!("`max` ({max}) is less than `min` ({min})"), None);
        } else if node.get("initial").is_some() && !(min..=max).contains(&initial) {
            let message = format!("is not from `min` ({min}) to `max` ({max})");
            self.wrong(node.at("initial"), message, None);
        }
        AdaptiveLimit {
            algorithm: adaptive.algorithm,
            min: min as usize,
            max: max as usize,
            // The default gives way to the bounds that somebody wrote.
            initial: initial.min(max).max(min) as usize,
        }
    }

    pub(super) fn queue(&mut self, node: &Node, queue: &Switch<schema::Queue>) -> Option<Queue> {
        let Switch::On(queue) = queue else { return None };
        let (wait, mut target) = (queue.wait.0, queue.target.0);
        if node.get("target").is_some() {
            self.ordered(node, ("target", target), ("wait", wait));
        } else {
            target = target.min(wait);
        }
        Some(Queue { size: queue.size.0 as usize, wait, target })
    }

    pub(super) fn priority(
        &mut self,
        node: &Node,
        priority: &schema::Priority,
    ) -> Option<Priority> {
        let header = self.text(node.at("header"), text::header_name(&priority.header));
        let classes = self.classes(node.at("classes"), &priority.classes)?;
        let default = match &priority.default {
            None => classes.len().checked_sub(1),
            Some(name) => self.class(node.at("default"), name, &classes),
        }?;
        let default_name = classes.get(default)?.clone();
        Some(Priority { header: header?, classes, default, default_name })
    }

    fn classes(&mut self, node: &Node, names: &[String]) -> Option<Vec<String>> {
        if names.is_empty() {
            self.wrong(node, "no classes: at least one is needed", None);
            return None;
        }
        if names.len() > MOST_CLASSES {
            self.wrong(node, format!("has {} classes: at most 8", names.len()), None);
        }
        let items = self.document.items(node, names.len());
        for (index, (item, name)) in items.into_iter().zip(names).enumerate() {
            self.text(item, text::name(name, "-_."));
            if names[..index].iter().any(|other| other.eq_ignore_ascii_case(name)) {
                self.wrong(item, format!("\"{name}\" is listed twice"), None);
            }
        }
        Some(names.to_vec())
    }

    fn class(&mut self, node: &Node, name: &str, classes: &[String]) -> Option<usize> {
        let place = classes.iter().position(|class| class.eq_ignore_ascii_case(name));
        if place.is_none() {
            let message = format!("\"{name}\" is none of the classes");
            self.wrong(node, message, nearest(name, classes));
        }
        place
    }

    pub(super) fn rates(&mut self, node: &Node, rates: &[schema::RateLimit]) -> Vec<RateLimit> {
        let items = self.document.items(node, rates.len());
        let mut checked = Vec::new();
        for (item, rate) in items.into_iter().zip(rates) {
            checked.extend(self.rate(item, rate));
        }
        checked
    }

    fn rate(&mut self, node: &Node, rate: &schema::RateLimit) -> Option<RateLimit> {
        let bursts =
            [("burst", rate.burst, rate.requests), ("token_burst", rate.token_burst, rate.tokens)];
        for ((key, burst, of), name) in bursts.into_iter().zip(["requests", "tokens"]) {
            if burst.is_some() && of.is_none() {
                self.wrong_key(node.at(key), format!("has no `{name}` beside it"), None);
            }
        }
        let requests = allowance(rate.requests, rate.burst);
        let tokens = allowance(rate.tokens, rate.token_burst);
        if requests.is_none() && tokens.is_none() {
            self.wrong(node, "needs `requests`, `tokens` or both", None);
            return None;
        }
        Some(RateLimit { per: rate.per, requests, tokens })
    }
}

/// Without a burst: as many at once as in the whole time.
fn allowance(rate: Option<Rate>, burst: Option<Whole<1, 1_000_000_000>>) -> Option<Allowance> {
    let Rate { count, period } = rate?;
    let burst = burst.map_or(count, |burst| burst.0.into());
    Some(Allowance { rate: PerTime { count, period }, burst })
}
