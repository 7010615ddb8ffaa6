//! Purges that reach every sidecar: what was purged, and which stored answers are older than that.
//!
//! There is no index of keys and nothing is searched for. A purge is a *mark*: a number, put beside what it means (all
//! answers, or those of a route, a model, a tenant, a key, or of several of these at once) in one hash in Redis. Marks only
//! grow, all of them in one sequence: the next is the time of the Redis server in milliseconds, or one more than the last
//! if that is more. Every stored answer carries the latest mark that its writer knew of ([`Seen`]), and is good as long as
//! none of the marks that mean it is later. Every sidecar has a copy of the hash, which it compares once a second (`look`);
//! a reader therefore asks Redis for nothing but the answer itself, and looks at sixteen places of the copy at most. A
//! writer or reader whose copy is old does no lasting harm: what it writes is taken for older than it is, and what it reads
//! was good a second ago.
//!
//! Redis may lose the hash and keep answers: the hash is evicted, the node of a cluster that had it comes back empty, or
//! with what it had an hour ago. So the sequence has an *epoch*, a random number in the hash. Whoever misses the hash, or
//! something in it that was there, begins a new epoch, and an answer of another epoch is not believed: nobody can know
//! which purge it has missed. No clock and nobody's memory is needed for that.
//!
//! The memory of a sidecar is not emptied when an epoch begins: then a Redis that lost its data would cost requests. It
//! may have missed a purge that was lost before it was looked for, though. So whoever knows a purge of the epoch before
//! tells it again, with the random number that it was given when it was asked for: by that, those who know it already
//! tell that it is nothing new.
//!
//! What remains: a purge that is in no memory of a living sidecar and not in the hash any more can not be known. Answers in
//! Redis go with the epoch even so, unless Redis came back with an older copy of its data, hash and all, and nobody is left
//! who knew better, or its clock went back as well and gave a number twice. Answers in another sidecar's memory may stay in
//! both cases.
//!
//! No clock but that of the server is involved, and that only so that marks which no stored answer can be older than may
//! be forgotten ([`RETENTION`]).
//!
//! What has been purged is not served any more; it is gone from Redis when its time to live ends, or when somebody asks
//! for it, whichever comes first.

mod field;
mod look;
#[cfg(test)]
mod simulation;

use std::collections::HashMap;

use crate::answers::{Key, Purge, Tags};

pub(super) use field::{EPOCH, LATEST, hash, numbers, read_written, texts};
pub(super) use look::{Ledger, change, look};

/// In milliseconds, more than any answer lives here ([`super::LONGEST`]).
pub(super) const RETENTION: u64 = 31 * 86_400_000;

/// The epoch of who knows none, and of a hash that has none.
pub(super) const NONE: u64 = 0;

/// Up to where somebody knows the purges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The sequence that the mark belongs to.
    pub(super) epoch: u64,
    /// The latest mark.
    pub(super) latest: u64,
}

/// What stands beside a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its place in the sequence.
    number: u64,
    /// Drawn when it was asked for: the same in every epoch.
    id: u64,
}

/// What has become of purges that were told to Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The mark of all of them.
    pub(super) number: u64,
    /// What identifies each there.
    pub(super) ids: Vec<u64>,
}

/// The hash in Redis as it is at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Hash {
    pub(super) seen: Seen,
    pub(super) marks: HashMap<Purge, Mark>,
}

/// What has been purged, as far as it is known here.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    seen: Seen,
    /// The latest mark in Redis when all of them were taken up.
    taken_up: u64,
    marks: HashMap<Purge, Mark>,
    /// Which sorts of purges there are, as bits: all that need be looked for.
    shapes: u16,
    /// To be told to Redis, with what identifies it: nothing from there that they mean is believed meanwhile.
    pending: HashMap<Purge, u64>,
}

/// What is to be thought of an answer in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody has purged it.
    Good,
    /// Somebody has.
    Purged,
    /// Nobody can know: it is of another epoch. That may be one which is not known here yet.
    Unknown,
}

/// What has come of the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// It was taken up; these purges were not known here.
    News(Vec<Purge>),
    /// It has lost something: an epoch must begin.
    Lost,
}

impl Marks {
    /// What an answer that is stored now is good up to.
    pub(super) fn seen(&self) -> Seen {
        self.seen
    }

    /// What is to be thought of what a writer has stored who knew the marks up to `seen`.
    pub(super) fn judge(&self, key: &Key, tags: &Tags, seen: Seen) -> Standing {
        if self.seen.epoch == NONE || seen.epoch != self.seen.epoch {
            return Standing::Unknown;
        }
        let since = |shape| {
            let mark = self.marks.get(&purge_of(shape, key, tags));
            mark.is_some_and(|mark| mark.number > seen.latest)
        };
        let purged = seen.latest < self.seen.latest
            && shapes().any(|shape| self.shapes & (1 << shape) != 0 && since(shape));
        match purged || self.pending.keys().any(|purge| purge.means(key, tags)) {
            true => Standing::Purged,
            false => Standing::Good,
        }
    }

