use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

pub(super) fn settings(size: usize, wait: Duration, target: Duration) -> Settings {
    Settings { size, wait, target }
}

fn queue(size: usize) -> Queue<u32> {
    Queue::new(settings(size, 10 * SECOND, SECOND))
}

fn of_class(class: usize) -> Asked {
    Asked { class, deadline: None, again: None }
}

fn until(class: usize, deadline: Instant) -> Asked {
    Asked { class, deadline: Some(deadline), again: None }
}

/// Enters and expects that nobody has to go for it.
fn enter(queue: &mut Queue<u32>, asked: Asked, item: u32, now: Instant) -> Ticket {
    let mut gone = Vec::new();
    let ticket = queue.enter(asked, item, now, &mut gone).expect("it may wait");
    assert_eq!(gone, []);
    ticket
}

fn next(queue: &mut Queue<u32>, now: Instant) -> Option<u32> {
    queue.next(now, &mut Vec::new()).map(|(item, _)| item)
}

#[test]
fn the_nearest_deadline_is_next_and_then_who_came_first() {
    let (mut queue, now) = (queue(10), Instant::now());
    enter(&mut queue, until(0, now + 5 * SECOND), 1, now);
    enter(&mut queue, until(0, now + 2 * SECOND), 2, now);
    enter(&mut queue, of_class(0), 3, now);
    enter(&mut queue, of_class(0), 4, now);
    let order: Vec<_> = std::iter::from_fn(|| next(&mut queue, now)).collect();
    assert_eq!(order, [2, 1, 3, 4]);
}

#[test]
fn a_higher_class_goes_first_until_the_lower_one_was_passed_over_often() {
    let (mut queue, now) = (queue(100), Instant::now());
    enter(&mut queue, of_class(1), 99, now);
    (0..20).for_each(|item| _ = enter(&mut queue, of_class(0), item, now));
    let order: Vec<_> = std::iter::from_fn(|| next(&mut queue, now)).collect();
    assert_eq!(order[..11], [0, 1, 2, 3, 4, 5, 6, 7, 8, 99, 9]);
}

#[test]
fn a_full_queue_pushes_the_newest_of_a_lower_class_out() {
    let (mut queue, now) = (queue(4), Instant::now());
    (0..4).for_each(|item| _ = enter(&mut queue, of_class(1), item, now));
    let mut gone = Vec::new();
    assert_eq!(queue.enter(of_class(1), 8, now, &mut gone), Err(Why::Full));
    queue.enter(of_class(0), 9, now, &mut gone).expect("it is worth more");
    assert_eq!(gone, [(3, Why::Shed)]);
    assert_eq!((queue.len(), next(&mut queue, now)), (4, Some(9)));
}

#[test]
fn a_lower_class_keeps_a_share_of_a_full_queue() {
    let (mut queue, now) = (queue(16), Instant::now());
    let mut gone = Vec::new();
    (0..16).for_each(|item| _ = enter(&mut queue, of_class(0), item, now));
    queue.enter(of_class(1), 100, now, &mut gone).expect("two of sixteen are kept for it");
    queue.enter(of_class(1), 101, now, &mut gone).expect("two of sixteen are kept for it");
    assert_eq!(queue.enter(of_class(1), 102, now, &mut gone), Err(Why::Full));
    assert_eq!(queue.enter(of_class(0), 103, now, &mut gone), Err(Why::Full));
    assert_eq!(gone, [(15, Why::Shed), (14, Why::Shed)]);
}

#[test]
fn whoever_has_waited_for_as_long_as_it_may_is_told() {
    let (mut queue, now) = (queue(10), Instant::now());
    let ticket = enter(&mut queue, until(0, now + 2 * SECOND), 1, now);
    assert_eq!(queue.first_look(&ticket, now), now + 2 * SECOND);
    assert_eq!(queue.look(&ticket, now + SECOND), Look::Waits(now + 2 * SECOND));
    assert_eq!(queue.look(&ticket, now + 2 * SECOND), Look::Gone(Why::TimedOut));
    assert_eq!(queue.look(&ticket, now + 2 * SECOND), Look::Unknown);
    assert!(queue.is_empty());
}

#[test]
fn one_whose_deadline_has_passed_gets_no_place() {
    let (mut queue, now) = (queue(10), Instant::now());
    enter(&mut queue, until(0, now + SECOND), 1, now);
    enter(&mut queue, of_class(0), 2, now);
    let mut gone = Vec::new();
    let next = queue.next(now + 2 * SECOND, &mut gone).map(|(item, _)| item);
    assert_eq!((next, gone), (Some(2), vec![(1, Why::TimedOut)]));
}

