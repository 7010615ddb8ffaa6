//! What names of the DNS stand for: addresses, and the targets of services.
//!
//! A name stands for every address it has, of both families. What can not be answered keeps its last answer, each
//! family for itself: half an answer must not take endpoints away. "There is no such name" is an answer and is believed
//! for as long as it says, but takes nothing away either: a zone that fails to load must not empty a backend. Only
//! where a name has addresses of one family, "none of the other" is taken for what it says.
//!
//! Names are completed as the system says (`search` and `ndots` of its `resolv.conf`), so that `engine.models` means
//! what it means to every other program in the pod. A failure, as opposed to "no such name", ends the search: the next
//! candidate could be somebody else's. Servers of our own configuration are asked for names as they are.
//!
//! What it leaves out: when to ask again (`news`).

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::BoxFuture, stream};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::{
        ProtoError,
        op::ResponseCode,
        rr::{Name, RData, RecordType, rdata::SRV},
    },
    system_conf::read_system_conf,
};
use outrigger_config::validated::Dns;

use super::news::Hold;

/// So many names are asked for side by side.
const SIDE_BY_SIDE: usize = 8;
/// The largest weight of an endpoint.
const MAX_WEIGHT: u32 = 1000;

/// Looks names up.
pub(super) struct Names {
    asker: Arc<Asker>,
    known: HashMap<String, Known>,
}

/// Asks for one name at a time, and remembers nothing.
struct Asker {
    resolver: TokioResolver,
    search: Search,
}

/// What some names stand for.
#[derive(Debug)]
pub(super) struct Answers {
    /// The addresses of each of them, in the order in which they were asked for.
    pub(super) addresses: Vec<Vec<IpAddr>>,
    /// Whether each of them has been answered at some time.
    pub(super) complete: bool,
    /// For how long that holds.
    pub(super) hold: Hold,
    /// Which of them could not be looked up, and why.
    pub(super) problem: Option<String>,
}

/// A place of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// A name, with its closing dot.
    pub(super) name: String,
    pub(super) port: u16,
    /// 1 to 1000.
    pub(super) weight: u32,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// That is what the DNS says, and it is to be believed for so long.
    denied: Option<Duration>,
    /// What is to be said.
    text: String,
}

impl Trouble {
    fn failed(text: &(impl ToString + ?Sized)) -> Self {
        Trouble { denied: None, text: text.to_string() }
    }

    /// For how long it is.
    pub(super) fn hold(&self) -> Hold {
        self.denied.map_or(Hold::RETRY, Hold::of)
    }

    /// What is to be said of it.
    pub(super) fn about(&self, name: &str) -> String {
        format!("{name}: {}", self.text)
    }
}

type Asked<T> = Result<(T, Duration), Trouble>;
/// IPv4 and IPv6.
type BothFamilies = (Asked<Vec<IpAddr>>, Asked<Vec<IpAddr>>);

impl Names {
    /// Asks the configured servers, or those of the system.
    pub(super) fn new(dns: &Dns) -> Result<Self, NetError> {
        let (config, mut options) = match dns.servers.is_empty() {
            true => read_system_conf()?,
            false => (configured(dns), ResolverOpts::default()),
        };
        // We keep answers ourselves, for exactly as long as they say.
        options.cache_size = 0;
        let search = Search { domains: config.search().to_vec(), ndots: options.ndots };
        let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = builder.with_options(options).build()?;
        Ok(Names { asker: Arc::new(Asker { resolver, search }), known: HashMap::new() })
    }

