//! Whether a first byte can be foreseen: deadlines from a prediction against those that know nothing of the request, on
//! a simulated engine in virtual time.
//!
//! Nothing is cut off here: what each learner would have set is compared with what the first byte took. One is told
//! nothing of the request, one the size of its prompt, one all that the proxy knows. The figures are in
//! `proxy/DEADLINES.md`; `UPDATE_TABLE=1 cargo test --test policies` writes them anew.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use outrigger::deadline::{Forecast, Learner, Settings, Work};
use outrigger_config::validated::{Adaptive, Strategy};
use outrigger_tests::sim::engine::{Engine, Job, JobId, Parameters, What};
use outrigger_tests::sim::random::Random;
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// Never used for tuning.
const HELD_OUT: [u64; 3] = [1, 2, 3];
/// Requests of a run, and how many of them only teach.
const REQUESTS: usize = 5_000;
const WARM_UP: usize = 1_000;
/// How often the engine reports its queue.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// The share of the requests that may be late, and the one that is aimed at.
const LATE: f64 = 0.01;

/// Leaves of what is known what a learner is told.
type Telling = fn(Work) -> Work;

/// What is told of a request.
const KNOWING: [(&str, Telling); 3] = [
    ("nothing", |_| Work::default()),
    ("its size", |work| Work { prompt: work.prompt, ..Work::default() }),
    ("its size and what is before it", |work| work),
];

/// A kind of traffic for one engine.
#[derive(Clone, Copy)]
struct Weather {
    name: &'static str,
    /// Requests of ours and of others in a second.
    rate: [f64; 2],
    /// For ten seconds in thirty there are so many times more.
    burst: f64,
    /// The median prompt, the share of long ones, and their length.
    median: f64,
    long: (f64, u64),
}

const WEATHERS: [Weather; 4] = [
    Weather { name: "short prompts", rate: [8.0, 0.0], burst: 1.0, median: 300.0, long: (0.0, 0) },
    Weather {
        name: "a few long",
        rate: [4.0, 0.0],
        burst: 1.0,
        median: 300.0,
        long: (0.05, 16_000),
    },
    Weather { name: "bursts", rate: [3.5, 0.0], burst: 3.0, median: 600.0, long: (0.0, 0) },
    Weather { name: "others too", rate: [2.5, 1.5], burst: 2.5, median: 600.0, long: (0.0, 0) },
];

/// What one learner came to.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    /// The mean pinball loss at the quantile that was aimed at, in seconds.
    loss: f64,
    /// The mean deadline when all are scaled so that just [`LATE`] of the requests are late, in seconds.
    mean: f64,
}

/// By weather, then by what is known.
static ALL: LazyLock<Vec<Vec<Figures>>> = LazyLock::new(|| {
    let weather = |weather: &Weather| {
        let runs: Vec<_> = HELD_OUT.iter().map(|seed| run(weather, *seed)).collect();
        (0..KNOWING.len()).map(|knowing| mean(runs.iter().map(|run| run[knowing]))).collect()
    };
    WEATHERS.iter().map(weather).collect()
});

fn mean(figures: impl Iterator<Item = Figures>) -> Figures {
    let share = 1.0 / HELD_OUT.len() as f64;
    figures.fold(Figures::default(), |sum, it| Figures {
        loss: sum.loss + it.loss * share,
        mean: sum.mean + it.mean * share,
    })
}

struct Request {
    at: Duration,
    prompt: u64,
    answer: u64,
    ours: bool,
}

