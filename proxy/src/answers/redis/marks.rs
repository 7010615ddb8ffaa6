//! Purges that reach every sidecar: what was purged, and which stored answers are older than that.
//!
//! There is no index of keys and nothing is searched for. A purge is a *mark*: a number, put beside what it means (all
//! answers, or those of a route, a model, a tenant, a key, or of several of these at once) in one hash in Redis. Marks only
//! grow, all of them in one sequence: the next is the time of the Redis server in milliseconds, or one more than the last
//! if that is more. Every stored answer carries the latest mark that its writer knew of (`seen`), and is good as long as
//! none of the marks that mean it is later. Every sidecar has a copy of the hash, which it compares once a second; a reader
//! therefore asks Redis for nothing but the answer itself, and looks at sixteen places of the copy at most. A writer or
//! reader whose copy is old does no lasting harm: what it writes is taken for older than it is, and what it reads was good
//! a second ago.
//!
//! A Redis that has lost the hash, but perhaps not all answers, gets it back from whoever remembers it. That is an effort
//! and no promise: where purges and losses follow each other within a second, a purge can be missed.
//!
//! No clock but that of the server is involved, and that only so that marks which no stored answer can be older than may
//! be forgotten ([`RETENTION`]).
//!
//! What has been purged is not served any more; it is gone from Redis when its time to live ends, or when somebody asks
//! for it, whichever comes first.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::{
    answers::{Key, Purge, Tags},
    tenant::Tenant,
};

/// In milliseconds, more than any answer lives here ([`super::LONGEST`]).
pub(super) const RETENTION: u64 = 31 * 86_400_000;

/// The field of the hash that holds the latest mark; those of purges begin with a brace.
pub(super) const LATEST: &str = "latest";

/// What has been purged, as far as it is known here.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    latest: u64,
    /// The latest mark in Redis when all of them were taken up.
    taken_up: u64,
    marks: HashMap<Purge, u64>,
    /// Which sorts of purges there are, as bits: all that need be looked for.
    shapes: u16,
    /// Asked for here, and not in Redis yet: nothing from there that they mean is believed.
    pending: HashSet<Purge>,
}

/// What a look at the hash has brought.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// Purges that were not known here.
    pub(super) news: Vec<Purge>,
    /// What is known here and not there, as the hash should have it.
    pub(super) lost: Vec<(String, u64)>,
}

impl Marks {
    /// The latest mark.
    pub(super) fn latest(&self) -> u64 {
        self.latest
    }

    /// Whether what a writer who knew the marks up to `seen` has stored is good still.
    pub(super) fn allow(&self, key: &Key, tags: &Tags, seen: u64) -> bool {
        let since = |shape| {
            let mark = self.marks.get(&purge_of(shape, key, tags));
            mark.is_some_and(|mark| *mark > seen)
        };
        let purged = seen < self.latest
            && shapes().any(|shape| self.shapes & (1 << shape) != 0 && since(shape));
        !purged && !self.pending.iter().any(|purge| purge.means(key, tags))
    }

    /// A purge was asked for here.
    pub(super) fn ask(&mut self, purge: Purge) {
        self.pending.insert(purge);
    }

    /// It is in Redis, with this mark.
    pub(super) fn settle(&mut self, purge: &Purge, mark: u64) {
        self.pending.remove(purge);
        self.note(purge.clone(), mark);
    }

    /// What is asked for here and not in Redis.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Purge> {
        self.pending.iter()
    }

    /// Whether there is nothing to look for in a hash with this latest mark. One that is older than ours has lost
    /// something, even if we never took it up.
    pub(super) fn are_those_of(&self, latest: u64) -> bool {
        latest == self.taken_up && latest >= self.latest
    }

    /// Takes up the hash and says what is new. What is not in it any more, or is less, stays as it was, and is told as
    /// lost: a Redis that lost its marks has not made anything good again.
    pub(super) fn merge(&mut self, fields: &[(String, u64)]) -> Merged {
        let (mut news, mut there) = (Vec::new(), HashMap::new());
        self.taken_up = 0;
        for (field, mark) in fields {
            if field == LATEST {
                self.taken_up = *mark;
                self.latest = self.latest.max(*mark);
            } else if let Some(purge) = read(field) {
                there.insert(purge.clone(), *mark);
                if self.note(purge.clone(), *mark) {
                    news.push(purge);
                }
            }
        }
        let latest = self.latest;
        self.marks.retain(|_, mark| mark.saturating_add(RETENTION) >= latest);
        let is_lost = |(purge, mark): &(&Purge, &u64)| there.get(*purge).is_none_or(|m| m < *mark);
        let lost = self.marks.iter().filter(is_lost);
        let lost = lost.map(|(purge, mark)| (field(purge), *mark)).collect();
        Merged { news, lost }
    }

    /// Whether it is news.
    fn note(&mut self, purge: Purge, mark: u64) -> bool {
        self.latest = self.latest.max(mark);
        self.shapes |= 1 << shape_of(&purge);
        let known = self.marks.entry(purge).or_default();
        let is_news = mark > *known;
        *known = mark.max(*known);
        is_news
    }
}

