//! Finding the endpoints of a backend.
//!
//! Every entry of the configuration is a [`Discover`]: an address that never changes, a DNS name, an SRV record, a
//! watched file. Each tells, whenever it has news, all that it finds; [`watch`] puts what all of them found together, in
//! the order of the configuration. What can not be looked up at the moment stays as it was last: an outage of the
//! directory must not be an outage of ours.
//!
//! What it leaves out: what becomes of endpoints that join or leave ([`Backend::set_members`]).

mod dns;
mod file;
mod names;
mod news;

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use outrigger_config::validated::{Dns, Endpoint, Host, Place};
use tokio::{sync::mpsc, task::JoinSet};

use crate::upstream::Backend;

/// An address that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share, at least 1.
    pub weight: u32,
    /// The zone it is in, where that is known.
    pub zone: Option<Arc<str>>,
    /// It is the own pod's engine.
    pub local: bool,
}

/// All that an entry stands for now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Every endpoint that is known.
    pub found: Vec<Found>,
    /// Nothing of it is still waiting for its first answer.
    pub complete: bool,
}

/// A way to find endpoints.
#[async_trait]
pub trait Discover: Send {
    /// Waits for news and tells everything that is there now. Failures are its own to report and to overcome.
    async fn next(&mut self) -> News;
}

/// Addresses that need no discovery.
pub fn literal(endpoints: &[Endpoint]) -> Vec<Found> {
    endpoints.iter().filter_map(literal_address).collect()
}

fn literal_address(endpoint: &Endpoint) -> Option<Found> {
    match &endpoint.place {
        Place::Host { host: Host::Ip(ip), port } => {
            Some(found(endpoint, SocketAddr::new(*ip, *port), endpoint.weight))
        }
        Place::Host { host: Host::Name(_), .. } | Place::Srv(_) | Place::File(_) => None,
    }
}

/// What a backend has that was looked up, not written down: until its successor has looked for itself, that is the
/// best guess of what it will find.
pub fn inherited(before: &Backend) -> Vec<Found> {
    let mut present = before.present();
    disown(&mut present, &literal(&before.settings.endpoints));
    present
}

/// Whether any endpoint has to be looked up.
pub fn is_needed(endpoints: &[Endpoint]) -> bool {
    endpoints.iter().any(|endpoint| literal_address(endpoint).is_none())
}

/// An address of this entry.
fn found(entry: &Endpoint, address: SocketAddr, weight: u32) -> Found {
    Found { address, weight, zone: entry.zone.as_deref().map(Arc::from), local: entry.local }
}

/// Keeps the endpoints of a backend up to date until it is cancelled.
pub async fn watch(backend: Arc<Backend>, dns: Dns) {
    let (sender, mut news) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let entries = &backend.settings.endpoints;
    let mut known: Vec<News> = entries.iter().map(first_news).collect();
    let mut ownerless = backend.present();
    disown(&mut ownerless, &literal(entries));
    for (index, entry) in entries.iter().enumerate() {
        if let Some(discover) = discover(entry, &backend, &dns) {
            tasks.spawn(tell(index, discover, sender.clone()));
        }
    }
    while let Some((index, told)) = news.recv().await {
        disown(&mut ownerless, &told.found);
        known[index] = told;
        if backend.set_members(&merge(&known, &ownerless)) {
            let endpoints = backend.members().list.len();
            tracing::info!(backend = %backend.name, endpoints, "endpoints changed");
        }
    }
}

fn first_news(entry: &Endpoint) -> News {
    literal_address(entry)
        .map_or_else(News::default, |found| News { found: vec![found], complete: true })
}

async fn tell(index: usize, mut discover: Box<dyn Discover>, sender: mpsc::Sender<(usize, News)>) {
    loop {
        let news = discover.next().await;
        if sender.send((index, news)).await.is_err() {
            return;
        }
    }
}

fn discover(entry: &Endpoint, backend: &Arc<Backend>, dns: &Dns) -> Option<Box<dyn Discover>> {
    match &entry.place {
        Place::Host { host: Host::Ip(_), .. } => None,
        Place::Host { host: Host::Name(name), port } => {
            let question = dns::Question::Name { name: name.clone(), port: *port };
            dns::Watch::new(question, entry.clone(), Arc::clone(backend), dns).map(boxed)
        }
        Place::Srv(name) => {
            let question = dns::Question::Service(name.clone());
            dns::Watch::new(question, entry.clone(), Arc::clone(backend), dns).map(boxed)
        }
        Place::File(path) => {
            Some(boxed(file::Watch::new(path, entry.clone(), Arc::clone(backend), dns)))
        }
    }
}

fn boxed(discover: impl Discover + 'static) -> Box<dyn Discover> {
    Box::new(discover)
}

/// What all entries found, in their order. While one of them still waits for its first answer, endpoints that may be
/// its own stay.
fn merge(known: &[News], ownerless: &[Found]) -> Vec<Found> {
    let mut all: Vec<Found> = known.iter().flat_map(|news| news.found.iter().cloned()).collect();
    if known.iter().any(|news| !news.complete) {
        all.extend_from_slice(ownerless);
    }
    all
}

/// Endpoints that some entry has found are its own: they leave when it says so.
fn disown(ownerless: &mut Vec<Found>, told: &[Found]) {
    ownerless.retain(|old| told.iter().all(|found| found.address != old.address));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Found {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Found { address, weight: 1, zone: None, local: false }
    }

    fn all(found: &[Found]) -> News {
        News { found: found.to_vec(), complete: true }
    }

    #[test]
    fn entries_keep_their_order_whichever_tells_first() {
        let known = [all(&[at(1)]), all(&[at(2), at(3)]), all(&[])];
        assert_eq!(merge(&known, &[at(9)]), [at(1), at(2), at(3)]);
    }

    #[test]
    fn before_an_entry_has_told_everything_nobody_leaves() {
        let partial = News { complete: false, ..all(&[at(3)]) };
        assert_eq!(merge(&[all(&[at(1)]), News::default()], &[at(2)]), [at(1), at(2)]);
        assert_eq!(merge(&[all(&[at(1)]), partial], &[at(2)]), [at(1), at(3), at(2)]);
    }

    #[test]
    fn what_an_entry_has_found_is_its_own() {
        let mut ownerless = vec![at(1), at(2), at(3)];
        disown(&mut ownerless, &[at(2), Found { weight: 7, ..at(1) }]);
        assert_eq!(ownerless, [at(3)]);
    }
}
