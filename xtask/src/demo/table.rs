//! The table of the demo, from scrapes alone: what it shows, any dashboard can show.

use std::fmt::Write as _;

use super::scrape::{Label, Scrape};

/// What is shown, and over which times.
pub(crate) struct View<'a> {
    /// (arm, weight) as the split is configured now.
    pub(crate) split: &'a [(String, f64)],
    /// The gauges as they are.
    pub(crate) now: &'a Scrape,
    /// Everything counted since the split was last changed.
    pub(crate) total: &'a Scrape,
    /// What was counted lately, and in how many seconds.
    pub(crate) recent: &'a Scrape,
    pub(crate) recent_seconds: f64,
}

const REQUESTS: &str = "outrigger_requests_total";

const COLUMNS: [(&str, usize); 8] = [
    ("arm", 8),
    ("want", 6),
    ("got", 7),
    ("in flight", 11),
    ("req/s", 7),
    ("first byte p50/p99", 20),
    ("total p50", 11),
    ("tokens/s", 9),
];

/// The table, a line per arm, and below it how the requests of each arm ended. Fits 80 columns.
pub(crate) fn render(view: &View<'_>) -> String {
    let mut text = row(&COLUMNS.map(|(heading, _)| heading.to_owned()));
    for (arm, weight) in view.split {
        text += &row(&cells(view, arm, *weight));
    }
    text.push('\n');
    for (arm, _) in view.split {
        let _ = writeln!(text, "  {arm}: {}", outcomes(view.total, arm));
    }
    text
}

fn cells(view: &View<'_>, arm: &str, weight: f64) -> [String; 8] {
    let label: &[Label<'_>] = &[("arm", arm)];
    let all: f64 =
        view.split.iter().map(|(arm, _)| view.total.sum(REQUESTS, &[("arm", arm)])).sum();
    let weights: f64 = view.split.iter().map(|(_, weight)| weight).sum();
    let first_byte = |q| view.total.quantile("outrigger_first_byte_seconds", label, q);
    let tokens = view.recent.sum("outrigger_tokens_total", &[("arm", arm), ("direction", "out")]);
    [
        arm.to_owned(),
        share(weight, weights),
        share(view.total.sum(REQUESTS, label), all),
        format!("{:.0}", view.now.sum("outrigger_endpoint_in_flight", &[("backend", arm)])),
        format!("{:.1}", view.recent.sum(REQUESTS, label) / view.recent_seconds),
        format!("{} / {}", time(first_byte(0.5)), time(first_byte(0.99))),
        time(view.total.quantile("outrigger_request_duration_seconds", label, 0.5)),
        format!("{:.0}", tokens / view.recent_seconds),
    ]
}

/// Names read from the left, figures line up on the right.
fn row(cells: &[String; 8]) -> String {
    let mut line = String::from(" ");
    for (index, (cell, (_, width))) in cells.iter().zip(COLUMNS).enumerate() {
        let _ = match index {
            0 => write!(line, " {cell:<0$}", width - 1),
            _ => write!(line, "{cell:>width$}"),
        };
    }
    line + "\n"
}

fn outcomes(total: &Scrape, arm: &str) -> String {
    let outcomes = total.sums_by(REQUESTS, &[("arm", arm)], "outcome");
    let seen = outcomes.iter().filter(|(_, count)| **count > 0.0);
    let words: Vec<String> = seen.map(|(outcome, count)| format!("{count:.0} {outcome}")).collect();
    if words.is_empty() { "nothing yet".to_owned() } else { words.join(", ") }
}

fn share(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1}%", 100.0 * part / whole) } else { "-".to_owned() }
}

fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 0.01 => format!("{:.1} ms", seconds * 1e3),
        Some(seconds) if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"
outrigger_requests_total{route="chat",arm="stable",outcome="ok",code="200"} 90
outrigger_requests_total{route="chat",arm="canary",outcome="ok",code="200"} 9
outrigger_requests_total{route="chat",arm="canary",outcome="gap_timeout",code="200"} 1
outrigger_requests_total{route="-",arm="-",outcome="no_route",code="404"} 50
outrigger_endpoint_in_flight{backend="stable",endpoint="127.0.0.1:1"} 5
outrigger_first_byte_seconds_bucket{route="chat",arm="stable",le="0.1"} 90
outrigger_first_byte_seconds_bucket{route="chat",arm="stable",le="+Inf"} 90
outrigger_tokens_total{route="chat",arm="stable",direction="out"} 500
outrigger_tokens_total{route="chat",arm="stable",direction="in"} 7
"#;

    #[test]
    fn an_arm_is_a_line_of_figures_and_what_met_no_arm_is_left_out() {
        let scrape = Scrape::parse(METRICS);
        let split = [("stable".to_owned(), 90.0), ("canary".to_owned(), 10.0)];
        let (now, total, recent) = (&scrape, &scrape, &scrape);
        let table = render(&View { split: &split, now, total, recent, recent_seconds: 10.0 });
        let words = |line: usize| -> Vec<&str> {
            table.lines().nth(line).unwrap_or_default().split_whitespace().collect()
        };
        assert_eq!(words(1).join(" "), "stable 90.0% 90.0% 5 9.0 50 ms / 99 ms - 50");
        assert_eq!(words(2).join(" "), "canary 10.0% 10.0% 0 1.0 - / - - 0");
        assert_eq!(words(4).join(" "), "stable: 90 ok");
        assert_eq!(words(5).join(" "), "canary: 1 gap_timeout, 9 ok");
        assert!(table.lines().all(|line| line.len() <= 80), "{table}");
    }
}