/// The sorts of purges: for each of key, route, model and tenant, whether it is given.
fn shapes() -> std::ops::Range<u8> {
    0..16
}

fn shape_of(purge: &Purge) -> u8 {
    let given =
        [purge.key.is_some(), purge.route.is_some(), purge.model.is_some(), purge.tenant.is_some()];
    given.iter().rev().fold(0, |shape, given| (shape << 1) | u8::from(*given))
}

/// The purge of that shape that means this answer.
fn purge_of(shape: u8, key: &Key, tags: &Tags) -> Purge {
    let given = |bit: u8| (shape >> bit) & 1 == 1;
    Purge {
        key: given(0).then_some(*key),
        route: given(1).then(|| tags.route.to_string()),
        model: given(2).then(|| tags.model.to_string()),
        tenant: given(3).then_some(tags.tenant),
    }
}

/// How a purge is written: an operator may want to read it.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Field {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
}

/// The field of the hash.
pub(super) fn field(purge: &Purge) -> String {
    let field = Field {
        key: purge.key.map(|key| key.to_string()),
        route: purge.route.clone(),
        model: purge.model.clone(),
        tenant: purge
            .tenant
            .map(|tenant| format!("{:032x}", u128::from_be_bytes(*tenant.as_bytes()))),
    };
    serde_json::to_string(&field).expect("texts make JSON")
}

