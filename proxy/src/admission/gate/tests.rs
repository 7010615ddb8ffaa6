use std::future::poll_fn;

use super::*;
use crate::telemetry::metrics::{Metrics, Scope};

fn gate(limit: usize, size: usize) -> Arc<Gate> {
    let queue =
        config::Queue { size, wait: Duration::from_secs(60), target: Duration::from_secs(60) };
    let metrics = Metrics::new("x").gate(Scope::Backend, "b");
    Gate::new(Some(&config::Limit::InFlight(limit)), Some(&queue).filter(|_| size > 0), metrics)
}

fn asked() -> Asked {
    Asked { class: 0, deadline: None, again: None }
}

fn waits(gate: &Arc<Gate>) -> Waiting {
    match gate.enter_or_wait(asked(), Instant::now()) {
        Entry::Waiting(waiting) => waiting,
        Entry::Permit(_) => panic!("there is a place"),
        Entry::Rejected(why) => panic!("{why:?}"),
    }
}

async fn turn(waiting: &mut Waiting) -> Result<Permit, Rejection> {
    let mut watchdog = Watchdog::new();
    poll_fn(|cx| waiting.poll(&mut watchdog, cx)).await
}

fn counts(gate: &Arc<Gate>) -> (u64, usize) {
    let state = gate.state(Instant::now());
    (state.in_flight, state.waiting.iter().sum())
}

#[tokio::test]
async fn a_place_that_is_given_back_is_the_turn_of_who_waits() {
    let gate = gate(1, 10);
    let first = gate.enter(0).expect("a place");
    let (mut second, mut third) = (waits(&gate), waits(&gate));
    assert!(gate.enter(0).is_none());
    assert_eq!(counts(&gate), (1, 2));
    drop(first);
    let second = turn(&mut second).await.expect("its turn");
    assert_eq!(counts(&gate), (1, 1));
    drop(second);
    drop(turn(&mut third).await.expect("its turn"));
    assert_eq!(counts(&gate), (0, 0));
}

#[tokio::test]
async fn whoever_leaves_with_its_turn_on_the_way_hands_it_on() {
    let gate = gate(1, 10);
    let first = gate.enter(0).expect("a place");
    let (second, mut third) = (waits(&gate), waits(&gate));
    drop(first);
    assert_eq!(counts(&gate), (1, 1));
    drop(second);
    drop(turn(&mut third).await.expect("its turn"));
    assert_eq!(counts(&gate), (0, 0));
}

#[tokio::test]
async fn without_a_queue_nobody_waits() {
    let gate = gate(1, 0);
    let _first = gate.enter(0).expect("a place");
    let entry = gate.enter_or_wait(asked(), Instant::now());
    assert!(matches!(entry, Entry::Rejected(Rejection::Overloaded)));
}

#[tokio::test]
async fn a_higher_limit_lets_those_in_who_wait() {
    let gate = gate(1, 10);
    let _first = gate.enter(0).expect("a place");
    let mut waiting: Vec<_> = (0..3).map(|_| waits(&gate)).collect();
    gate.configure(Some(&config::Limit::InFlight(3)), None);
    assert_eq!(counts(&gate), (3, 1));
    let entry = gate.enter_or_wait(asked(), Instant::now());
    assert!(matches!(entry, Entry::Rejected(_)), "there is no queue for newcomers any more");
    gate.configure(None, None);
    for waiting in &mut waiting {
        drop(turn(waiting).await.expect("its turn"));
    }
    assert_eq!(counts(&gate).0, 1);
}

#[tokio::test]
async fn a_lower_limit_lets_nobody_in_before_enough_have_left() {
    let gate = gate(3, 10);
    let mut held: Vec<_> = (0..3).map(|_| gate.enter(0).expect("a place")).collect();
    gate.configure(Some(&config::Limit::InFlight(1)), None);
    held.truncate(1);
    assert!(gate.enter(0).is_none());
    held.clear();
    gate.enter(0).expect("a place");
}

