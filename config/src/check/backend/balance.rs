//! How an endpoint is chosen: a policy with what it needs and nothing that it does not look at.

use crate::check::{Checker, on, text};
use crate::read::tree::Node;
use crate::schema;
use crate::validated::{Agent, Balance, BalancePolicy, Key, Locality, Scrape, Signals};

/// A key of `balance`, who looks at it in words, and whether a policy does.
type LookedAt = (&'static str, &'static str, fn(BalancePolicy) -> bool);

const LOOKED_AT: [LookedAt; 4] = [
    ("key", "consistent_hash and session_affinity", BalancePolicy::needs_key),
    ("table", "consistent_hash", BalancePolicy::is_hash),
    ("bounded_load", "consistent_hash", BalancePolicy::is_hash),
    ("prefix", "least_load and prefix_affinity", BalancePolicy::compares_prompts),
];

impl Checker<'_> {
    pub(super) fn balance(&mut self, node: &Node, balance: &schema::Balance) -> Balance {
        let policy = balance.policy;
        let key = balance.key.as_ref().and_then(|key| self.key(node.at("key"), key));
        // A policy that could not be read needs and ignores nothing.
        if !node.get("policy").is_some_and(|policy| self.document.is_broken(policy)) {
            self.fits(node, balance);
        }
        let bounded_load = on(&balance.bounded_load).map(|bound| bound.0);
        let prefix = on(&balance.prefix).map(|size| size.0 as usize);
        Balance {
            policy,
            key,
            table: balance.table,
            bounded_load: bounded_load.filter(|_| policy.is_hash()),
            prefix: prefix.filter(|_| policy.compares_prompts()),
        }
    }

    /// Whether the policy has what it needs, and nothing beside it.
    fn fits(&mut self, node: &Node, balance: &schema::Balance) {
        let (policy, source) = (balance.policy, &self.document.source);
        if policy.needs_key() && balance.key.is_none() && node.get("key").is_none() {
            let help = "such as `key: {header: x-user}`".to_owned();
            let message = format!("{} needs a `key`", policy.name());
            self.problems.push(node.problem(source, &message, Some(help)));
        }
        for (key, who, looks_at) in LOOKED_AT {
            if let Some(written) = node.get(key).filter(|_| !looks_at(policy)) {
                let message = format!("means nothing to {}, only to {who}", policy.name());
                self.wrong_key(written, message, None);
            }
        }
        if policy == BalancePolicy::PrefixAffinity && on(&balance.prefix).is_none() {
            self.wrong(node.at("prefix"), "prefix_affinity has nothing to go by then", None);
        }
    }

    fn key(&mut self, node: &Node, key: &schema::Key) -> Option<Key> {
        let client = key.client.unwrap_or(false);
        match (&key.header, &key.cookie, &key.body, client) {
            (Some(name), None, None, false) => {
                self.text(node.at("header"), text::header_name(name)).map(Key::Header)
            }
            (None, Some(name), None, false) => {
                self.text(node.at("cookie"), text::cookie_name(name)).map(Key::Cookie)
            }
            (None, None, Some(field), false) => {
                self.text(node.at("body"), text::body_field(field)).map(Key::Body)
            }
            (None, None, None, true) => Some(Key::Client),
            _ => {
                let message = "needs exactly one of `header`, `cookie`, `body` and `client: true`";
                self.wrong(node, message, None);
                None
            }
        }
    }

    pub(super) fn signals(&mut self, node: &Node, signals: &schema::Signals) -> Signals {
        let scrape = on(&signals.scrape);
        let scrape = scrape.and_then(|scrape| self.scrape(node.at("scrape"), scrape));
        let agent = on(&signals.agent)
            .map(|agent| Agent { port: port(agent.port), interval: agent.interval.0 });
        Signals { scrape, orca: signals.orca, agent, gateway: signals.gateway }
    }

    fn scrape(&mut self, node: &Node, scrape: &schema::Scrape) -> Option<Scrape> {
        let path = self.text(node.at("path"), text::path(&scrape.path))?;
        let (interval, engine) = (scrape.interval.0, scrape.engine);
        Some(Scrape { path, port: scrape.port.map(port), interval, engine })
    }

    pub(super) fn locality(&mut self, node: &Node, locality: &schema::Locality) -> Locality {
        let zone = locality.zone.as_ref();
        let zone = zone.and_then(|zone| self.zone(node.at("zone"), zone));
        let (hop, far) = (locality.hop.0, locality.far.0);
        if far < hop {
            let message =
                format!("`far` ({far}) is less than `hop` ({hop}): another zone is preferred");
            self.warn(node, message);
        }
        Locality { zone, hop, far }
    }
}

/// Bounded by its type to what fits.
fn port(port: schema::Port) -> u16 {
    u16::try_from(port.0).unwrap_or(u16::MAX)
}
