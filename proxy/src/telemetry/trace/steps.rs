//! The steps of an attempt that the kernel saw, as times of day: each begins where the one before ended, and none lies
//! outside of the attempt.
//!
//! Two clocks are read a moment apart, and processors differ by some nanoseconds; what lies before its beginning or after
//! its end by that is moved to it, so that the steps of a trace always nest and add up.

use std::time::SystemTime;

use super::record::Anchor;
use crate::probes::Timeline;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) name: StepName,
    pub(super) from: SystemTime,
    pub(super) to: SystemTime,
}

/// What it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepName {
    /// From the proxy beginning to send to the first segment at the application's socket.
    Wire,
    /// From there to the application's first read.
    SocketWait,
    /// From there to its first write.
    Application,
    /// From there to its last write.
    Answer,
}

impl StepName {
    const ALL: [Self; 4] = [Self::Wire, Self::SocketWait, Self::Application, Self::Answer];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::SocketWait => "socket wait",
            Self::Application => "application",
            Self::Answer => "answer",
        }
    }

    /// Whether the application works in it.
    pub(super) const fn is_of_app(self) -> bool {
        matches!(self, Self::Application | Self::Answer)
    }
}

/// The steps whose beginning and end were seen, within an attempt from the first of these times to the second.
pub(super) fn steps(
    timeline: &Timeline,
    anchor: &Anchor,
    (from, to): (SystemTime, SystemTime),
) -> Vec<Step> {
    let Timeline { sent, arrived, picked, first_write, last_write, .. } = *timeline;
    let mut least = from;
    let times = [sent, arrived, picked, first_write, last_write].map(|at| {
        let time = anchor.time_of_kernel(at?).clamp(least, to.max(least));
        least = time;
        Some(time)
    });
    let seen = |(name, ends): (StepName, &[Option<SystemTime>])| match ends {
        [Some(from), Some(to)] => Some(Step { name, from: *from, to: *to }),
        _ => None,
    };
    StepName::ALL.into_iter().zip(times.windows(2)).filter_map(seen).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const NOW: u64 = 1_000_000;

    fn anchor() -> Anchor {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Anchor { instant: Instant::now(), monotonic: NOW, time }
    }

    fn before(nanos: u64) -> SystemTime {
        anchor().time - Duration::from_nanos(nanos)
    }

    #[test]
    fn steps_follow_each_other() {
        let timeline = Timeline {
            sent: Some(NOW - 900),
            arrived: Some(NOW - 800),
            picked: Some(NOW - 500),
            first_write: Some(NOW - 200),
            last_write: Some(NOW - 100),
            ..Timeline::default()
        };
        let steps = steps(&timeline, &anchor(), (before(1000), before(0)));
        let told: Vec<_> = steps.iter().map(|it| (it.name.as_str(), it.from, it.to)).collect();
        let expected = [
            ("wire", before(900), before(800)),
            ("socket wait", before(800), before(500)),
            ("application", before(500), before(200)),
            ("answer", before(200), before(100)),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_was_not_seen_is_no_step() {
        let timeline =
            Timeline { picked: Some(NOW - 5), first_write: Some(NOW - 3), ..Timeline::default() };
        let steps = steps(&timeline, &anchor(), (before(10), before(0)));
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0].name, StepName::Application);
    }

    #[test]
    fn whatever_the_clocks_say_steps_nest_and_add_up() {
        for seed in 0..2000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut at = || rng.random_bool(0.8).then(|| rng.random_range(0..2 * NOW));
            let timeline = Timeline {
                sent: at(),
                arrived: at(),
                picked: at(),
                first_write: at(),
                last_write: at(),
                ..Timeline::default()
            };
            let within = (before(NOW / 2), before(NOW / 4));
            let steps = steps(&timeline, &anchor(), within);
            let mut last = within.0;
            for step in &steps {
                assert!(last <= step.from && step.from <= step.to, "seed {seed}: {steps:?}");
                assert!(step.to <= within.1, "seed {seed}: {steps:?}");
                last = step.to;
            }
            if steps.len() == 4 {
                let sum: Duration =
                    steps.iter().filter_map(|it| it.to.duration_since(it.from).ok()).sum();
                let whole = steps[3].to.duration_since(steps[0].from).ok();
                assert_eq!(whole, Some(sum), "seed {seed}");
            }
        }
    }
}
