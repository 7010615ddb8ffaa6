//! A burst that grows by half step after step, far beyond what the engine can serve: what was asked before is answered all
//! the same, and whoever is turned away is told so.
//!
//! Four of five requests ask what has been asked before, the others something new. A run prints its figures:
//! `cargo test --profile fast --workspace --test e2e a_long_burst -- --ignored --nocapture` is the long one, beside the
//! same without a limit and without stored answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrigger_tests::harness::{Answer, Client, Protocol, Proxy};
use outrigger_tests::sim::random::Random;
use outrigger_tests::sim::{Options, Simulator};
use tokio::task::JoinSet;

use super::{greedy, mark};
use crate::fleet::endpoints;

/// How long one step of the engine takes; an answer is six.
const STEP: Duration = Duration::from_millis(10);
/// Questions that have been asked before.
const KNOWN: usize = 64;

#[derive(Clone, Copy)]
struct Burst {
    /// How many requests the engine works on at once.
    places: usize,
    /// Requests in a second, at first and at most.
    rates: (f64, f64),
    /// How long each rate lasts.
    step: Duration,
}

/// One request: which known question it asked, if one, in which step it came, and what became of it.
struct Fate {
    known: Option<usize>,
    step: usize,
    answer: Result<Answer, String>,
}

impl Fate {
    fn status(&self) -> u16 {
        self.answer.as_ref().map_or(0, |answer| answer.status)
    }

    fn is_stored(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| mark(answer).starts_with("fallback"))
    }

    /// It was answered completely.
    fn is_ok(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| answer.status == 200 && answer.cut.is_none())
    }

    /// It was turned away, and told when to come back.
    fn is_told(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| {
            answer.status == 503 && answer.cut.is_none() && answer.header("retry-after").is_some()
        })
    }
}

/// Connections that nobody uses at the moment.
#[derive(Clone, Default)]
struct Idle(Arc<Mutex<Vec<Client>>>);

impl Idle {
    async fn ask(&self, proxy: std::net::SocketAddr, prompt: &str) -> Result<Answer, String> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut client = match kept.filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => Client::try_connect(proxy, Protocol::Http1).await?,
        };
        let answer = client.send(greedy(prompt)).await?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        Ok(answer)
    }
}

fn known(index: usize) -> String {
    format!("what is {index} and {index}?")
}

impl Burst {
    /// The rates, each half as much again as the one before.
    fn rates(self) -> Vec<f64> {
        let (first, most) = self.rates;
        let rates = std::iter::successors(Some(first), |rate| {
            (*rate < most).then_some((rate * 1.5).min(most))
        });
        rates.collect()
    }

    async fn table(self, backend: &str, route: &str) -> (Simulator, Proxy) {
        let engine = Options::named("a").room(self.places, usize::MAX).steady(STEP);
        let engine = Simulator::start(engine);
        let yaml = format!(
            "backends: {{ stable: {{ endpoints: {}, ejection: off{backend} }} }}\n\
             routes: [{{ name: all, backend: stable, retry: off{route} }}]\n\
             access_log: {{ format: off }}\n",
            endpoints(&[&engine]),
        );
        let proxy = Proxy::start(&yaml).await;
        (engine, proxy)
    }

    /// Asks the known questions once, then all that comes; the answers to the known ones, and what became of the rest.
    async fn run(self, proxy: &Proxy) -> (Vec<Answer>, Vec<Fate>) {
        let (to, idle, mut lives) = (proxy.address(), Idle::default(), Vec::new());
        for index in 0..KNOWN {
            lives.push(idle.ask(to, &known(index)).await.expect("the engine has nothing to do"));
        }
        let (mut random, mut sent) = (Random::new(7), JoinSet::new());
        let (mut at, start) = (Duration::ZERO, Instant::now());
        for (step, rate) in self.rates().into_iter().enumerate() {
            let until = self.step * (step as u32 + 1);
            while at < until {
                at += Duration::from_secs_f64(-random.unit().max(f64::MIN_POSITIVE).ln() / rate);
                let new = random.below(5) == 0;
                let (draw, idle) = (random.bits(), idle.clone());
                let asked = (!new).then_some(draw as usize % KNOWN);
                tokio::time::sleep_until((start + at).into()).await;
                sent.spawn(async move {
                    let prompt = asked.map_or_else(|| format!("what is {draw}?"), known);
                    Fate { known: asked, step, answer: idle.ask(to, &prompt).await }
                });
            }
        }
        (lives, sent.join_all().await)
    }
}

