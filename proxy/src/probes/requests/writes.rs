//! Single writes of answers, kept until their request has ended: whoever is traced is told each of them.
//!
//! The kernel tells them of every request, for it does not know which are traced; so they are kept in bounds, and what is
//! beyond is counted as lost. A pure core: no kernel, no clock.

use std::collections::VecDeque;

use outrigger_probes::Write;
use rustc_hash::FxHashMap;

use super::fold::Span;

/// How many writes of a burst the kernel tells one by one: as many events as a span has by OpenTelemetry's default.
pub(super) const TOLD: u32 = 128;

/// Writes of one connection that are kept: those of the requests that end within a round.
const MOST_OF_ONE: usize = 2 * TOLD as usize;

/// Writes that are kept in all, 8 MiB: of two thousand streams at once.
const MOST: usize = 1 << 18;

/// Those that are kept, by connection and in the order in which they were told.
#[derive(Default)]
pub(super) struct Writes {
    heard: FxHashMap<u64, VecDeque<Write>>,
    kept: usize,
}

impl Writes {
    /// The kernel told of a write. Whether there was room.
    pub(super) fn heard(&mut self, write: Write) -> bool {
        if self.kept >= MOST {
            return false;
        }
        let heard = self.heard.entry(write.connection).or_default();
        if heard.len() >= MOST_OF_ONE {
            return false;
        }
        heard.push_back(write);
        self.kept += 1;
        true
    }

    /// Those of a request that has ended, or none if they are not wanted. They are not kept any more, as those before are not.
    pub(super) fn take(&mut self, span: &Span, is_wanted: bool) -> Vec<Write> {
        let mut taken = Vec::new();
        if let Some(heard) = self.heard.get_mut(&span.connection) {
            while let Some(write) = heard.pop_front_if(|write| write.offset < span.end) {
                self.kept -= 1;
                if is_wanted && write.offset >= span.start {
                    taken.push(write);
                }
            }
        }
        taken
    }

    /// The connection is gone.
    pub(super) fn forget(&mut self, connection: u64) {
        self.kept -= self.heard.remove(&connection).map_or(0, |heard| heard.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(connection: u64, offset: u64, at: u64) -> Write {
        Write { connection, offset, at, bytes: 10 }
    }

    fn span(start: u64, end: u64) -> Span {
        Span { connection: 1, key: 9, start, end, sent: 0, ended: 0, complete: true }
    }

    fn times(writes: &[Write]) -> Vec<u64> {
        writes.iter().map(|write| write.at).collect()
    }

    #[test]
    fn a_request_has_the_writes_of_its_bytes() {
        let mut writes = Writes::default();
        for (connection, offset, at) in
            [(1, 0, 11), (1, 0, 12), (2, 10, 13), (1, 10, 21), (1, 15, 22), (1, 30, 31)]
        {
            assert!(writes.heard(write(connection, offset, at)));
        }
        assert_eq!(times(&writes.take(&span(10, 30), true)), [21, 22], "those before have ended");
        assert!(writes.take(&span(0, 10), true).is_empty());
        assert_eq!(times(&writes.take(&span(30, 40), true)), [31]);
        assert_eq!(writes.kept, 1);
        writes.forget(2);
        assert_eq!(writes.kept, 0);
    }

    #[test]
    fn no_connection_keeps_more_than_its_share() {
        let mut writes = Writes::default();
        let kept = (0..1000).filter(|at| writes.heard(write(1, 0, *at))).count();
        assert_eq!(kept, MOST_OF_ONE);
        assert!(writes.heard(write(2, 0, 1)));
        assert_eq!(writes.take(&span(0, 1), false), [], "nobody wants them");
        assert!(writes.heard(write(1, 0, 1)), "there is room again");
    }

    #[test]
    fn all_connections_together_are_bounded() {
        let mut writes = Writes::default();
        let all = (0..2000).flat_map(|connection| (0..200).map(move |at| write(connection, 0, at)));
        assert_eq!(all.filter(|write| writes.heard(*write)).count(), MOST);
        for connection in 0..2000 {
            writes.forget(connection);
        }
        assert!(writes.kept == 0 && writes.heard.is_empty());
    }
}
