//! Endpoints behind DNS names: every address of a name, or every target of an SRV record.
//!
//! An answer is asked for again when it has lived out its TTL, at most `dns_refresh` later. Of an SRV record the targets
//! of the best priority are taken, with their weights; every address of a target has the weight of the target. What
//! happens when there is no answer is up to `names` and `news`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use outrigger_config::validated::{Dns, Endpoint};
use tokio::time::{Instant, sleep_until};

use super::{
    Discover, Found, News, found,
    names::{Answers, Names, Target},
    news::{Desk, Hold, Look, in_order},
};
use crate::upstream::Backend;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Question {
    /// Every address of this name serves on this port.
    Name { name: String, port: u16 },
    /// Every target of this service's record serves.
    Service(String),
}

/// Asks again and again.
pub(super) struct Watch {
    question: Question,
    entry: Endpoint,
    names: Names,
    desk: Desk,
    due: Instant,
}

impl Watch {
    /// `None`, with a word in the log, when there is no resolver.
    pub(super) fn new(
        question: Question,
        entry: Endpoint,
        backend: Arc<Backend>,
        dns: &Dns,
    ) -> Option<Self> {
        match Names::new(dns) {
            Ok(names) => {
                let longest = backend.settings.dns_refresh;
                let desk = Desk::new(backend, longest);
                Some(Watch { question, entry, names, desk, due: Instant::now() })
            }
            Err(error) => {
                tracing::error!(backend = %backend.name, %error, "no DNS resolver");
                None
            }
        }
    }

    async fn look(&mut self) -> Look {
        match &self.question {
            Question::Name { name, port } => {
                let answers = self.names.addresses(&[name]).await;
                let at = |ip: &IpAddr| {
                    found(&self.entry, SocketAddr::new(*ip, *port), self.entry.weight)
                };
                let found = answers.addresses.iter().flatten().map(at).collect();
                look(found, answers, Hold::FOR_EVER)
            }
            Question::Service(name) => match self.names.targets(name).await {
                Ok((targets, ttl)) => {
                    let names: Vec<_> = targets.iter().map(|target| target.name.as_str()).collect();
                    let answers = self.names.addresses(&names).await;
                    let found = self.places(&targets, &answers.addresses);
                    look(found, answers, Hold::of(ttl))
                }
                Err(trouble) => {
                    let problem = Some(trouble.about(name));
                    Look { news: None, hold: trouble.hold(), problem }
                }
            },
        }
    }

    fn places(&self, targets: &[Target], addresses: &[Vec<IpAddr>]) -> Vec<Found> {
        let places = targets.iter().zip(addresses).flat_map(|(target, addresses)| {
            let at =
                |ip: &IpAddr| found(&self.entry, SocketAddr::new(*ip, target.port), target.weight);
            addresses.iter().map(at)
        });
        places.collect()
    }
}

fn look(found: Vec<Found>, answers: Answers, hold: Hold) -> Look {
    let news = News { found: in_order(found), complete: answers.complete };
    Look { news: Some(news), hold: answers.hold.and(hold), problem: answers.problem }
}

#[async_trait]
impl Discover for Watch {
    async fn next(&mut self) -> News {
        loop {
            sleep_until(self.due).await;
            let look = self.look().await;
            let (news, pause) = self.desk.take(look);
            self.due = Instant::now() + pause;
            if let Some(news) = news {
                return news;
            }
        }
    }
}