#[expect(clippy::print_stderr, reason = "a measurement is to be read")]
fn print(what: &str, burst: Burst, fates: &[Fate]) {
    eprintln!("{what}\n| rate /s | came | live | stored | told no | failed | p50 ms | p99 ms |");
    for (step, rate) in burst.rates().into_iter().enumerate() {
        let of: Vec<&Fate> = fates.iter().filter(|fate| fate.step == step).collect();
        let stored = of.iter().filter(|fate| fate.is_stored()).count();
        let ok = of.iter().filter(|fate| fate.is_ok()).count();
        let told = of.iter().filter(|fate| fate.is_told()).count();
        let answers = of.iter().filter_map(|fate| fate.answer.as_ref().ok());
        let mut times: Vec<_> = answers.map(|answer| answer.whole_after).collect();
        times.sort_unstable();
        let quantile = |q: f64| {
            let rank = ((times.len() as f64 * q).ceil() as usize).max(1);
            times.get(rank - 1).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        eprintln!(
            "| {rate:.0} | {} | {} | {stored} | {told} | {} | {:.1} | {:.1} |",
            of.len(),
            ok - stored,
            of.len() - ok - told,
            quantile(0.5),
            quantile(0.99),
        );
    }
}

/// The text of an answer of a chat, without its id and its time.
fn text(answer: &Answer) -> String {
    answer.json()["choices"][0]["message"]["content"].to_string()
}

fn nobody_fails(lives: &[Answer], fates: &[Fate]) {
    for fate in fates {
        match fate.known {
            Some(known) => {
                assert!(fate.is_ok(), "what is stored is answered: {}", fate.status());
                let answer = fate.answer.as_ref().expect("it is");
                assert_eq!(text(answer), text(&lives[known]));
            }
            None => assert!(fate.is_ok() || fate.is_told(), "{:?}", fate.answer),
        }
    }
    assert!(fates.iter().any(Fate::is_stored) && fates.iter().any(Fate::is_told), "it was a burst");
}

const LIMIT: &str = "queue: { size: 200, wait: 500ms, target: 50ms }";
const STORED: &str = ", fallback: { answers: { stale_for: 24h } }";

#[tokio::test]
async fn in_a_burst_what_is_stored_is_answered_and_all_others_are_told() {
    let burst = Burst { places: 6, rates: (50.0, 400.0), step: Duration::from_millis(700) };
    let (_engine, proxy) =
        burst.table(&format!(", limit: {}, {LIMIT}", burst.places), STORED).await;
    let (lives, fates) = burst.run(&proxy).await;
    print("with admission and stored answers", burst, &fates);
    nobody_fails(&lives, &fates);
}

#[tokio::test]
#[ignore = "takes minutes and wants the machine for itself: it measures"]
async fn a_long_burst() {
    let burst = Burst { places: 24, rates: (100.0, 1_500.0), step: Duration::from_secs(10) };
    let (_engine, proxy) =
        burst.table(&format!(", limit: {}, {LIMIT}", burst.places), STORED).await;
    let (lives, fates) = burst.run(&proxy).await;
    print("with admission and stored answers", burst, &fates);
    nobody_fails(&lives, &fates);
    let (_engine, plain) = burst.table("", ", deadline: { total: 5s }").await;
    let (_, fates) = burst.run(&plain).await;
    print("plain, five seconds for each request", burst, &fates);
}