fn traffic(weather: &Weather, seed: u64) -> Vec<Request> {
    let mut random = Random::new(seed);
    let (mut now, mut all, mut ours) = (0.0, Vec::new(), 0);
    while ours < REQUESTS {
        let busy = now % 30.0 < 10.0;
        let rate: f64 = weather.rate.iter().sum::<f64>() * if busy { weather.burst } else { 1.0 };
        now -= (1.0 - random.unit()).ln() / rate;
        let radius = (-2.0 * (1.0 - random.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * random.unit()).cos();
        let short = (weather.median * (0.8 * normal).exp()).ceil() as u64;
        let is_long = random.unit() < weather.long.0;
        let prompt =
            if is_long { weather.long.1 / 2 + random.below(weather.long.1) } else { short };
        let is_ours = random.unit() * weather.rate.iter().sum::<f64>() < weather.rate[0];
        ours += usize::from(is_ours);
        let answer = 1 + random.below(200);
        all.push(Request { at: Duration::from_secs_f64(now), prompt, answer, ours: is_ours });
    }
    all
}

/// A request of ours at the engine.
struct Known {
    at: Duration,
    prompt: u64,
    /// Of each learner, as it was sent.
    forecasts: Vec<Forecast>,
    has_first: bool,
}

struct Watch {
    origin: Instant,
    learners: Vec<Learner>,
    /// Deadline and first byte, in seconds, for each learner.
    seen: Vec<Vec<(f64, f64)>>,
    known: HashMap<JobId, Known>,
    ahead: u64,
    in_flight: u32,
    waiting: f64,
    reported: Duration,
    rng: SmallRng,
}

impl Watch {
    fn new(seed: u64) -> Self {
        let rule = Adaptive {
            strategy: Strategy::Quantile { quantile: 1.0 - LATE, margin: 1.0 },
            floor: Duration::from_millis(1),
            ceiling: Duration::from_secs(3_600),
            explore: 0.0,
        };
        let settings = Settings { first_byte: Some(rule), ..Settings::default() };
        let learner = |_| Learner::new(settings.clone(), None);
        Watch {
            origin: Instant::now(),
            learners: KNOWING.iter().map(learner).collect(),
            seen: vec![Vec::new(); KNOWING.len()],
            known: HashMap::new(),
            ahead: 0,
            in_flight: 0,
            waiting: 0.0,
            reported: Duration::ZERO,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Lets the engine work until `now`.
    fn follow(&mut self, engine: &mut Engine, now: Duration) {
        while self.reported + REPORT_EVERY <= now {
            self.reported += REPORT_EVERY;
            self.take(engine, self.reported);
            self.waiting = engine.load().waiting as f64;
        }
        self.take(engine, now);
    }

    fn take(&mut self, engine: &mut Engine, now: Duration) {
        for event in engine.advance(now) {
            let What::Token { job, last, .. } = event.what else { continue };
            if let Some(known) = self.known.get_mut(&job)
                && !std::mem::replace(&mut known.has_first, true)
            {
                self.ahead -= known.prompt;
                let (took, now) = (event.at - known.at, self.origin + event.at);
                let forecasts = known.forecasts.iter().zip(&self.learners).zip(&mut self.seen);
                for ((forecast, learner), seen) in forecasts {
                    let limit = forecast.limit.expect("it is learned");
                    if limit.learned.is_some() {
                        seen.push((limit.after.as_secs_f64(), took.as_secs_f64()));
                    }
                    learner.served(forecast, took, now);
                }
            }
            if last && self.known.remove(&job).is_some() {
                self.in_flight -= 1;
            }
        }
    }

    /// What each learner expects of a request of ours that comes now.
    fn foresee(&mut self, prompt: u64) -> Vec<Forecast> {
        let (ahead, others, waiting) = (self.ahead, self.in_flight, self.waiting);
        let work = Work { prompt, ahead, others, waiting, ..Work::default() };
        let rng = &mut self.rng;
        let learners = self.learners.iter().zip(KNOWING);
        learners.map(|(learner, (_, told))| learner.forecast(&told(work), 0, rng)).collect()
    }
}

fn run(weather: &Weather, seed: u64) -> Vec<Figures> {
    let parameters = Parameters { jitter: 0.1, seed, ..Parameters::default() };
    let (mut engine, mut watch) = (Engine::new(parameters), Watch::new(seed));
    for Request { at, prompt, answer, ours } in traffic(weather, seed) {
        watch.follow(&mut engine, at);
        let Ok(job) = engine.submit(Job::new(prompt, answer)) else { continue };
        if ours {
            let forecasts = watch.foresee(prompt);
            (watch.ahead, watch.in_flight) = (watch.ahead + prompt, watch.in_flight + 1);
            watch.known.insert(job, Known { at, prompt, forecasts, has_first: false });
        }
        watch.follow(&mut engine, at);
    }
    watch.seen.iter().map(|seen| figures(&seen[WARM_UP..])).collect()
}

fn figures(seen: &[(f64, f64)]) -> Figures {
    let count = seen.len() as f64;
    let pinball = |(deadline, took): &(f64, f64)| match took > deadline {
        true => (1.0 - LATE) * (took - deadline),
        false => LATE * (deadline - took),
    };
    let mut ratios: Vec<f64> = seen.iter().map(|(deadline, took)| took / deadline).collect();
    ratios.sort_by(f64::total_cmp);
    let scale = ratios[((1.0 - LATE) * count) as usize];
    Figures {
        loss: seen.iter().map(pinball).sum::<f64>() / count,
        mean: scale * seen.iter().map(|(deadline, _)| deadline).sum::<f64>() / count,
    }
}

fn of(weather: usize, knowing: usize) -> Figures {
    ALL[weather][knowing]
}

#[test]
fn a_prediction_beats_an_estimate_that_does_not_know_the_request() {
    for (index, weather) in WEATHERS.iter().enumerate() {
        let [blind, foreseen] = [of(index, 0), of(index, 2)];
        let told = format!("{}: {blind:?} {foreseen:?}", weather.name);
        assert!(foreseen.loss < 0.9 * blind.loss, "{told}");
        assert!(foreseen.mean < 0.9 * blind.mean, "{told}");
    }
}

/// The table of the document.
pub(crate) fn markdown() -> String {
    let mut text =
        String::from("| traffic | the deadline knows | pinball loss, ms | mean deadline, ms |\n");
    text.push_str("|---|---|--:|--:|\n");
    for (weather, figures) in WEATHERS.iter().zip(ALL.iter()) {
        for ((knowing, _), figures) in KNOWING.iter().zip(figures) {
            let [loss, mean] = [figures.loss, figures.mean].map(|seconds| seconds * 1e3);
            let _ = writeln!(text, "| {} | {knowing} | {loss:.1} | {mean:.0} |", weather.name);
        }
    }
    text
}
