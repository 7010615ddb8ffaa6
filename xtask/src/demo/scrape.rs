//! What `/metrics` said, and the few questions the table asks of it.
//!
//! Reads the Prometheus text format as Outrigger writes it; quantiles are estimated as PromQL's
//! `histogram_quantile` does, so that the demo shows what a dashboard would.

use std::collections::BTreeMap;

/// One scrape, or the difference between two.
#[derive(Clone, Default)]
pub(crate) struct Scrape(BTreeMap<Series, f64>);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
}

/// A label that a series must carry.
pub(crate) type Label<'a> = (&'a str, &'a str);

impl Scrape {
    pub(crate) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(series).collect())
    }

    /// What was counted since `earlier`. Meant for counters and histograms only.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let value = |series: &Series| earlier.0.get(series).copied().unwrap_or(0.0);
        Self(self.0.iter().map(|(series, now)| (series.clone(), now - value(series))).collect())
    }

    /// The sum over all series of this name with all these labels; 0 when there is none.
    pub(crate) fn sum(&self, name: &str, labels: &[Label<'_>]) -> f64 {
        // From a positive zero: the standard library's empty sum of floats is -0, and would be shown so.
        self.matching(name, labels).fold(0.0, |sum, (_, value)| sum + value)
    }

    /// The sums per value of one label, in the order of that label.
    pub(crate) fn sums_by(
        &self,
        name: &str,
        labels: &[Label<'_>],
        by: &str,
    ) -> BTreeMap<&str, f64> {
        let mut sums = BTreeMap::new();
        for (series, value) in self.matching(name, labels) {
            let key = series.labels.get(by).map_or("", String::as_str);
            *sums.entry(key).or_insert(0.0) += value;
        }
        sums
    }

    /// An estimate of a histogram's quantile in its own unit; nothing when nothing was observed.
    pub(crate) fn quantile(&self, name: &str, labels: &[Label<'_>], q: f64) -> Option<f64> {
        let buckets = self.sums_by(&format!("{name}_bucket"), labels, "le");
        let bound =
            |text: &str| if text == "+Inf" { Some(f64::INFINITY) } else { text.parse().ok() };
        let mut buckets: Vec<(f64, f64)> =
            buckets.into_iter().filter_map(|(le, count)| Some((bound(le)?, count))).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        interpolate(&buckets, q)
    }

    fn matching(&self, name: &str, labels: &[Label<'_>]) -> impl Iterator<Item = (&Series, f64)> {
        let carries = |series: &Series| {
            labels.iter().all(|(key, value)| series.labels.get(*key).is_some_and(|it| it == value))
        };
        let named = self.0.iter().filter(move |(series, _)| series.name == name);
        named.filter(move |(series, _)| carries(series)).map(|(series, value)| (series, *value))
    }
}

/// Buckets are (upper bound, observations at or below it), sorted by bound.
fn interpolate(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let total = buckets.last()?.1;
    if total <= 0.0 {
        return None;
    }
    let rank = q * total;
    let at = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (lower, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    let (upper, count) = buckets[at];
    match upper.is_finite() {
        true => Some(lower + (upper - lower) * (rank - below) / (count - below).max(1.0)),
        // Beyond the last bound nothing is known but that bound.
        false => Some(lower),
    }
}

fn series(line: &str) -> Option<(Series, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, rest) = labels(rest)?;
            (name, labels, rest)
        }
        None => line.split_once(' ').map(|(name, rest)| (name, BTreeMap::new(), rest))?,
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((Series { name: name.to_owned(), labels }, value))
}

/// Reads `a="b",c="d"}` and returns what follows the brace.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let (value, rest) = label_value(rest)?;
        labels.insert(name.to_owned(), value);
        text = rest;
    }
}

/// Reads up to the closing quote and undoes the three escapes of the format.
fn label_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP requests_total Requests
# TYPE requests_total counter
requests_total{arm="stable",outcome="ok"} 9
requests_total{arm="stable",outcome="gap_timeout"} 1
requests_total{arm="canary",outcome="ok"} 2
odd{path="a\"}\\b\nc",} 1.5 1700000000
plain 3e2
wait_seconds_bucket{arm="stable",le="0.1"} 50
wait_seconds_bucket{arm="stable",le="0.2"} 90
wait_seconds_bucket{arm="stable",le="+Inf"} 100
"#;

    #[test]
    fn sums_select_by_labels() {
        let scrape = Scrape::parse(TEXT);
        assert_eq!(scrape.sum("requests_total", &[]), 12.0);
        assert_eq!(scrape.sum("requests_total", &[("arm", "stable")]), 10.0);
        assert_eq!(scrape.sum("requests_total", &[("arm", "none")]), 0.0);
        assert_eq!(scrape.sum("plain", &[]), 300.0);
        assert_eq!(scrape.sum("odd", &[("path", "a\"}\\b\nc")]), 1.5);
    }

    #[test]
    fn sums_are_grouped_by_a_label() {
        let scrape = Scrape::parse(TEXT);
        let outcomes = scrape.sums_by("requests_total", &[("arm", "stable")], "outcome");
        assert_eq!(outcomes, BTreeMap::from([("gap_timeout", 1.0), ("ok", 9.0)]));
    }

    #[test]
    fn quantiles_are_interpolated_within_a_bucket() {
        let scrape = Scrape::parse(TEXT);
        let quantile = |q| scrape.quantile("wait_seconds", &[("arm", "stable")], q).unwrap();
        assert!((quantile(0.5) - 0.1).abs() < 1e-9);
        assert!((quantile(0.7) - 0.15).abs() < 1e-9);
        assert!((quantile(0.99) - 0.2).abs() < 1e-9, "beyond the last bound: that bound");
        assert_eq!(scrape.quantile("wait_seconds", &[("arm", "canary")], 0.5), None);
    }

    #[test]
    fn a_difference_counts_only_what_came_since() {
        let now = Scrape::parse("a 5\nb 2\n");
        let since = now.since(&Scrape::parse("a 3\n"));
        assert_eq!((since.sum("a", &[]), since.sum("b", &[])), (2.0, 2.0));
    }
}
