//! The kernel's part of one request's timeline: when its bytes reached the application, when they were read, when the
//! answer was written.

use std::time::Duration;

use outrigger_probes::Burst;

use crate::probes::overlap::GpuWait;

/// What the kernel saw of one request. Times are nanoseconds of CLOCK_MONOTONIC; `None` is "not seen".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// When the proxy began to send it.
    pub sent: Option<u64>,
    /// When its first segment reached the application's socket.
    pub arrived: Option<u64>,
    /// When the application had read first.
    pub picked: Option<u64>,
    /// When it had read last.
    pub read: Option<u64>,
    /// When it had written first.
    pub first_write: Option<u64>,
    /// When it had written last.
    pub last_write: Option<u64>,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// How often something was written.
    pub writes: u64,
    /// The longest that two writes in a row were apart.
    pub longest_gap: Duration,
    /// The process that read first, as the PID namespace of the proxy counts; where it does not have it, as the first.
    pub process: u32,
    /// Its thread, likewise.
    pub thread: u32,
    /// How much of it was spent waiting for the GPU, where a probe looks at that.
    pub gpu: Option<GpuWait>,
}

impl Timeline {
    /// What these bursts were together, in order of their offsets; `None` without any. The proxy began to send at the
    /// first of these times (0: it did not look at the clock), and had the answer at the second.
    pub(super) fn of(
        (sent, ended): (u64, u64),
        bursts: impl IntoIterator<Item = Burst>,
    ) -> Option<Self> {
        let mut bursts = bursts.into_iter();
        let mut whole = bursts.next()?;
        for burst in bursts {
            merge(&mut whole, &burst);
        }
        if whole.flags & Burst::LATE != 0 {
            // The kernel knows only that it was before the next request.
            whole.first_write = whole.first_write.min(ended);
            whole.last_write = whole.last_write.min(ended);
        }
        let seen = |at: u64| (at != 0).then_some(at);
        Some(Timeline {
            sent: seen(sent),
            arrived: seen(whole.arrived),
            picked: seen(whole.picked),
            read: seen(whole.read),
            first_write: seen(whole.first_write),
            last_write: seen(whole.last_write),
            bytes_in: whole.bytes_in,
            bytes_out: whole.bytes_out,
            writes: whole.writes,
            longest_gap: Duration::from_nanos(whole.longest_gap),
            process: whole.process(),
            thread: whole.thread(),
            gpu: None,
        })
    }

    /// Whether every step was seen.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let seen = [self.arrived, self.picked, self.first_write, self.last_write];
        seen.iter().all(Option::is_some)
    }

    /// From the proxy beginning to send it to its first segment at the application's socket.
    #[must_use]
    pub fn wire(&self) -> Option<Duration> {
        between(self.sent, self.arrived)
    }

    /// How long it lay in the application's socket before it was read.
    #[must_use]
    pub fn socket_wait(&self) -> Option<Duration> {
        between(self.arrived, self.picked)
    }

    /// From being read to the first byte of the answer being written.
    #[must_use]
    pub fn first_byte(&self) -> Option<Duration> {
        between(self.picked, self.first_write)
    }

    /// From the first byte of the answer being written to the last.
    #[must_use]
    pub fn answer(&self) -> Option<Duration> {
        between(self.first_write, self.last_write)
    }
}

/// Clocks of different processors may differ by a few nanoseconds: nothing ends before it began.
fn between(from: Option<u64>, to: Option<u64>) -> Option<Duration> {
    Some(Duration::from_nanos(to?.saturating_sub(from?)))
}

/// Adds a later burst of the same request.
pub(super) fn merge(whole: &mut Burst, later: &Burst) {
    let first = |a: u64, b: u64| if a == 0 { b } else { a };
    whole.arrived = first(whole.arrived, later.arrived);
    (whole.picked, whole.task) = match whole.picked {
        0 => (later.picked, later.task),
        picked => (picked, whole.task),
    };
    whole.read = whole.read.max(later.read);
    whole.first_write = first(whole.first_write, later.first_write);
    if whole.last_write != 0 && later.first_write != 0 {
        let between = later.first_write.saturating_sub(whole.last_write);
        whole.longest_gap = whole.longest_gap.max(between);
    }
    whole.longest_gap = whole.longest_gap.max(later.longest_gap);
    whole.writes += later.writes;
    whole.last_write = whole.last_write.max(later.last_write);
    whole.bytes_in += later.bytes_in;
    whole.bytes_out += later.bytes_out;
    whole.flags |= later.flags;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_were_not_seen_have_no_length() {
        let burst = Burst { picked: 10, first_write: 30, last_write: 35, ..Burst::default() };
        let timeline = Timeline::of((0, 99), [burst]).expect("one burst");
        assert_eq!(timeline.socket_wait(), None);
        assert_eq!(timeline.first_byte(), Some(Duration::from_nanos(20)));
        assert_eq!(timeline.answer(), Some(Duration::from_nanos(5)));
        assert!(!timeline.is_complete());
        assert_eq!(Timeline::of((0, 99), []), None);
    }

    #[test]
    fn a_write_that_was_not_seen_in_time_was_before_the_proxy_had_it() {
        let burst = Burst { picked: 10, first_write: 12, last_write: 900, ..Burst::default() };
        let late = Burst { flags: Burst::LATE, ..burst };
        let answer = |burst| Timeline::of((0, 40), [burst]).and_then(|it| it.answer());
        assert_eq!(answer(late), Some(Duration::from_nanos(28)));
        assert_eq!(answer(burst), Some(Duration::from_nanos(888)));
    }

    #[test]
    fn an_answer_that_began_before_all_had_come_is_one_request() {
        let early = Burst {
            arrived: 10,
            picked: 20,
            read: 21,
            first_write: 30,
            last_write: 31,
            bytes_in: 100,
            bytes_out: 1,
            writes: 2,
            longest_gap: 1,
            task: 7 << 32,
            ..Burst::default()
        };
        let rest = Burst {
            offset: 100,
            arrived: 40,
            picked: 50,
            read: 55,
            first_write: 60,
            last_write: 70,
            bytes_in: 200,
            bytes_out: 2,
            writes: 2,
            longest_gap: 10,
            task: 8 << 32,
            ..Burst::default()
        };
        let timeline = Timeline::of((4, 99), [early, rest]).expect("two bursts");
        assert_eq!(timeline.wire(), Some(Duration::from_nanos(6)));
        assert_eq!(timeline.socket_wait(), Some(Duration::from_nanos(10)));
        assert_eq!(timeline.first_byte(), Some(Duration::from_nanos(10)));
        assert_eq!(timeline.answer(), Some(Duration::from_nanos(40)));
        assert_eq!((timeline.read, timeline.bytes_in, timeline.bytes_out), (Some(55), 300, 3));
        assert_eq!((timeline.writes, timeline.longest_gap), (4, Duration::from_nanos(29)));
        assert_eq!(timeline.process, 7);
    }
}
