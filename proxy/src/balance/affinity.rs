//! From what is remembered to endpoints: which of the present ones served this prompt or session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::{Memory, endpoint_tag};
use super::prefix::Prefix;
use super::{Candidates, Facts};

/// For how long a prompt is taken to be in an endpoint's cache: the engine needs the room for
/// others.
const PROMPT: Duration = Duration::from_secs(600);

/// At how many endpoints a prompt is remembered: a popular one is cached at several.
const COPIES: usize = 4;

/// For how long a session stays where it was.
const SESSION: Duration = Duration::from_secs(3_600);

/// The memory of a backend, and which of its endpoints is who.
#[derive(Debug)]
pub(super) struct Affinity {
    memory: Arc<Memory>,
    /// Tag and index of each endpoint, by tag.
    members: Box<[(u32, u32)]>,
}

impl Affinity {
    pub(super) fn new(members: &[(u64, u32)], memory: &Arc<Memory>) -> Self {
        let tags = members.iter().map(|(id, _)| endpoint_tag(*id));
        let mut members: Box<[_]> = tags.zip(0..).collect();
        members.sort_unstable();
        Self { memory: Arc::clone(memory), members }
    }

    /// Who has computed how much of this prompt, the longest first.
    pub(super) fn of_prompt(&self, prefix: &Prefix, candidates: &impl Candidates) -> Named {
        let mut named = Named::new();
        for (k, &hash) in prefix.hashes().iter().enumerate().rev() {
            self.add(&mut named, hash, PROMPT, candidates, Prefix::bound(k));
        }
        named
    }

    /// Who served this session.
    pub(super) fn of_session(&self, key: u64, candidates: &impl Candidates) -> Named {
        let mut named = Named::new();
        self.add(&mut named, key, SESSION, candidates, 0);
        named
    }

    /// The endpoint computes this prompt.
    pub(super) fn prompt_sent(&self, prefix: &Prefix, endpoint: &Facts, now: Instant) {
        for &hash in prefix.hashes() {
            self.memory.remember(hash, endpoint.id(), COPIES, now);
        }
    }

    /// The endpoint serves this session.
    pub(super) fn session_sent(&self, key: Option<u64>, endpoint: &Facts, now: Instant) {
        if let Some(key) = key {
            self.memory.remember(key, endpoint.id(), 1, now);
        }
    }

    fn add(
        &self,
        named: &mut Named,
        key: u64,
        within: Duration,
        candidates: &impl Candidates,
        bytes: usize,
    ) {
        let tags = self.memory.recall(key, within, candidates.now());
        for i in tags.filter_map(|tag| self.index(tag)).filter(|&i| i < candidates.len()) {
            named.add(i, bytes);
        }
    }

    /// The endpoint of this tag. It may have left.
    fn index(&self, tag: u32) -> Option<usize> {
        let at = self.members.partition_point(|member| member.0 < tag);
        self.members.get(at).filter(|member| member.0 == tag).map(|member| member.1 as usize)
    }
}

/// Endpoints that memory names, and how many bytes of the prompt each has computed.
pub(super) struct Named {
    list: [(usize, usize); Self::MAX],
    len: usize,
}

impl Named {
    /// The most that are named; those of shorter prefixes are left out.
    pub(super) const MAX: usize = 8;

    pub(super) const fn new() -> Self {
        Self { list: [(0, 0); Self::MAX], len: 0 }
    }

    /// Which they are, the longest prefix first.
    pub(super) fn indices(&self) -> impl Iterator<Item = usize> {
        self.known().iter().map(|(i, _)| *i)
    }

    /// How many bytes of the prompt endpoint `i` has computed.
    pub(super) fn bytes(&self, i: usize) -> usize {
        self.known().iter().find(|known| known.0 == i).map_or(0, |known| known.1)
    }

    /// How many endpoints have computed as much of the prompt as endpoint `i`; at least 1.
    pub(super) fn holders(&self, i: usize) -> usize {
        let bytes = self.bytes(i);
        self.known().iter().filter(|known| known.1 >= bytes).count().max(1)
    }

