//! Three times what an engine can serve, with and without admission, side by side.
//!
//! The engine has places for so many requests; what is more waits inside it, and its first bytes come later and later. A
//! fifth of the requests is of a higher class, at random; they come at random times, and answers are of all lengths. A run
//! prints its figures: `cargo test --profile fast --workspace --test e2e a_long_overload -- --ignored --nocapture` is the
//! long one.

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Answer, Call, Proxy};
use outrigger_tests::sim::random::Random;
use outrigger_tests::sim::{Options, Simulator};
use tokio::task::JoinSet;

use super::await_empty;
use crate::fleet::endpoints;

/// Places in the engine.
const PLACES: usize = 48;
/// One step of the engine, and how many of them an answer takes on average.
const STEP: Duration = Duration::from_millis(40);
const TOKENS: u64 = 25;

/// Requests that the engine can complete in a second.
fn capacity() -> f64 {
    PLACES as f64 / (STEP.as_secs_f64() * (TOKENS as f64 + 1.5))
}

const ADMISSION: &str = "limit: 48, queue: { size: 200, wait: 500ms, target: 80ms }";

/// One request: of the higher class or not, when it came, and what became of it.
struct Fate {
    high: bool,
    came: Duration,
    answer: Result<Answer, String>,
}

struct Run {
    fates: Vec<Fate>,
    /// What is counted begins then, when the beginning is over.
    from: Duration,
    until: Duration,
}

impl Run {
    /// Sends at this rate for so long.
    async fn at(proxy: &Proxy, rate: f64, warm: Duration, measured: Duration) -> Self {
        let (start, until) = (Instant::now(), warm + measured);
        let (to, mut sent, mut random) = (proxy.address(), JoinSet::new(), Random::new(7));
        let mut came = Duration::ZERO;
        while came < until {
            tokio::time::sleep_until((start + came).into()).await;
            let high = random.below(5) == 0;
            let class = if high { "high" } else { "low" };
            let tokens = 1 + random.below(2 * TOKENS - 1);
            sent.spawn(async move {
                let call = Call::chat("how deep is the lagoon?").max_tokens(tokens).streaming();
                let answer = call.header("x-priority", class).try_send(to).await;
                Fate { high, came, answer }
            });
            came += Duration::from_secs_f64(-random.unit().max(f64::MIN_POSITIVE).ln() / rate);
        }
        let mut fates = sent.join_all().await;
        fates.sort_by_key(|fate| fate.came);
        Run { fates, from: warm, until }
    }

    fn counted(&self) -> impl Iterator<Item = &Fate> {
        self.fates.iter().filter(|fate| fate.came >= self.from)
    }

    fn answers(&self) -> impl Iterator<Item = (&Fate, &Answer)> {
        self.counted().filter_map(|fate| Some((fate, fate.answer.as_ref().ok()?)))
    }

    /// First bytes of what was answered, of one class or of both.
    fn first_bytes(&self, high: Option<bool>) -> Times {
        let served = self.answers().filter(|(_, answer)| answer.status == 200);
        let of = served.filter(|(fate, _)| high.is_none_or(|high| fate.high == high));
        Times::new(of.filter_map(|(_, answer)| answer.first_byte_after))
    }

    /// How soon those were told who were turned away.
    fn refusals(&self) -> Times {
        let refused = self.answers().filter(|(_, answer)| answer.status == 503);
        Times::new(refused.map(|(_, answer)| answer.head_after))
    }

    /// Answers completed in the time that is counted, in a second.
    fn goodput(&self) -> f64 {
        let ended = |fate: &Fate| {
            let answer = fate.answer.as_ref().ok()?;
            (answer.status == 200 && answer.cut.is_none()).then_some(fate.came + answer.whole_after)
        };
        let within = |at: &Duration| (self.from..self.until).contains(at);
        let count = self.fates.iter().filter_map(ended).filter(within).count();
        count as f64 / (self.until - self.from).as_secs_f64()
    }

    /// The share of a class that was answered.
    fn served(&self, high: bool) -> f64 {
        let of = || self.counted().filter(move |fate| fate.high == high);
        let ok = |fate: &&Fate| fate.answer.as_ref().is_ok_and(|answer| answer.status == 200);
        of().filter(ok).count() as f64 / of().count().max(1) as f64
    }

    /// Whoever got neither an answer nor a clear word.
    fn unclear(&self) -> usize {
        let clear = |answer: &Answer| {
            let told = answer.status == 503 && answer.header("retry-after").is_some();
            answer.cut.is_none() && (answer.status == 200 || told)
        };
        self.fates.iter().filter(|fate| !fate.answer.as_ref().is_ok_and(clear)).count()
    }
}

struct Times(Vec<Duration>);

impl Times {
    fn new(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        Times(times)
    }

