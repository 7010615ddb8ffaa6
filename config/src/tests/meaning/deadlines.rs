//! Routes: how long each part may take, and what changes under load.

use std::time::Duration;

use super::read;
use crate::validated::{
    Adaptive, Bound, BudgetField, Deadline, Level, LevelAction, Levels, LoadMeasure, Route,
    Strategy,
};

fn route(settings: &str) -> Route {
    let config = read(&format!(
        "
backends: {{ a: {{ endpoints: ['a:1'], signals: {{ orca: true }} }} }}
routes: [{{ backend: a, {settings} }}]
"
    ));
    config.routes[0].clone()
}

fn deadline(settings: &str) -> Deadline {
    route(&format!("deadline: {settings}")).deadline
}

const MILLI: Duration = Duration::from_millis(1);
const QUANTILE: Strategy = Strategy::Quantile { quantile: 0.999, margin: 2.0 };

/// Learned in the default way.
fn learned(floor: u32, ceiling: u32) -> Adaptive {
    let (floor, ceiling) = (MILLI * floor, MILLI * ceiling);
    Adaptive { strategy: QUANTILE, floor, ceiling, explore: 0.01 }
}

#[test]
fn one_word_makes_the_first_byte_and_the_gaps_learned() {
    let expected = Deadline {
        connect: Bound::Fixed(MILLI * 2_000),
        first_byte: Bound::Adaptive(learned(1_000, 120_000)),
        gap: Bound::Adaptive(learned(2_000, 60_000)),
        total: None,
        client_budget: true,
        tell_endpoint: None,
    };
    assert_eq!(deadline("adaptive"), expected);
    assert_eq!(deadline("{ first_byte: adaptive, gap: {} }"), expected);
    let connect = deadline("{ connect: adaptive }").connect;
    assert_eq!(connect, Bound::Adaptive(learned(250, 2_000)));
}

#[test]
fn fixed_times_are_the_default() {
    let expected = Deadline {
        connect: Bound::Fixed(MILLI * 2_000),
        first_byte: Bound::Fixed(MILLI * 120_000),
        gap: Bound::Fixed(MILLI * 60_000),
        total: None,
        client_budget: true,
        tell_endpoint: None,
    };
    assert_eq!(deadline("{}"), expected);
    let told = deadline("{ client_budget: false, tell_endpoint: grpc-timeout, gap: off }");
    let tell_endpoint = Some(BudgetField::GrpcTimeout);
    let expected = Deadline { client_budget: false, tell_endpoint, gap: Bound::Off, ..expected };
    assert_eq!(told, expected);
}

#[test]
fn every_strategy_has_its_own_settings() {
    for (written, strategy) in [
        ("quantile", QUANTILE),
        ("quantile, quantile: 95%", Strategy::Quantile { quantile: 0.95, margin: 2.0 }),
        ("quantile, margin: 1", Strategy::Quantile { quantile: 0.999, margin: 1.0 }),
        ("mean_stddev", Strategy::MeanStddev { samples: 200, deviations: 6.0 }),
        (
            "mean_stddev, samples: 50, deviations: 2.5",
            Strategy::MeanStddev { samples: 50, deviations: 2.5 },
        ),
        ("rto", Strategy::Rto),
    ] {
        let bound = deadline(&format!("{{ gap: {{ strategy: {written} }} }}")).gap;
        let expected = Adaptive { strategy, ..learned(2_000, 60_000) };
        assert_eq!(bound, Bound::Adaptive(expected), "{written}");
    }
}

#[test]
fn a_limit_that_is_given_moves_the_one_that_is_not() {
    for (written, floor, ceiling) in [
        ("ceiling: 300ms", 300, 300),
        ("floor: 3m", 180_000, 180_000),
        ("floor: 5ms, ceiling: 10s", 5, 10_000),
        ("floor: 5ms", 5, 120_000),
    ] {
        let bound = deadline(&format!("{{ first_byte: {{ {written} }} }}")).first_byte;
        assert_eq!(bound, Bound::Adaptive(learned(floor, ceiling)), "{written}");
    }
}

#[test]
fn levels_have_defaults() {
    let levels = "levels: { table: [
        { from: 120, first_byte: 500ms },
        { from: 480, first_byte: 1200ms, total: 1m, action: prefer_stored },
        { from: 900, scale: 0.5, action: shed } ] }";
    let level = |from, first_byte: Option<u32>, action| Level {
        from,
        scale: 1.0,
        first_byte: first_byte.map(|millis| MILLI * millis),
        total: None,
        action,
    };
    let second = level(480.0, Some(1_200), LevelAction::PreferStored);
    let expected = Levels {
        by: LoadMeasure::RequestsPerSecond,
        table: vec![
            level(120.0, Some(500), LevelAction::Normal),
            Level { total: Some(MILLI * 60_000), ..second },
            Level { scale: 0.5, ..level(900.0, None, LevelAction::Shed) },
        ],
        hysteresis: 0.2,
        hold: MILLI * 5_000,
    };
    assert_eq!(route(levels).levels, Some(expected));
    assert_eq!(route("levels: off").levels, None);
    let by =
        |word: &str| route(&format!("levels: {{ by: {word}, table: [{{ from: 1 }}] }}")).levels;
    assert_eq!(by("queue").map(|levels| levels.by), Some(LoadMeasure::Queue));
}

#[test]
fn what_a_level_that_turns_away_says_of_deadlines_is_odd() {
    let config = read(
        "
backends: { a: { endpoints: ['a:1'] } }
routes: [{ backend: a, levels: { table: [{ from: 5, scale: 2, action: shed }] } }]
",
    );
    let said: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("turns every request away"), "{said:?}");
}
