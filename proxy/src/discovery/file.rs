//! Endpoints listed in a file of their own, which is watched: whatever writes it is the directory.
//!
//! The directory is watched, not the file, so that a rename and the symlink swap of a ConfigMap count as changes. A file
//! that is missing, or not valid, takes no endpoint away; what is wrong with it is said once, with its place. Names in it
//! are looked up like those of the configuration: when the file has changed, and when an answer has lived out its time.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use outrigger_config::validated::{Dns, Endpoint, Host, Place};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Discover, Found, News, found,
    names::{Answers, Names},
    news::{Desk, Hold, Look},
};
use crate::{reload::watch_directory, upstream::Backend};

/// A writer writes more than once; what comes within this time is one change.
const SETTLE: Duration = Duration::from_millis(50);
/// Without a watcher, or beside one that misses something, the file is read this often.
const REREAD: Duration = Duration::from_secs(30);

/// Reads a file whenever it changes.
pub(super) struct Watch {
    path: PathBuf,
    entry: Endpoint,
    names: Option<Names>,
    desk: Desk,
    changes: mpsc::Receiver<()>,
    /// Kept alive: dropping it ends the watch.
    _watcher: Option<notify::RecommendedWatcher>,
    due: Instant,
    /// What was in it last, or what was wrong with it.
    listed: Option<Listed>,
}

type Listed = Result<Vec<Endpoint>, String>;

impl Watch {
    pub(super) fn new(path: &Path, entry: Endpoint, backend: Arc<Backend>, dns: &Dns) -> Self {
        let (changed, changes) = mpsc::channel(1);
        let watcher = watch_directory(path, changed).inspect_err(|error| {
            tracing::warn!(
                "can not watch {}: {error}; it is read every {REREAD:?}",
                path.display()
            );
        });
        let names = Names::new(dns).inspect_err(|error| {
            tracing::warn!("names in {} are not looked up: {error}", path.display());
        });
        let longest = backend.settings.dns_refresh.min(REREAD);
        Watch {
            path: path.to_owned(),
            entry,
            names: names.ok(),
            desk: Desk::new(backend, longest),
            changes,
            _watcher: watcher.ok(),
            due: Instant::now(),
            listed: None,
        }
    }

    /// Waits for something to do and gives what is in the file.
    async fn read(&mut self) -> Listed {
        loop {
            let due = tokio::select! {
                biased;
                () = sleep_until(self.due) => true,
                // A watcher that ended leaves the timer.
                Some(()) = self.changes.recv() => false,
            };
            if !due {
                sleep(SETTLE).await;
            }
            _ = self.changes.try_recv();
            let listed = outrigger_config::load_endpoints(&self.path);
            let listed = listed.map_err(|report| report.to_string());
            // Something else in the directory has changed.
            if due || self.listed.as_ref() != Some(&listed) {
                self.listed = Some(listed.clone());
                return listed;
            }
        }
    }

    async fn look(&mut self, listed: Listed) -> Look {
        let listed = match listed {
            Ok(listed) => listed,
            Err(problem) => {
                return Look { news: None, hold: Hold::FOR_EVER, problem: Some(problem) };
            }
        };
        let names: Vec<&str> = listed.iter().filter_map(name_of).collect();
        let answers = match &mut self.names {
            Some(resolver) => resolver.addresses(&names).await,
            None => without_resolver(names.len()),
        };
        let found = self.places(&listed, &answers.addresses);
        let news = Some(News { found, complete: answers.complete });
        Look { news, hold: answers.hold, problem: answers.problem }
    }

    /// Everything that is listed, in the order of the list; `addresses` are those of its names.
    fn places(&self, listed: &[Endpoint], addresses: &[Vec<IpAddr>]) -> Vec<Found> {
        let (mut all, mut addresses) = (Vec::with_capacity(listed.len()), addresses.iter());
        for entry in listed {
            let zone = entry.zone.clone().or_else(|| self.entry.zone.clone());
            let entry = Endpoint { zone, ..entry.clone() };
            match &entry.place {
                Place::Host { host: Host::Ip(ip), port } => {
                    all.push(found(&entry, SocketAddr::new(*ip, *port), entry.weight));
                }
                Place::Host { host: Host::Name(_), port } => {
                    let at = |ip: &IpAddr| found(&entry, SocketAddr::new(*ip, *port), entry.weight);
                    all.extend(addresses.next().into_iter().flatten().map(at));
                }
                // A list does not refer to other lists.
                Place::Srv(_) | Place::File(_) => {}
            }
        }
        all
    }
}

fn name_of(entry: &Endpoint) -> Option<&str> {
    match &entry.place {
        Place::Host { host: Host::Name(name), .. } => Some(name),
        Place::Host { host: Host::Ip(_), .. } | Place::Srv(_) | Place::File(_) => None,
    }
}

fn without_resolver(names: usize) -> Answers {
    let problem = (names > 0).then(|| "there is no DNS resolver for the names in it".to_owned());
    let (addresses, complete) = (vec![Vec::new(); names], names == 0);
    Answers { addresses, complete, hold: Hold::FOR_EVER, problem }
}

#[async_trait]
impl Discover for Watch {
    async fn next(&mut self) -> News {
        loop {
            let listed = self.read().await;
            let look = self.look(listed).await;
            let (news, pause) = self.desk.take(look);
            self.due = Instant::now() + pause;
            if let Some(news) = news {
                return news;
            }
        }
    }
}