    fn quantile(&self, q: f64) -> Duration {
        let rank = ((self.0.len() as f64 * q).ceil() as usize).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }
}

struct Overload {
    unloaded: Run,
    with: Run,
    without: Run,
}

async fn engine_and_proxy(backend: &str) -> (Simulator, Proxy) {
    let mut options = Options::named("a").room(PLACES, usize::MAX).steady(STEP);
    options.engine.prefill_rate = 1e6;
    let engine = Simulator::start(options);
    let yaml = format!(
        "backends: {{ stable: {{ endpoints: {}, ejection: off, {backend} }} }}\n\
         routes: [{{ name: all, backend: stable, retry: off, priority: {{ classes: [high, low] }} }}]\n\
         access_log: {{ format: off }}\n",
        endpoints(&[&engine]),
    );
    let proxy = Proxy::start(&yaml).await;
    (engine, proxy)
}

async fn overload(warm: Duration, measured: Duration) -> Overload {
    let (_engine, proxy) = engine_and_proxy(ADMISSION).await;
    let unloaded = Run::at(&proxy, capacity() / 3.0, Duration::from_secs(1), measured).await;
    await_empty(&proxy).await;
    let with = Run::at(&proxy, capacity() * 3.0, warm, measured).await;
    await_empty(&proxy).await;
    // Waits grow by two seconds with each second of it; a client of the test has patience for twenty.
    let (_other, bare) = engine_and_proxy("").await;
    let without =
        Run::at(&bare, capacity() * 3.0, Duration::from_secs(2), Duration::from_secs(3)).await;
    Overload { unloaded, with, without }
}

#[expect(clippy::print_stderr, reason = "a measurement is to be read")]
fn print(result: &Overload) {
    let millis = |d: Duration| format!("{:.1}", d.as_secs_f64() * 1e3);
    let Overload { unloaded, with, without } = result;
    eprintln!("| capacity {:.1}/s | unloaded | 3x with admission | 3x without |", capacity());
    let row = |what: &str, value: &dyn Fn(&Run) -> String| {
        eprintln!("| {what} | {} | {} | {} |", value(unloaded), value(with), value(without));
    };
    for (what, high) in [("all", None), ("high", Some(true)), ("low", Some(false))] {
        for q in [0.5, 0.99] {
            let what = format!("first byte p{:.0} ms, {what}", q * 100.0);
            row(&what, &|run| millis(run.first_bytes(high).quantile(q)));
        }
    }
    row("goodput /s", &|run| format!("{:.1}", run.goodput()));
    row("answered of high", &|run| format!("{:.0} %", run.served(true) * 100.0));
    row("answered of low", &|run| format!("{:.0} %", run.served(false) * 100.0));
    row("told no", &|run| run.refusals().0.len().to_string());
    for q in [0.5, 0.9, 0.99] {
        let what = format!("told after p{:.0} ms", q * 100.0);
        row(&what, &|run| millis(run.refusals().quantile(q)));
    }
    row("neither answer nor clear word", &|run| run.unclear().to_string());
}

/// On any machine, however busy: bounds that only a proxy without admission breaks.
#[tokio::test]
async fn under_overload_waits_stay_short_and_places_are_used() {
    let result = overload(Duration::from_secs(2), Duration::from_secs(3)).await;
    print(&result);
    let (with, without) = (&result.with, &result.without);
    assert_eq!(with.unclear(), 0);
    let (high, low) = (with.served(true), with.served(false));
    assert!(high > 0.7 && high > 2.0 * low, "{high} {low}");
    let p50 = |run: &Run| run.first_bytes(None).quantile(0.5);
    // Without admission they wait for seconds, more with each second.
    assert!(p50(with) * 3 < p50(without), "{:?} {:?}", p50(with), p50(without));
    assert!(with.refusals().quantile(0.5) < Duration::from_millis(100));
    let least = 0.6 * without.goodput().min(capacity());
    assert!(with.goodput() > least, "{} of {}", with.goodput(), capacity());
}

#[tokio::test]
#[ignore = "takes minutes and wants the machine for itself: it measures"]
async fn a_long_overload() {
    let result = overload(Duration::from_secs(10), Duration::from_secs(120)).await;
    print(&result);
    let (unloaded, with) = (&result.unloaded, &result.with);
    let p99 = |run: &Run| run.first_bytes(None).quantile(0.99);
    assert!(p99(with) <= 2 * p99(unloaded), "{:?} {:?}", p99(with), p99(unloaded));
    assert!(with.refusals().quantile(0.95) <= Duration::from_millis(10));
    assert!(with.served(true) > 0.85, "{}", with.served(true));
    assert!(with.goodput() > 0.9 * capacity(), "{} of {}", with.goodput(), capacity());
    assert_eq!(with.unclear(), 0);
}