    /// Looks up every one of these names, and forgets all others.
    pub(super) async fn addresses(&mut self, names: &[&str]) -> Answers {
        let asked: Vec<_> = names.iter().map(|name| self.asker.later((*name).to_owned())).collect();
        let asked: Vec<_> = stream::iter(asked).buffered(SIDE_BY_SIDE).collect().await;
        let mut before = std::mem::take(&mut self.known);
        let mut answers =
            Answers { addresses: Vec::new(), complete: true, hold: Hold::FOR_EVER, problem: None };
        let mut troubles = Vec::new();
        for (name, (v4, v6)) in names.iter().zip(asked) {
            let known = before.remove(*name).unwrap_or_default();
            let (known, hold, trouble) = known.update(v4, v6);
            answers.addresses.push(known.addresses());
            answers.complete &= known.complete;
            answers.hold = answers.hold.and(hold);
            troubles.extend(trouble.map(|trouble| trouble.about(name)));
            self.known.insert((*name).to_owned(), known);
        }
        answers.problem = summary(&troubles);
        answers
    }

    /// Looks up the places of a service: those of the best priority.
    pub(super) async fn targets(&self, name: &str) -> Asked<Vec<Target>> {
        self.asker.targets(name).await
    }
}

impl Asker {
    /// The addresses of a name, as something that can be set aside.
    fn later(self: &Arc<Self>, name: String) -> BoxFuture<'static, BothFamilies> {
        let asker = Arc::clone(self);
        Box::pin(async move { asker.both_families(&name).await })
    }

    async fn targets(&self, name: &str) -> Asked<Vec<Target>> {
        let mut denied = None;
        for candidate in self.search.candidates(name)? {
            match self.ask(candidate, RecordType::SRV, targets).await {
                Err(trouble) if trouble.denied.is_some() => _ = denied.get_or_insert(trouble),
                answer => return answer,
            }
        }
        Err(denied.unwrap_or_else(|| Trouble::failed("there is nothing to ask for")))
    }

    async fn both_families(&self, name: &str) -> BothFamilies {
        let candidates = match self.search.candidates(name) {
            Ok(candidates) => candidates,
            Err(trouble) => return (Err(trouble.clone()), Err(trouble)),
        };
        let mut denied = None;
        for candidate in candidates {
            let both = tokio::join!(
                self.ask(candidate.clone(), RecordType::A, addresses),
                self.ask(candidate, RecordType::AAAA, addresses),
            );
            if !(is_denied(&both.0) && is_denied(&both.1)) {
                return both;
            }
            denied.get_or_insert(both);
        }
        denied.unwrap_or_else(|| {
            let nothing = Trouble::failed("there is nothing to ask for");
            (Err(nothing.clone()), Err(nothing))
        })
    }

    async fn ask<T>(&self, name: Name, kind: RecordType, read: fn(&Lookup) -> T) -> Asked<T> {
        match self.resolver.lookup(name, kind).await {
            Ok(lookup) if lookup.answers().iter().any(|record| record.record_type() == kind) => {
                let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
                Ok((read(&lookup), ttl))
            }
            Ok(_) => Err(Trouble::failed("the answer has no record of what was asked for")),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Err(denial(&none, kind)),
            Err(error) => Err(Trouble::failed(&error)),
        }
    }
}

fn configured(dns: &Dns) -> ResolverConfig {
    let server = |address: &SocketAddr| {
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        for connection in &mut server.connections {
            connection.port = address.port();
        }
        server
    };
    ResolverConfig::from_name_servers(dns.servers.iter().map(server).collect())
}

fn is_denied<T>(asked: &Asked<T>) -> bool {
    asked.as_ref().is_err_and(|trouble| trouble.denied.is_some())
}

/// A denial without a time to live is believed for no time.
fn denial(none: &NoRecords, kind: RecordType) -> Trouble {
    let ttl = Duration::from_secs(none.negative_ttl.unwrap_or(0).into());
    let text = match none.response_code {
        ResponseCode::NXDomain => "there is no such name".to_owned(),
        _ => format!("there is no {kind} record of that name"),
    };
    Trouble { denied: Some(ttl), text }
}

