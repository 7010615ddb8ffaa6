//! The rules one by one; together they meet an engine in `simulation`.

use std::thread;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

const FLOOR: Duration = Duration::from_secs(5);
const SETTINGS: Settings = Settings { gaps: 20, floor: FLOOR };

/// An endpoint and the time at which it lives.
struct Bench {
    progress: Arc<Progress>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { progress: Progress::new(SETTINGS, now), now }
    }

    /// One of whose streams a byte comes every `gap` milliseconds.
    fn streaming(gap: u64) -> (Self, Turn) {
        let mut bench = Self::new();
        (0..ENOUGH).for_each(|_| bench.answer(100, 10));
        let mut turn = bench.begin(100);
        (0..5).for_each(|_| bench.wait(gap).bytes(&mut turn));
        (bench, turn)
    }

    /// One that reads a prompt of 936 tokens in this many milliseconds, and has nothing to do.
    fn reading(after: u64) -> Self {
        let mut bench = Self::new();
        (0..=ENOUGH).for_each(|_| bench.answer(936, after));
        bench
    }

    fn begin(&self, prompt: u64) -> Turn {
        self.progress.begin(prompt, true, self.now)
    }

    fn bytes(&self, turn: &mut Turn) {
        turn.bytes(self.now);
    }

    /// A whole answer of three pieces, the first after so many milliseconds.
    fn answer(&mut self, prompt: u64, after: u64) {
        let mut turn = self.begin(prompt);
        self.wait(after).bytes(&mut turn);
        self.wait(1).bytes(&mut turn);
        self.wait(1).bytes(&mut turn);
    }

    fn wait(&mut self, milliseconds: u64) -> &mut Self {
        self.now += Duration::from_millis(milliseconds);
        self
    }

    /// In how many milliseconds it stalls.
    fn left(&self) -> Option<u64> {
        let at = self.progress.stalls_at()?;
        Some(at.saturating_duration_since(self.now).as_millis() as u64)
    }
}

#[test]
fn nothing_is_a_stall_before_enough_is_known() {
    let mut bench = Bench::new();
    for _ in 0..=ENOUGH {
        let turn = bench.begin(100);
        assert_eq!(bench.wait(3_600_000).left(), None);
        drop(turn);
        bench.answer(100, 60_000);
    }
    let turn = bench.begin(100);
    assert!(bench.left().is_some());
    bench.progress.forget();
    assert_eq!(bench.left(), None);
    drop(turn);
}

#[test]
fn what_owes_nothing_is_not_silent() {
    let (mut bench, turn) = Bench::streaming(10);
    assert_eq!(bench.left(), Some(5_000));
    drop(turn);
    assert_eq!(bench.left(), None);
    bench.wait(3_600_000);
    let _turn = bench.begin(100);
    assert_eq!(bench.left(), Some(5_000), "the silence begins with the request");
    let _other = bench.wait(1_000).begin(100);
    assert_eq!(bench.left(), Some(4_000), "and not again with the next");
}

#[test]
fn a_stall_is_so_many_of_the_longest_pause_but_not_below_the_floor() {
    let (mut bench, mut turn) = Bench::streaming(400);
    assert_eq!(bench.left(), Some(8_000));
    assert!(!bench.progress.stalled(bench.now + Duration::from_millis(7_999)));
    assert!(bench.progress.stalled(bench.now + Duration::from_millis(8_000)));
    (0..1_000).for_each(|_| bench.wait(10).bytes(&mut turn));
    assert_eq!(bench.left(), Some(8_000), "short pauses do not make it forget long ones");
}

#[test]
fn any_byte_of_any_answer_is_progress() {
    let (mut bench, _turn) = Bench::streaming(10);
    let mut whole = bench.progress.begin(100, false, bench.now);
    bench.wait(4_999).bytes(&mut whole);
    assert!(bench.left() > Some(4_999));
    bench.wait(4_999);
    bench.progress.bytes(bench.now);
    assert!(bench.left() > Some(4_999));
}

#[test]
fn an_answer_that_is_not_streamed_may_take_its_time() {
    let mut bench = Bench::reading(10);
    let whole = bench.progress.begin(100, false, bench.now);
    assert_eq!(bench.wait(3_600_000).left(), None);
    let _stream = bench.begin(100);
    assert_eq!(bench.left(), Some(5_000), "nor is its silence that of others");
    drop(whole);
    assert_eq!(bench.left(), Some(5_000));
}

#[test]
fn a_stream_that_its_client_holds_up_owes_nothing() {
    let (mut bench, mut turn) = Bench::streaming(10);
    turn.hold();
    turn.hold();
    assert_eq!(bench.wait(3_600_000).left(), None);
    turn.resume(bench.now);
    turn.resume(bench.now);
    assert_eq!(bench.left(), Some(5_000));
    bench.wait(10).bytes(&mut turn);
    assert_eq!(bench.left(), Some(5_000), "nothing was learned from it");
}

