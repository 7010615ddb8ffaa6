//! What the scheduler tells of processes: how long their threads ran, and how long they were ready to and had no
//! processor. Numbers are those of `/proc/PID/task/TID/schedstat` (the kernel's documentation, "Scheduler Statistics").
//!
//! Left out: reading files and finding processes.

use std::{collections::HashMap, ops::AddAssign};

/// Nanoseconds that a thread ran, and that it waited for a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ran {
    pub(super) cpu: u64,
    pub(super) waited: u64,
}

impl Ran {
    /// Reads a `schedstat`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(str::parse);
        Some(Ran { cpu: numbers.next()?.ok()?, waited: numbers.next()?.ok()? })
    }

    /// What came since; all of it when the number of a thread was given to another one in between.
    fn since(self, before: Ran) -> Ran {
        if self.cpu < before.cpu || self.waited < before.waited {
            return self;
        }
        Ran { cpu: self.cpu - before.cpu, waited: self.waited - before.waited }
    }
}

impl AddAssign for Ran {
    fn add_assign(&mut self, other: Ran) {
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.waited = self.waited.saturating_add(other.waited);
    }
}

/// What the threads of processes had run by the last round.
#[derive(Default)]
pub(super) struct Ledger(HashMap<u32, HashMap<u32, Ran>>);

impl Ledger {
    /// What the threads of these processes ran since the last round, by process. What a process did before it was first
    /// seen does not count; a thread that is new in a known one counts from its beginning. What a thread did after its
    /// last round goes with it.
    pub(super) fn round(&mut self, seen: HashMap<u32, HashMap<u32, Ran>>) -> HashMap<u32, Ran> {
        let mut done = HashMap::with_capacity(seen.len());
        for (process, threads) in &seen {
            let mut sum = Ran::default();
            if let Some(before) = self.0.get(process) {
                for (thread, now) in threads {
                    sum += now.since(before.get(thread).copied().unwrap_or_default());
                }
            }
            done.insert(*process, sum);
        }
        self.0 = seen;
        done
    }
}

/// A number of `/proc/net/netstat`: a line of names under `TcpExt:`, and below it one of values.
pub(super) fn tcp_ext(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let at = lines.next()?.split_ascii_whitespace().position(|found| found == name)?;
    lines.next()?.split_ascii_whitespace().nth(at)?.parse().ok()
}

/// The socket that an entry of `/proc/PID/fd` leads to.
pub(super) fn inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(cpu: u64, waited: u64) -> Ran {
        Ran { cpu, waited }
    }

    fn seen<const N: usize>(threads: [(u32, u64, u64); N]) -> HashMap<u32, HashMap<u32, Ran>> {
        let threads = threads.map(|(thread, cpu, waited)| (thread, ran(cpu, waited)));
        HashMap::from([(1, HashMap::from(threads))])
    }

    #[test]
    fn what_a_thread_did_is_two_numbers() {
        assert_eq!(Ran::parse("1286 37 4\n"), Some(ran(1286, 37)));
        for text in ["", "12", "12 x 3", "-1 2 3", "99999999999999999999999 1 1"] {
            assert_eq!(Ran::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_process_counts_from_when_it_was_first_seen() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.round(seen([(1, 1000, 100)])), HashMap::from([(1, ran(0, 0))]));
        assert_eq!(ledger.round(seen([(1, 1500, 120)])), HashMap::from([(1, ran(500, 20))]));
        // It was not seen for a round: what it did then is not known to be since.
        ledger.round(HashMap::new());
        assert_eq!(ledger.round(seen([(1, 1600, 130)])), HashMap::from([(1, ran(0, 0))]));
    }

    #[test]
    fn threads_come_and_go() {
        let mut ledger = Ledger::default();
        ledger.round(seen([(1, 1000, 100), (2, 5000, 50)]));
        // 2 has ended, 3 is new.
        let done = ledger.round(seen([(1, 1010, 100), (3, 7, 2)]));
        assert_eq!(done, HashMap::from([(1, ran(17, 2))]));
        // The number 3 was given to another thread.
        let done = ledger.round(seen([(1, 1010, 100), (3, 5, 1)]));
        assert_eq!(done, HashMap::from([(1, ran(5, 1))]));
    }

    #[test]
    fn a_number_is_found_by_its_name() {
        let text = "IpExt: InNoRoutes ListenOverflows\nIpExt: 1 99\n\
                    TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 12 15\n";
        assert_eq!(tcp_ext(text, "ListenOverflows"), Some(12));
        assert_eq!(tcp_ext(text, "ListenDrops"), Some(15));
        assert_eq!(tcp_ext(text, "InNoRoutes"), None);
        for text in ["", "TcpExt: A\n", "TcpExt: A\nTcpExt:\n", "TcpExt: A\nTcpExt: x\n"] {
            assert_eq!(tcp_ext(text, "A"), None, "{text:?}");
        }
    }

    #[test]
    fn a_file_may_be_a_socket() {
        assert_eq!(inode("socket:[4242]"), Some(4242));
        for link in ["", "pipe:[4242]", "socket:[42", "socket:[]", "socket:[99999999999]"] {
            assert_eq!(inode(link), None, "{link:?}");
        }
    }
}