    fn known(&self) -> &[(usize, usize)] {
        &self.list[..self.len]
    }

    fn add(&mut self, i: usize, bytes: usize) {
        if self.len < Self::MAX && !self.indices().any(|known| known == i) {
            self.list[self.len] = (i, bytes);
            self.len += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::Fleet;
    use super::*;

    /// What of this text is remembered where.
    fn known(affinity: &Affinity, text: &[u8], fleet: &Fleet) -> Vec<(usize, usize)> {
        let mut known = affinity.of_prompt(&Prefix::of(text), fleet).known().to_vec();
        known.sort_unstable();
        known
    }

    #[test]
    fn the_longest_match_of_each_endpoint_counts() {
        let mut fleet = Fleet::idle(20);
        let affinity = Affinity::new(&fleet.members(), &fleet.memory);
        let text: Vec<u8> = (0..20_000_u32).map(|i| ((i * i) >> 3) as u8).collect();
        let sent = |i: usize, text: &[u8]| {
            affinity.prompt_sent(&Prefix::of(text), &fleet.facts[i], fleet.now);
        };
        sent(4, &text[..2_100]);
        sent(9, &text[..700]);
        sent(4, &text[..600]);
        sent(7, b"too short to matter");
        assert_eq!(known(&affinity, &text, &fleet), [(4, 2_048), (9, 512)]);
        assert_eq!(known(&affinity, &text[..1_500], &fleet), [(4, 1_024), (9, 512)]);
        assert_eq!(known(&affinity, &text[..511], &fleet), []);
        assert_eq!(known(&affinity, &text[1..], &fleet), []);
        fleet.pass(601.0 + 4.0);
        assert_eq!(known(&affinity, &text, &fleet), []);
    }

    #[test]
    fn the_longest_comes_first_and_is_not_crowded_out() {
        let fleet = Fleet::idle(20);
        let affinity = Affinity::new(&fleet.members(), &fleet.memory);
        let text = [7; 16_384];
        // Three endpoints for each of the shorter bounds, and one for the longest.
        for (i, bound) in [512, 1_024, 2_048, 4_096, 8_192].into_iter().enumerate() {
            for facts in &fleet.facts[3 * i..3 * i + 3] {
                affinity.prompt_sent(&Prefix::of(&text[..bound]), facts, fleet.now);
            }
        }
        affinity.prompt_sent(&Prefix::of(&text), &fleet.facts[19], fleet.now);
        let named = affinity.of_prompt(&Prefix::of(&text), &fleet);
        assert_eq!(named.indices().next(), Some(19));
        assert!(named.indices().count() <= Named::MAX);
        assert_eq!((named.bytes(19), named.bytes(18)), (16_384, 0));
    }

    #[test]
    fn endpoints_are_known_again_in_another_order_and_those_that_left_are_not_named() {
        let mut fleet = Fleet::idle(5);
        let before = Affinity::new(&fleet.members(), &fleet.memory);
        for i in [1, 4] {
            before.prompt_sent(&Prefix::of(&[1; 600]), &fleet.facts[i], fleet.now);
        }
        fleet.facts.reverse();
        fleet.facts.remove(0);
        let after = Affinity::new(&fleet.members(), &fleet.memory);
        assert_eq!(known(&after, &[1; 600], &fleet), [(2, 512)]);
    }

    #[test]
    fn a_session_is_where_it_was_last() {
        let mut fleet = Fleet::idle(5);
        let affinity = Affinity::new(&fleet.members(), &fleet.memory);
        affinity.session_sent(Some(77), &fleet.facts[1], fleet.now);
        affinity.session_sent(Some(77), &fleet.facts[3], fleet.now);
        let named = affinity.of_session(77, &fleet);
        assert!(named.indices().eq([3]));
        fleet.pass(3_605.0);
        assert_eq!(affinity.of_session(77, &fleet).indices().count(), 0);
    }
}