    /// A purge was asked for here. `id` is a random number.
    pub(super) fn ask(&mut self, purge: Purge, id: u64) {
        self.pending.insert(purge, id);
    }

    /// These pending ones are in Redis, so written, in this epoch. Gives those that stood there already with another
    /// identity: they may be news.
    pub(super) fn settle(
        &mut self,
        epoch: u64,
        purges: &[(Purge, u64)],
        written: &Written,
    ) -> Vec<Purge> {
        if epoch != self.seen.epoch {
            return Vec::new();
        }
        let number = written.number;
        self.seen.latest = self.seen.latest.max(number);
        let mut news = Vec::new();
        for ((purge, asked), id) in purges.iter().zip(&written.ids) {
            // It may have been asked for again meanwhile.
            if self.pending.get(purge) == Some(asked) {
                self.pending.remove(purge);
            }
            self.note(purge, Mark { number, id: *id });
            if id != asked {
                news.push(purge.clone());
            }
        }
        news
    }

    /// What is to be told to Redis.
    pub(super) fn pending(&self) -> Vec<(Purge, u64)> {
        self.pending.iter().map(|(purge, id)| (purge.clone(), *id)).collect()
    }

    /// Whether there is nothing to look for in a hash that goes up to there.
    pub(super) fn are_those_of(&self, seen: Seen) -> bool {
        seen.epoch != NONE && seen == self.seen && seen.latest == self.taken_up
    }

    /// Takes up the hash, unless it has lost something: then nothing changes.
    pub(super) fn merge(&mut self, hash: &Hash) -> Merged {
        let same = hash.seen.epoch == self.seen.epoch;
        if hash.seen.epoch == NONE || (same && self.exceeds(hash)) {
            return Merged::Lost;
        }
        if !same {
            self.leave_for(hash);
        }
        self.seen = hash.seen;
        self.taken_up = hash.seen.latest;
        let news = hash.marks.iter().filter(|(purge, mark)| self.note(purge, **mark));
        let news = news.map(|(purge, _)| purge.clone()).collect();
        let latest = self.seen.latest;
        self.marks.retain(|_, mark| mark.is_kept(latest));
        Merged::News(news)
    }

    /// Whether something is known here that the hash of the same epoch has lost.
    fn exceeds(&self, hash: &Hash) -> bool {
        let latest = hash.seen.latest;
        let is_lost = |purge: &Purge, mark: &Mark| match hash.marks.get(purge) {
            None => mark.is_kept(latest),
            Some(there) => {
                there.number < mark.number || (there.number == mark.number && there.id != mark.id)
            }
        };
        self.seen.latest > latest || self.marks.iter().any(|(purge, mark)| is_lost(purge, mark))
    }

    /// Another epoch: what was known in the one before and is not in this hash is to be told again.
    fn leave_for(&mut self, hash: &Hash) {
        self.shapes = 0;
        for (purge, mark) in std::mem::take(&mut self.marks) {
            match hash.marks.get(&purge) {
                Some(there) if there.id == mark.id => _ = self.marks.insert(purge, mark),
                _ => _ = self.pending.entry(purge).or_insert(mark.id),
            }
        }
    }

    /// Whether it is news.
    fn note(&mut self, purge: &Purge, mark: Mark) -> bool {
        self.shapes |= 1 << shape_of(purge);
        let known = self.marks.insert(purge.clone(), mark);
        let told = self.pending.get(purge) == Some(&mark.id);
        if told {
            self.pending.remove(purge);
        }
        !told && known.is_none_or(|known| known.id != mark.id)
    }
}