fn addresses(lookup: &Lookup) -> Vec<IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// The targets of the best priority. The root as target says that there is decidedly no such service (RFC 2782).
fn targets(lookup: &Lookup) -> Vec<Target> {
    let records = lookup.answers().iter().filter_map(|record| srv(&record.data));
    let records: Vec<&SRV> = records.filter(|record| !record.target.is_root()).collect();
    let best = records.iter().map(|record| record.priority).min();
    let best: Vec<_> = records.into_iter().filter(|r| Some(r.priority) == best).collect();
    let weights: Vec<u16> = best.iter().map(|record| record.weight).collect();
    let target = |(record, weight): (&SRV, u32)| Target {
        name: record.target.to_ascii(),
        port: record.port,
        weight,
    };
    best.into_iter().zip(scaled(&weights)).map(target).collect()
}

fn srv(data: &RData) -> Option<&SRV> {
    match data {
        RData::SRV(srv) => Some(srv),
        _ => None,
    }
}

/// Weights of an SRV record as those of endpoints, 1 to 1000: in proportion where one of them is larger.
fn scaled(weights: &[u16]) -> Vec<u32> {
    let largest = weights.iter().copied().max().map_or(0, u32::from);
    let scale = |weight: u32| match largest > MAX_WEIGHT {
        true => (weight * MAX_WEIGHT + largest / 2) / largest,
        false => weight,
    };
    weights.iter().map(|weight| scale(u32::from(*weight)).max(1)).collect()
}

fn summary(troubles: &[String]) -> Option<String> {
    match troubles {
        [] => None,
        [one] => Some(one.clone()),
        [first, rest @ ..] => Some(format!("{first} (and {} more names)", rest.len())),
    }
}

/// What is known of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    /// Nothing of it is still waiting for its first answer.
    complete: bool,
}

impl Known {
    fn addresses(&self) -> Vec<IpAddr> {
        [self.v4.as_slice(), &self.v6].concat()
    }

    /// What is known after these answers, for how long, and what is wrong with them.
    fn update(
        mut self,
        v4: Asked<Vec<IpAddr>>,
        v6: Asked<Vec<IpAddr>>,
    ) -> (Self, Hold, Option<Trouble>) {
        let exists = v4.is_ok() || v6.is_ok();
        let (mut hold, mut troubles) = (Hold::FOR_EVER, Vec::new());
        for (asked, known) in [(v4, &mut self.v4), (v6, &mut self.v6)] {
            match asked {
                Ok((addresses, ttl)) => {
                    *known = addresses;
                    hold = hold.and(Hold::of(ttl));
                }
                Err(Trouble { denied: Some(_), .. }) if exists => known.clear(),
                Err(trouble) => {
                    hold = hold.and(trouble.hold());
                    troubles.push(trouble);
                }
            }
        }
        self.complete |= troubles.is_empty();
        // Of two, the one that is no answer tells more.
        troubles.sort_by_key(|trouble| trouble.denied.is_some());
        (self, hold, troubles.into_iter().next())
    }
}

/// How names are completed.
#[derive(Clone, Debug, Default)]
struct Search {
    domains: Vec<Name>,
    /// A name with fewer dots is first looked for in the domains.
    ndots: usize,
}

impl Search {
    /// What to ask for, one after the other.
    fn candidates(&self, name: &str) -> Result<Vec<Name>, Trouble> {
        let name = Name::from_str_relaxed(name).map_err(|error| Trouble::failed(&error))?;
        let mut whole = name.clone();
        whole.set_fqdn(true);
        if name.is_fqdn() {
            return Ok(vec![whole]);
        }
        let mut all = self.completed(&name).map_err(|error| Trouble::failed(&error))?;
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let at = if dots >= self.ndots { 0 } else { all.len() };
        all.insert(at, whole);
        Ok(all)
    }