/// A thousand tokens in 100 ms: a stall after ten times as long, which for 32,768 tokens, the power
/// of two above this prompt, is 33 s.
#[test]
fn a_long_prompt_may_take_longer_than_the_short_ones_before() {
    let bench = Bench::reading(100);
    let short = bench.begin(936);
    assert_eq!(bench.left(), Some(5_000));
    let long = bench.begin(32_000);
    assert!((32_000..33_000).contains(&bench.left().unwrap()), "{:?}", bench.left());
    drop(long);
    assert_eq!(bench.left(), Some(5_000), "it does not last longer than the prompt does");
    drop(short);
}

/// Some engines say something before they read the prompt.
#[test]
fn one_piece_is_not_yet_a_stream() {
    let mut bench = Bench::reading(100);
    let mut turn = bench.begin(32_000);
    bench.wait(1).bytes(&mut turn);
    assert!(bench.left() > Some(30_000));
    bench.wait(4_000).bytes(&mut turn);
    assert_eq!(bench.left(), Some(5_000));
}

#[test]
fn a_stream_that_waits_for_a_long_prompt_does_not_make_short_ones_slow() {
    let mut bench = Bench::reading(100);
    let mut short = bench.begin(10);
    bench.wait(2).bytes(&mut short);
    let long = bench.begin(32_000);
    bench.wait(262).bytes(&mut short);
    drop((short, long));
    let _turn = bench.begin(936);
    assert_eq!(bench.left(), Some(5_000));
}

#[test]
fn one_silence_doubles_what_is_a_stall_at_most() {
    let (mut bench, mut turn) = Bench::streaming(10);
    for limit in [10_000, 20_000, 40_000] {
        bench.wait(600_000).bytes(&mut turn);
        assert_eq!(bench.left(), Some(limit));
    }
    let mut bench = Bench::reading(100);
    bench.answer(936, 600_000);
    let _turn = bench.begin(936);
    assert!((9_000..=10_300).contains(&bench.left().unwrap()), "{:?}", bench.left());
}

#[test]
fn an_engine_that_compiles_teaches_nothing() {
    let mut bench = Bench::new();
    (0..ENOUGH).for_each(|_| bench.answer(100, 60_000));
    (0..2).for_each(|_| bench.answer(100, 10));
    let _turn = bench.begin(100);
    assert_eq!(bench.left(), Some(5_000));
}

#[test]
fn other_settings_hold_at_once() {
    let (bench, _turn) = Bench::streaming(400);
    let configure = |gaps, seconds| {
        let floor = Duration::from_secs(seconds);
        bench.progress.configure(Settings { gaps, floor });
        bench.left()
    };
    assert_eq!(configure(10, 1), Some(4_000));
    assert_eq!(configure(10, 9), Some(9_000));
    assert_eq!(configure(0, 9), None, "off");
}

#[test]
fn tells_how_much_was_to_be_read() {
    let bench = Bench::new();
    let mut first = bench.begin(1_000);
    let second = bench.progress.begin(300, false, bench.now);
    assert_eq!((first.prompts(), second.prompts()), (1_000, 1_300));
    bench.bytes(&mut first);
    assert_eq!(bench.begin(5).prompts(), 305);
    drop((first, second));
    assert_eq!(bench.begin(0).prompts(), 0);
}

#[test]
fn values_without_sense_do_not_panic() {
    let now = Instant::now();
    let settings = Settings { gaps: u32::MAX, floor: Duration::MAX };
    let progress = Progress::new(settings, now);
    for _ in 0..20 {
        let mut turn = progress.begin(u64::MAX, true, now);
        (0..3).for_each(|hour| turn.bytes(now + Duration::from_secs(hour * 3_600)));
        assert_eq!(progress.stalls_at(), None, "beyond what a clock can tell");
    }
}

#[test]
fn counts_stay_exact_among_threads() {
    let bench = Bench::new();
    let play = |seed: u64| {
        let mut rng = SmallRng::seed_from_u64(seed);
        for _ in 0..20_000 {
            let prompt = rng.random_range(0..100_000);
            let mut turn = bench.progress.begin(prompt, rng.random_bool(0.8), bench.now);
            for _ in 0..rng.random_range(0..6) {
                match rng.random_range(0..4) {
                    0 => turn.hold(),
                    1 => turn.resume(bench.now),
                    _ => turn.bytes(bench.now),
                }
            }
        }
    };
    thread::scope(|scope| {
        let play = &play;
        (0..4).for_each(|seed| drop(scope.spawn(move || play(seed))));
    });
    let progress = &bench.progress;
    assert_eq!((progress.owed.load(Relaxed), progress.streaming.load(Relaxed)), (0, 0));
    assert!(progress.reading.iter().all(|count| count.load(Relaxed) == 0));
    assert_eq!(progress.prompts.load(Relaxed), 0);
}