#[test]
fn whoever_leaves_is_gone_at_once() {
    let (mut queue, now) = (queue(1), Instant::now());
    let ticket = enter(&mut queue, of_class(0), 1, now);
    assert!(queue.leave(&ticket, now) && !queue.leave(&ticket, now));
    assert!(queue.is_empty());
    enter(&mut queue, of_class(0), 2, now);
    assert_eq!((next(&mut queue, now), next(&mut queue, now)), (Some(2), None));
}

#[test]
fn whoever_would_not_make_it_is_turned_away_at_the_door() {
    let (mut queue, mut now) = (queue(100), Instant::now());
    (0..10).for_each(|item| _ = enter(&mut queue, of_class(0), item, now));
    // A place each second; seven wait.
    for item in 0..3 {
        now += SECOND;
        assert_eq!(next(&mut queue, now), Some(item));
    }
    let mut gone = Vec::new();
    enter(&mut queue, until(0, now + 9 * SECOND), 10, now);
    let late = queue.enter(until(0, now + 7500 * MS), 11, now, &mut gone);
    assert_eq!(late, Err(Why::Shed), "behind seven that go first");
    enter(&mut queue, until(0, now + 1100 * MS), 12, now);
    assert_eq!(next(&mut queue, now + SECOND), Some(12), "its deadline is the nearest");
}

#[test]
fn a_standing_queue_turns_the_old_away_and_serves_the_newest() {
    let (mut queue, start) = (Queue::new(settings(100, SECOND, 100 * MS)), Instant::now());
    // A place each ten milliseconds, and never is nobody waiting.
    enter(&mut queue, of_class(0), 0, start);
    for item in 1..99 {
        let now = start + item * 10 * MS;
        enter(&mut queue, of_class(0), item, now);
        assert_eq!(next(&mut queue, now), Some(item - 1));
    }
    (100..106).for_each(|item| _ = enter(&mut queue, of_class(0), item, start + 985 * MS));
    // Then none for long.
    let now = start + 1080 * MS;
    assert!(queue.is_standing(now));
    assert_eq!(next(&mut queue, now), Some(105), "the newest: not all can make it");
    let mut gone = Vec::new();
    let served = queue.next(now + 10 * MS, &mut gone).map(|(item, _)| item);
    assert_eq!(served, None);
    let shed: Vec<_> = [100, 101, 102, 103, 104].map(|item| (item, Why::Shed)).into();
    assert_eq!(gone, shed);
}

/// A queue that stood until three seconds after this time, and is empty since.
fn stood() -> (Queue<u32>, Instant) {
    let (mut queue, start) = (Queue::new(settings(10, SECOND, 100 * MS)), Instant::now());
    enter(&mut queue, of_class(0), 1, start);
    assert_eq!(next(&mut queue, start + 900 * MS), Some(1));
    // Four times the interval between two places.
    let soon = start + 3 * SECOND;
    enter(&mut queue, of_class(0), 2, soon);
    assert!(queue.is_standing(soon));
    assert_eq!(next(&mut queue, soon), Some(2));
    (queue, start)
}

#[test]
fn it_stands_no_longer_when_nobody_waits_for_a_while() {
    let (mut queue, start) = stood();
    let later = start + 60 * SECOND;
    enter(&mut queue, of_class(0), 3, later);
    assert!(!queue.is_standing(later));
}

#[test]
fn those_whose_own_time_is_over_do_not_keep_it_standing() {
    let (mut queue, start) = stood();
    let mut gone = Vec::new();
    for tenth in 31..600 {
        let now = start + tenth * 100 * MS;
        assert_eq!(queue.enter(until(0, now), 3, now, &mut gone), Err(Why::Shed));
    }
    let later = start + 60 * SECOND;
    enter(&mut queue, of_class(0), 4, later);
    assert!(!queue.is_standing(later));
}

#[test]
fn a_seat_is_kept_for_one_that_found_no_place() {
    let (mut queue, now) = (queue(2), Instant::now());
    enter(&mut queue, of_class(0), 1, now);
    enter(&mut queue, of_class(0), 2, now);
    let mut gone = Vec::new();
    let (_, seat) = queue.next(now, &mut gone).expect("somebody waits");
    enter(&mut queue, of_class(0), 3, now);
    // Its seat is its own, also when others have taken all there are.
    enter(&mut queue, Asked { again: Some(seat), ..of_class(0) }, 1, now + SECOND);
    assert_eq!(next(&mut queue, now + SECOND), Some(1));
    let again = Asked { again: Some(seat), ..of_class(0) };
    assert_eq!(queue.enter(again, 1, now + 60 * SECOND, &mut gone), Err(Why::TimedOut));
}
