//! How many requests an application may have at once, judged by how long they lie in its socket before it reads them.
//!
//! Why: what waits in the application's socket is out of anybody's hands: it has no priority there, cannot go elsewhere,
//! and is worked on even when nobody wants it any more. In our own queue it can. So when a standing queue is seen in the
//! socket, fewer requests are let in at once, until there is none.
//!
//! What it decides: a queue is standing when even the shortest wait within 100 ms was longer than 5 ms (the target and
//! interval of CoDel, RFC 8289: a burst that is worked off is none). Then the limit falls to four fifths of what was in
//! flight; while there is none it rises by a tenth per interval, and is gone when it is twice of what was in flight.
//!
//! What it leaves out: clocks and locks. One thread tells of waits, in order; any may ask.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The shortest wait of an interval that is a standing queue, in nanoseconds.
const TARGET: u64 = 5_000_000;

/// Over which the shortest wait is looked for, in nanoseconds.
const INTERVAL: u64 = 100_000_000;

/// No limit.
const UNLIMITED: u32 = 0;

/// The pressure at one endpoint.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// The limit that is in force.
    most: AtomicU32,
    /// The most that were in flight since it was judged last.
    peak: AtomicU32,
}

/// The present interval, which belongs to the one who tells.
#[derive(Debug, Default)]
pub(super) struct Interval {
    since: u64,
    shortest: Option<u64>,
}

impl Pressure {
    /// So many are in flight, the newest included.
    pub(super) fn enters(&self, in_flight: u32) {
        self.peak.fetch_max(in_flight, Relaxed);
    }

    /// How many may be in flight; `None` when that does not matter.
    pub(super) fn most(&self) -> Option<u32> {
        Some(self.most.load(Relaxed)).filter(|most| *most != UNLIMITED)
    }

    /// A request was read at `now`, after it had waited so long; both in nanoseconds. Whether more may come in than before.
    pub(super) fn waited(&self, interval: &mut Interval, now: u64, wait: u64) -> bool {
        let shortest = interval.shortest.map_or(wait, |shortest| shortest.min(wait));
        if interval.shortest.is_none() {
            interval.since = now;
        }
        interval.shortest = Some(shortest);
        if now.saturating_sub(interval.since) < INTERVAL {
            return false;
        }
        *interval = Interval::default();
        let (before, peak) = (self.most(), self.peak.swap(0, Relaxed).max(1));
        let most = if shortest > TARGET { lower(before, peak) } else { raise(before, peak) };
        self.most.store(most.unwrap_or(UNLIMITED), Relaxed);
        most.is_none_or(|most| before.is_some_and(|before| most > before))
    }
}

fn lower(before: Option<u32>, peak: u32) -> Option<u32> {
    let from = before.map_or(peak, |before| before.min(peak));
    Some((from * 4 / 5).max(1))
}

fn raise(before: Option<u32>, peak: u32) -> Option<u32> {
    let most = before?;
    let more = most + (most / 10).max(1);
    (more < peak.saturating_mul(2)).then_some(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// An application that reads so many at once, without delay, and each takes 10 ms; and as many clients as the limit
    /// lets in, of those who want to. The limits in the order in which they came.
    fn limits(reads: u32, clients: u32, intervals: u64) -> Vec<Option<u32>> {
        let (pressure, mut interval) = (Pressure::default(), Interval::default());
        let mut limits = Vec::new();
        for step in 0..intervals * 10 {
            let in_flight = pressure.most().map_or(clients, |most| most.min(clients));
            pressure.enters(in_flight);
            // Those beyond what is read at once wait for a turn of 10 ms each.
            let wait = u64::from(in_flight / reads) * 10 * MS;
            let before = pressure.most();
            pressure.waited(
                &mut interval,
                step * 10 * MS,
                if in_flight < reads { 0 } else { wait },
            );
            if pressure.most() != before || step == 0 {
                limits.push(pressure.most());
            }
        }
        limits
    }

    #[test]
    fn a_standing_queue_is_let_out_of_the_socket() {
        let limits = limits(8, 100, 200);
        assert_eq!(limits[..3], [None, Some(80), Some(64)]);
        let settled: Vec<_> =
            limits[limits.len() / 2..].iter().map(|it| it.expect("one")).collect();
        assert!(settled.iter().all(|most| (5..=10).contains(most)), "{settled:?}");
    }

    #[test]
    fn where_nothing_waits_there_is_no_limit() {
        assert_eq!(limits(200, 100, 50), [None]);
    }

    #[test]
    fn a_burst_is_no_standing_queue() {
        let (pressure, mut interval) = (Pressure::default(), Interval::default());
        pressure.enters(50);
        for step in 0..1000 {
            let wait = if step % 20 == 0 { 0 } else { 30 * MS };
            pressure.waited(&mut interval, step * MS, wait);
        }
        assert_eq!(pressure.most(), None);
    }

    #[test]
    fn it_ends_when_the_load_does() {
        let (pressure, mut interval) = (Pressure::default(), Interval::default());
        pressure.enters(50);
        let tell = |interval: &mut Interval, from: u64, wait: u64| {
            (0..=100).filter(|at| pressure.waited(interval, (from + at) * MS, wait)).count()
        };
        assert_eq!(tell(&mut interval, 0, 6 * MS), 0);
        assert_eq!(pressure.most(), Some(40));
        pressure.enters(40);
        assert_eq!(tell(&mut interval, 200, 0), 1, "whoever waits may look");
        assert_eq!(pressure.most(), Some(44));
        pressure.enters(3);
        assert_eq!((tell(&mut interval, 400, 0), pressure.most()), (1, None));
    }
}