    fn completed(&self, name: &Name) -> Result<Vec<Name>, ProtoError> {
        let complete = |domain: &Name| {
            let mut whole = name.clone().append_domain(domain)?;
            whole.set_fqdn(true);
            Ok(whole)
        };
        self.domains.iter().map(complete).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn ip(last: u8) -> IpAddr {
        [127, 0, 0, last].into()
    }

    fn v6() -> IpAddr {
        std::net::Ipv6Addr::LOCALHOST.into()
    }

    fn denied() -> Trouble {
        Trouble { denied: Some(Duration::from_secs(9)), text: "there is no such name".to_owned() }
    }

    fn failed() -> Trouble {
        Trouble::failed("the server failed")
    }

    fn known() -> Known {
        Known { v4: vec![ip(1)], v6: vec![v6()], complete: true }
    }

    #[test]
    fn a_name_stands_for_its_addresses_of_both_families() {
        let (now, hold, trouble) =
            Known::default().update(Ok((vec![ip(2), ip(3)], TTL)), Ok((vec![v6()], TTL * 2)));
        assert_eq!(now.addresses(), [ip(2), ip(3), v6()]);
        assert_eq!((now.complete, hold, trouble), (true, Hold::of(TTL), None));
    }

    #[test]
    fn a_family_that_a_name_has_no_more_is_gone() {
        let (now, hold, trouble) = known().update(Ok((vec![ip(2)], TTL)), Err(denied()));
        assert_eq!(now.addresses(), [ip(2)]);
        assert_eq!((hold, trouble), (Hold::of(TTL), None));
    }

    #[test]
    fn a_family_that_fails_stays() {
        let (now, hold, trouble) = known().update(Ok((vec![ip(2)], TTL)), Err(failed()));
        assert_eq!(now.addresses(), [ip(2), v6()]);
        assert_eq!((hold, trouble), (Hold { ttl: TTL, retry: true }, Some(failed())));
        let (now, _, trouble) = known().update(Err(denied()), Err(failed()));
        assert_eq!((now, trouble), (known(), Some(failed())), "half an answer takes nothing away");
    }

    #[test]
    fn a_name_that_is_denied_stays_and_the_denial_is_believed() {
        let (now, hold, trouble) = known().update(Err(denied()), Err(denied()));
        assert_eq!(now, known());
        assert_eq!((hold, trouble), (Hold::of(Duration::from_secs(9)), Some(denied())));
    }

    #[test]
    fn a_name_is_complete_once_nothing_of_it_fails() {
        let (now, ..) = Known::default().update(Ok((vec![ip(1)], TTL)), Err(failed()));
        assert!(!now.complete);
        let (now, ..) = now.update(Ok((vec![ip(1)], TTL)), Err(denied()));
        assert!(now.complete);
        let (now, ..) = now.update(Err(failed()), Err(failed()));
        assert!(now.complete, "it has been answered");
    }

    fn candidates(search: &Search, name: &str) -> Vec<String> {
        let candidates = search.candidates(name).expect("a name");
        candidates.iter().map(Name::to_ascii).collect()
    }

    #[test]
    fn names_are_completed_as_the_system_says() {
        let domains = ["models.svc.cluster.local", "svc.cluster.local."];
        let domains = domains.map(|domain| domain.parse().expect("a name")).to_vec();
        let search = Search { domains, ndots: 2 };
        let short = ["engine.models.svc.cluster.local.", "engine.svc.cluster.local.", "engine."];
        assert_eq!(candidates(&search, "engine"), short);
        assert_eq!(candidates(&search, "a.b")[2], "a.b.", "fewer dots than two");
        assert_eq!(candidates(&search, "a.b.c")[0], "a.b.c.");
        assert_eq!(candidates(&search, "a.b.c").len(), 3);
        assert_eq!(candidates(&search, "a."), ["a."], "a closing dot ends a name");
    }

    #[test]
    fn without_search_domains_a_name_is_what_it_is() {
        let search = Search { domains: Vec::new(), ndots: 5 };
        assert_eq!(candidates(&search, "_http._tcp.engine"), ["_http._tcp.engine."]);
        assert!(search.candidates(&"a".repeat(64)).is_err(), "a label has up to 63 letters");
    }

    #[test]
    fn weights_keep_their_proportion() {
        assert_eq!(scaled(&[3, 1, 0]), [3, 1, 1]);
        assert_eq!(scaled(&[1000, 500]), [1000, 500]);
        assert_eq!(scaled(&[65535, 32768, 1]), [1000, 500, 1]);
        assert!(scaled(&[]).is_empty());
    }
}