#[tokio::test]
async fn whoever_found_endpoints_full_waits_for_a_place_there() {
    let gate = gate(100, 10);
    let freed = gate.freed();
    let Entry::Waiting(mut first) = gate.wait_for_place(asked(), freed, Instant::now()) else {
        panic!("it waits")
    };
    let mut second = waits(&gate);
    assert_eq!(counts(&gate), (0, 2), "there is a permit but no place");
    gate.place_freed();
    let mut permit = turn(&mut first).await.expect("its turn");
    assert_eq!(counts(&gate), (1, 1), "one place, one turn");
    permit.looked();
    drop(permit);
    assert_eq!(counts(&gate), (0, 1));
    gate.place_freed();
    // It goes away without having looked.
    drop(turn(&mut second).await.expect("its turn"));
    assert_eq!(counts(&gate), (0, 0));
    gate.enter(0).expect("nobody waits: it may look for itself");
}

#[tokio::test]
async fn room_that_comes_without_a_word_is_found_by_who_comes_next() {
    let gate = gate(100, 10);
    let (freed, now) = (gate.freed(), Instant::now());
    let Entry::Waiting(mut first) = gate.wait_for_place(asked(), freed, now) else {
        panic!("it waits")
    };
    let Entry::Waiting(_soon) = gate.enter_or_wait(asked(), now + QUIET / 2) else {
        panic!("it waits")
    };
    assert_eq!(counts(&gate), (0, 2));
    let Entry::Waiting(_later) = gate.enter_or_wait(asked(), now + QUIET) else {
        panic!("it waits")
    };
    assert_eq!(counts(&gate), (1, 2), "the first may look");
    turn(&mut first).await.expect("its turn").looked();
}

#[tokio::test]
async fn a_place_that_came_free_between_looking_and_waiting_is_not_missed() {
    let gate = gate(100, 10);
    let freed = gate.freed();
    gate.place_freed();
    let Entry::Waiting(mut waiting) = gate.wait_for_place(asked(), freed, Instant::now()) else {
        panic!("it waits")
    };
    drop(turn(&mut waiting).await.expect("its turn"));
}

#[test]
fn the_limit_holds_exactly_whoever_asks_and_leaves() {
    use std::sync::atomic::AtomicUsize;
    let gate = gate(7, 1_000);
    let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (gate, inside, most) = (Arc::clone(&gate), &inside, &most);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    let one = |index: u32| {
                        let gate = Arc::clone(&gate);
                        async move {
                            let _permit = match gate.enter_or_wait(asked(), Instant::now()) {
                                Entry::Permit(permit) => permit,
                                // Some leave just when it may be their turn.
                                Entry::Waiting(waiting) if index.is_multiple_of(5) => {
                                    tokio::task::yield_now().await;
                                    return drop(waiting);
                                }
                                Entry::Waiting(mut waiting) => match turn(&mut waiting).await {
                                    Ok(permit) => permit,
                                    Err(_) => return,
                                },
                                Entry::Rejected(_) => return,
                            };
                            let now = inside.fetch_add(1, SeqCst) + 1;
                            most.fetch_max(now, SeqCst);
                            tokio::task::yield_now().await;
                            inside.fetch_sub(1, SeqCst);
                        }
                    };
                    for round in 0..100 {
                        futures_util::future::join_all((0..20).map(|i| one(i + round + thread)))
                            .await;
                    }
                });
            });
        }
    });
    assert_eq!(counts(&gate), (0, 0));
    assert_eq!(most.load(SeqCst), 7, "it was used, and never more");
}

#[test]
fn the_last_places_are_kept_for_who_is_favoured_until_that_is_over() {
    let gate = gate(40, 10);
    gate.keep_for(Some(1));
    let mut low: Vec<_> = std::iter::from_fn(|| gate.enter(2)).collect();
    assert_eq!(low.len(), 38, "two of forty are kept");
    let (same, higher) = (gate.enter(1).expect("for it"), gate.enter(0).expect("for all above it"));
    assert!(gate.enter(0).is_none(), "there is no more");
    drop((same, higher));
    assert!(gate.enter(2).is_none());
    // Nobody stands here: who is refused is the first to find out.
    match gate.enter_or_wait(Asked { class: 2, ..asked() }, Instant::now()) {
        Entry::Waiting(mut waiting) => {
            assert!(matches!(waiting.turn.try_recv(), Ok(Ok(_))), "it has its turn at once");
        }
        Entry::Permit(_) | Entry::Rejected(_) => panic!("it is in the queue first"),
    }
    low.extend(gate.enter(2));
    assert_eq!(low.len(), 39);
}
