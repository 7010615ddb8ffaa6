//! The blocks of an engine's KV cache, and what is still in those that nobody uses.
//!
//! As vLLM does it: a block is used by any number of requests; when the last one leaves, a block with a name keeps its
//! content and joins the end of a queue, from whose head blocks are taken when no empty one is left. A request gives its
//! blocks back last block first, so that of one prompt the tail is lost before the head. Blocks without a name are empty
//! as soon as they are given back; real engines would keep them too, until they are overwritten.

use std::collections::{BTreeMap, HashMap};

#[derive(Debug)]
pub(super) struct Cache {
    capacity: u64,
    empty: u64,
    named: HashMap<u64, Block>,
    /// Blocks with a name that nobody uses, least recently used first.
    idle: BTreeMap<u64, u64>,
    /// Counts up; orders `idle`.
    turn: u64,
}

#[derive(Debug)]
struct Block {
    users: u32,
    /// Its place in `idle`, while it has no user.
    turn: u64,
}

impl Cache {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, empty: capacity, named: HashMap::new(), idle: BTreeMap::new(), turn: 0 }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Blocks that nobody uses.
    pub(super) fn available(&self) -> u64 {
        self.empty + self.idle.len() as u64
    }

    /// Blocks that are empty or here under a name: all but those that one request holds alone.
    #[cfg(test)]
    pub(super) fn accounted(&self) -> u64 {
        self.empty + self.named.len() as u64
    }

    /// Gives a request `blocks` blocks, the first of them by name as far as those are here: that many are returned.
    /// None, and nothing given, when there are too few.
    pub(super) fn settle(&mut self, names: &[u64], blocks: u64) -> Option<usize> {
        let found = names.iter().take_while(|name| self.named.contains_key(name)).count();
        let idle = |name: &&u64| self.named.get(name).is_some_and(|block| block.users == 0);
        let woken = names[..found].iter().filter(idle).count() as u64;
        let missing = blocks - found as u64;
        if woken + missing > self.available() {
            return None;
        }
        names[..found].iter().for_each(|name| self.join(*name));
        self.take(missing);
        Some(found)
    }

    /// Takes so many blocks, empty ones first; no more than are available.
    pub(super) fn take(&mut self, blocks: u64) {
        let evicted = blocks.saturating_sub(self.empty);
        self.empty -= blocks - evicted;
        for _ in 0..evicted {
            if let Some((_, name)) = self.idle.pop_first() {
                self.named.remove(&name);
            }
        }
    }

    /// A request has filled blocks of its own that have these names. Where a block of that name is here already, it is
    /// shared from now on and the copy is empty again.
    pub(super) fn keep(&mut self, names: &[u64]) {
        for name in names {
            if self.named.contains_key(name) {
                self.join(*name);
                self.empty += 1;
            } else {
                self.named.insert(*name, Block { users: 1, turn: 0 });
            }
        }
    }

    /// A request gives back `blocks` blocks; the first of them have these names.
    pub(super) fn free(&mut self, names: &[u64], blocks: u64) {
        self.empty += blocks - names.len() as u64;
        for name in names.iter().rev() {
            let Some(block) = self.named.get_mut(name) else { continue };
            block.users -= 1;
            if block.users == 0 {
                self.turn += 1;
                block.turn = self.turn;
                self.idle.insert(self.turn, *name);
            }
        }
    }

    fn join(&mut self, name: u64) {
        let Some(block) = self.named.get_mut(&name) else { return };
        if block.users == 0 {
            self.idle.remove(&block.turn);
        }
        block.users += 1;
    }
}