fn read(text: &str) -> Option<Purge> {
    // A list would do as well for serde.
    let text = Some(text).filter(|text| text.starts_with('{'))?;
    let Field { key, route, model, tenant } = serde_json::from_str(text).ok()?;
    let key = match key {
        Some(text) => Some(Key::parse(&text)?),
        None => None,
    };
    let tenant = match tenant {
        Some(text) => {
            let number = u128::from_str_radix(&text, 16).ok()?;
            Some(Tenant::from_bytes(number.to_be_bytes()))
        }
        None => None,
    };
    Some(Purge { key, route, model, tenant })
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    fn key(number: u64) -> Key {
        Key::of(number)
    }

    fn tags(route: &str, model: &str, tenant: u8) -> Tags {
        let tenant = Tenant::from_bytes([tenant; 16]);
        Tags { tenant, route: route.into(), arm: "a".into(), model: model.into() }
    }

    fn of_route(route: &str) -> Purge {
        Purge { route: Some(route.to_owned()), ..Purge::default() }
    }

    /// The hash in Redis, and what the script does to it.
    #[derive(Default)]
    struct Server {
        millis: u64,
        hash: HashMap<String, u64>,
    }

    impl Server {
        fn latest(&self) -> u64 {
            self.hash.get(LATEST).copied().unwrap_or(0)
        }

        fn purge(&mut self, purge: &Purge, known: u64) -> u64 {
            let mark = self.millis.max(self.latest().max(known) + 1);
            self.hash.insert(LATEST.to_owned(), mark);
            self.hash.insert(field(purge), mark);
            mark
        }

        fn fields(&self) -> Vec<(String, u64)> {
            self.hash.iter().map(|(field, mark)| (field.clone(), *mark)).collect()
        }
    }

    /// A stored answer and what became of it.
    struct Stored {
        key: Key,
        tags: Tags,
        seen: u64,
        /// Whether its writer knew everything.
        up_to_date: bool,
        /// Whether a purge that means it came later.
        purged: bool,
    }

    fn random_tags(rng: &mut SmallRng) -> Tags {
        let mut name = || rng.random_range(0..3).to_string();
        tags(&name(), &name(), rng.random_range(0..3))
    }

    fn purge(rng: &mut SmallRng) -> Purge {
        let tags = random_tags(rng);
        purge_of(rng.random_range(0..16), &key(rng.random_range(0..4)), &tags)
    }

    /// A look of a sidecar at the purges.
    fn look(server: &Server, marks: &mut Marks) {
        if !marks.are_those_of(server.latest()) {
            marks.merge(&server.fields());
        }
    }

    /// Three sidecars store, purge and read in any order, with copies of any age.
    fn live(seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut server, mut sidecars) = (Server::default(), [(); 3].map(|()| Marks::default()));
        let (mut answers, mut last): (Vec<Stored>, u64) = (Vec::new(), 0);
        for _ in 0..80 {
            server.millis += rng.random_range(0..3);
            let marks = &mut sidecars[rng.random_range(0..3)];
            match rng.random_range(0..20) {
                0..=1 => {
                    let purge = purge(&mut rng);
                    marks.ask(purge.clone());
                    for answer in &mut answers {
                        if purge.means(&answer.key, &answer.tags) {
                            answer.purged = true;
                            let allowed = marks.allow(&answer.key, &answer.tags, answer.seen);
                            assert!(!allowed, "seed {seed}: at once where it was asked for");
                        }
                    }
                    last = server.purge(&purge, marks.latest()).max(last);
                    marks.settle(&purge, server.hash[&field(&purge)]);
                }
                2..=8 => answers.push(Stored {
                    key: key(rng.random_range(0..4)),
                    tags: random_tags(&mut rng),
                    seen: marks.latest(),
                    up_to_date: marks.latest() >= last,
                    purged: false,
                }),
                _ => {
                    look(&server, marks);
                    for answer in &answers {
                        let allowed = marks.allow(&answer.key, &answer.tags, answer.seen);
                        assert!(!(allowed && answer.purged), "seed {seed}: served after a purge");
                        let lost = answer.up_to_date && !answer.purged && !allowed;
                        assert!(!lost, "seed {seed}: purged by nobody");
                    }
                }
            }
        }
        (0..3).for_each(|_| sidecars.iter_mut().for_each(|marks| look(&server, marks)));
        let [one, two, three] = sidecars.map(|marks| (marks.taken_up, marks.marks));
        assert!(one == two && two == three, "seed {seed}: in the end all know the same");
        assert!(one.0 >= last, "seed {seed}: in the end all know all");
    }

    #[test]
    fn what_was_purged_is_never_read_and_nothing_else_is_lost() {
        (0..2000).for_each(live);
    }

    #[test]
    fn a_purge_is_news_once() {
        let mut marks = Marks::default();
        let fields = [(field(&of_route("a")), 3), (LATEST.to_owned(), 3), ("what".to_owned(), 9)];
        assert_eq!(marks.merge(&fields).news, [of_route("a")]);
        assert_eq!(marks.merge(&fields).news, []);
        let less = marks.merge(&[(field(&of_route("a")), 2)]);
        assert_eq!(less.news, [], "less is no news");
        assert_eq!(less.lost, fields[..1], "but a loss");
        assert_eq!(marks.latest(), 3);
        assert!(!marks.are_those_of(0) && !marks.are_those_of(3), "to be looked at again");
    }

    #[test]
    fn a_purge_that_has_not_reached_redis_holds_here() {
        let (mut marks, tags, purge) = (Marks::default(), tags("r", "", 0), of_route("r"));
        marks.ask(purge.clone());
        assert!(!marks.allow(&key(0), &tags, u64::MAX), "whoever wrote it");
        marks.settle(&purge, 7);
        assert!(marks.allow(&key(0), &tags, 7) && !marks.allow(&key(0), &tags, 6));
        assert_eq!(marks.pending().count(), 0);
    }

    #[test]
    fn marks_older_than_any_answer_are_forgotten() {
        let mut marks = Marks::default();
        marks.merge(&[(field(&Purge::default()), 1)]);
        assert!(!marks.allow(&key(0), &tags("r", "", 0), 0));
        marks.merge(&[(LATEST.to_owned(), 2 + RETENTION)]);
        assert!(marks.allow(&key(0), &tags("r", "", 0), 0));
    }

    #[test]
    fn fields_are_read_as_they_are_written() {
        let tags = tags("a route", "model: \"x\" 模", 9);
        for shape in shapes() {
            let purge = purge_of(shape, &key(5), &tags);
            assert_eq!((shape_of(&purge), read(&field(&purge))), (shape, Some(purge)));
        }
        for other in ["", LATEST, "[]", r#"{"key":"12"}"#, r#"{"tenant":"x"}"#, r#"{"arm":"a"}"#] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
