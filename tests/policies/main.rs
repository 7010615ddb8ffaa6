//! The balancing policies against each other, on simulated fleets in virtual time.
//!
//! The worlds (`worlds.rs`) are small copies of what goes wrong in real fleets. Every policy gets the same requests. The
//! figures are in `proxy/BALANCING.md`; `UPDATE_TABLE=1 cargo test --test policies` writes them anew.

mod deadlines;
mod fleet;
mod measure;
mod table;
mod traffic;
mod worlds;

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use self::table::{Figure, GOODPUT, Grid, IMBALANCE, P99, POLICIES};

/// Never used for tuning.
const HELD_OUT: &[u64] = &[1, 2, 3];

static GRID: LazyLock<Grid> = LazyLock::new(|| Grid::run(worlds::all(), HELD_OUT));

/// By how much the default loses to the best, as a share; below 0 when nobody is as good.
fn loss(world: &str, figure: &Figure) -> f64 {
    let (default, best) = ((figure.of)(&GRID.of(world, POLICIES[0].0)), GRID.best(world, figure));
    if figure.more_is_better { best / default - 1.0 } else { default / best - 1.0 }
}

/// A figure of a policy in a world.
fn figure(world: &str, policy: &str, figure: &Figure) -> f64 {
    (figure.of)(&GRID.of(world, policy))
}

#[test]
fn the_default_is_within_five_percent_of_the_best_in_every_world() {
    for world in GRID.worlds() {
        for (name, figure) in [("first byte", &P99), ("goodput", &GOODPUT)] {
            let loss = loss(world, figure);
            assert!(loss <= 0.05, "{world}, {name}: {:.1} % behind the best", loss * 100.0);
        }
    }
}

#[test]
fn dealing_in_turn_fails_where_an_endpoint_is_slow() {
    for world in ["one slow", "large fleet", "small fleet"] {
        let others = POLICIES.iter().filter(|(policy, _)| *policy != "round_robin");
        let worst = others.map(|(policy, _)| figure(world, policy, &P99)).fold(0.0, f64::max);
        assert!(figure(world, "round_robin", &P99) > 2.0 * worst, "{world}");
    }
}

#[test]
fn counting_work_beats_counting_requests_where_prompts_differ() {
    let p99 = |policy| figure("bimodal", policy, &P99);
    for counting in ["power_of_two", "peak_ewma", "least_time", "session_affinity", "round_robin"] {
        assert!(2.0 * p99("least_connection") < p99(counting), "{counting}");
    }
}

#[test]
fn who_knows_caches_keeps_up_where_prompts_share_their_heads() {
    let goodput = |policy| figure("shared prefixes", policy, &GOODPUT);
    for knowing in ["least_load", "prefix_affinity", "consistent_hash"] {
        for other in ["least_connection", "power_of_two", "peak_ewma", "round_robin"] {
            assert!(goodput(knowing) > 10.0 * goodput(other), "{knowing} against {other}");
        }
    }
}

#[test]
fn a_hot_prefix_is_shared_out() {
    let imbalance = |policy| figure("shared prefixes", policy, &IMBALANCE);
    assert!(imbalance("session_affinity") > 1.4, "one engine is too few for it");
    for policy in ["least_load", "prefix_affinity", "consistent_hash"] {
        assert!(imbalance(policy) < 1.25, "{policy}");
    }
}

#[test]
fn who_sees_slowness_spares_those_who_start_cold() {
    let p99 = |policy| figure("cold start", policy, &P99);
    for blind in ["least_connection", "power_of_two", "consistent_hash", "round_robin"] {
        assert!(1.3 * p99("least_load") < p99(blind), "{blind}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_one_another() {
    let world = worlds::World { measured: Duration::from_secs(2), ..worlds::all().remove(4) };
    for (policy, kind) in POLICIES {
        let first = fleet::run(&world, *kind, 7);
        assert_eq!(first, fleet::run(&world, *kind, 7), "{policy}");
        assert_ne!(first, fleet::run(&world, *kind, 8), "{policy}");
    }
}

const BEGIN: &str = "<!-- measured: begin -->\n";
const END: &str = "<!-- measured: end -->\n";

#[test]
fn the_document_tells_what_is_measured() {
    compare("BALANCING.md", &format!("\n{}\n", GRID.markdown()));
}

#[test]
fn the_document_of_deadlines_tells_what_is_measured() {
    compare("DEADLINES.md", &format!("\n{}\n", deadlines::markdown()));
}

fn compare(document: &str, measured: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy").join(document);
    let text = std::fs::read_to_string(&path).expect("the document is there");
    let (head, rest) = text.split_once(BEGIN).expect("it says where tables begin");
    let (told, tail) = rest.split_once(END).expect("and where they end");
    if std::env::var_os("UPDATE_TABLE").is_some() {
        std::fs::write(&path, [head, BEGIN, measured, END, tail].concat()).expect("writable");
    } else {
        assert_eq!(told, measured, "UPDATE_TABLE=1 writes the tables anew");
    }
}