impl Mark {
    /// Whether an answer may be older than it, when the latest mark is this.
    fn is_kept(&self, latest: u64) -> bool {
        self.number.saturating_add(RETENTION) >= latest
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::Tenant;

    fn key() -> Key {
        Key::of(0)
    }

    fn tags() -> Tags {
        let tenant = Tenant::from_bytes([0; 16]);
        Tags { tenant, route: "r".into(), arm: "a".into(), model: "m".into() }
    }

    fn of_route(route: &str) -> Purge {
        Purge { route: Some(route.to_owned()), ..Purge::default() }
    }

    fn seen(epoch: u64, latest: u64) -> Seen {
        Seen { epoch, latest }
    }

    /// A hash of that epoch with the purge of a route, of that number and identity.
    fn hash_of(epoch: u64, route: &str, number: u64, id: u64) -> Hash {
        let marks = HashMap::from([(of_route(route), Mark { number, id })]);
        Hash { seen: seen(epoch, number), marks }
    }

    fn news(purges: &[Purge]) -> Merged {
        Merged::News(purges.to_vec())
    }

    #[test]
    fn nothing_is_believed_before_an_epoch_is_known_and_nothing_of_another() {
        let mut marks = Marks::default();
        assert_eq!(marks.judge(&key(), &tags(), seen(NONE, 0)), Standing::Unknown);
        assert_eq!(marks.merge(&Hash::default()), Merged::Lost, "there is none to be known");
        assert_eq!(marks.merge(&hash_of(1, "x", 3, 9)), news(&[of_route("x")]));
        assert_eq!(marks.judge(&key(), &tags(), seen(1, 0)), Standing::Good);
        assert_eq!(marks.judge(&key(), &tags(), seen(2, u64::MAX)), Standing::Unknown);
    }

    #[test]
    fn a_purge_is_news_once_also_in_another_epoch() {
        let mut marks = Marks::default();
        assert_eq!(marks.merge(&hash_of(1, "a", 3, 9)), news(&[of_route("a")]));
        assert_eq!(marks.merge(&hash_of(1, "a", 3, 9)), news(&[]));
        assert_eq!(marks.merge(&hash_of(2, "a", 1, 9)), news(&[]), "told again");
        assert_eq!(marks.merge(&hash_of(2, "a", 4, 8)), news(&[of_route("a")]), "asked again");
    }

    #[test]
    fn less_than_there_was_is_a_loss_and_changes_nothing() {
        let mut marks = Marks::default();
        marks.merge(&hash_of(1, "a", 3, 9));
        for less in [hash_of(1, "a", 2, 9), hash_of(1, "b", 4, 9), hash_of(1, "a", 3, 8)] {
            assert_eq!(marks.merge(&less), Merged::Lost, "{less:?}");
            assert_eq!(marks.seen(), seen(1, 3));
            assert!(!marks.are_those_of(less.seen) || less.seen == marks.seen());
        }
    }

    #[test]
    fn what_was_known_of_the_epoch_before_is_told_again() {
        let mut marks = Marks::default();
        marks.merge(&hash_of(1, "r", 3, 9));
        assert_eq!(marks.merge(&hash_of(2, "x", 1, 7)), news(&[of_route("x")]));
        assert_eq!(marks.pending(), [(of_route("r"), 9)]);
        assert_eq!(marks.judge(&key(), &tags(), seen(2, 1)), Standing::Purged, "meanwhile");
        let (pending, written) = (marks.pending(), Written { number: 5, ids: vec![9] });
        assert_eq!(marks.settle(1, &pending, &written), []);
        assert_eq!(marks.pending().len(), 1, "an answer of the epoch before");
        assert_eq!(marks.settle(2, &pending, &written), []);
        assert_eq!((marks.pending(), marks.seen()), (Vec::new(), seen(2, 5)));
        assert_eq!(marks.judge(&key(), &tags(), seen(2, 4)), Standing::Purged);
        assert_eq!(marks.judge(&key(), &tags(), seen(2, 5)), Standing::Good);
    }

    #[test]
    fn what_is_told_again_over_something_newer_is_news_to_all() {
        let mut marks = Marks::default();
        marks.merge(&hash_of(1, "r", 3, 9));
        marks.merge(&hash_of(2, "x", 1, 7));
        // Somebody has purged the same in the new epoch, and nobody here has seen it.
        let written = Written { number: 5, ids: vec![8] };
        assert_eq!(marks.settle(2, &marks.pending(), &written), [of_route("r")]);
        assert_eq!(marks.pending(), []);
    }

    #[test]
    fn a_purge_that_has_not_reached_redis_holds_here() {
        let mut marks = Marks::default();
        marks.merge(&hash_of(1, "x", 3, 9));
        marks.ask(of_route("r"), 5);
        assert_eq!(marks.judge(&key(), &tags(), seen(1, u64::MAX)), Standing::Purged);
        // The answer to what told Redis was lost on the way.
        let mut there = hash_of(1, "r", 7, 5);
        there.marks.extend(hash_of(1, "x", 3, 9).marks);
        assert_eq!(marks.merge(&there), news(&[]), "it was asked for here");
        assert_eq!(marks.pending(), []);
        assert_eq!(marks.judge(&key(), &tags(), seen(1, 6)), Standing::Purged);
        assert_eq!(marks.judge(&key(), &tags(), seen(1, 7)), Standing::Good);
    }

    #[test]
    fn marks_older_than_any_answer_are_forgotten_and_not_missed() {
        let mut marks = Marks::default();
        marks.merge(&hash_of(1, "r", 1, 9));
        assert_eq!(marks.judge(&key(), &tags(), seen(1, 0)), Standing::Purged);
        let later = Hash { seen: seen(1, 2 + RETENTION), marks: HashMap::new() };
        assert_eq!(marks.merge(&later), news(&[]));
        assert_eq!(marks.judge(&key(), &tags(), seen(1, 0)), Standing::Good);
    }

    #[test]
    fn a_shape_and_an_answer_make_the_purge_of_that_shape() {
        for shape in shapes() {
            let purge = purge_of(shape, &key(), &tags());
            assert_eq!(shape_of(&purge), shape);
            assert!(purge.means(&key(), &tags()));
        }
    }
}
