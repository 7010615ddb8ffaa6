//! Metrics as text: the classic Prometheus format, and OpenMetrics 1.0 for whoever asks for it.
//!
//! Why both: every scraper reads the first; the second is what newer ones prefer, and it says which
//! unit a metric has. Why an encoder of our own: the metrics library has none for OpenMetrics, and
//! the two differ in more than their first line (names of counters, bounds of buckets, escaping,
//! the closing mark).
//!
//! What it leaves out: `_created` samples and exemplars, both optional; and families of type
//! "untyped", which this proxy does not have and the library cannot write: they are skipped.

use prometheus::TextEncoder;
use prometheus::proto::{Histogram, Metric, MetricFamily, MetricType, Summary};

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format that an `accept` header prefers. OpenMetrics must be asked for by name and be
    /// preferred no less than plain text; whatever else is asked for gets plain text.
    #[must_use]
    pub fn negotiate(accept: Option<&str>) -> Self {
        let (mut open, mut text) = (0.0_f32, 0.0_f32);
        for range in accept.unwrap_or_default().split(',').map(Range::parse) {
            match range.media.as_str() {
                "application/openmetrics-text" if range.is_version_1 => open = open.max(range.q),
                "text/plain" | "text/*" | "*/*" => text = text.max(range.q),
                _ => {}
            }
        }
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// The `content-type` of the answer.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// One entry of an `accept` header.
struct Range {
    media: String,
    q: f32,
    /// Asks for version 1.0.0, or for none in particular.
    is_version_1: bool,
}

impl Range {
    fn parse(entry: &str) -> Self {
        let mut parts = entry.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut range = Self { media, q: 1.0, is_version_1: true };
        for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            let value = value.trim().trim_matches('"');
            if name.trim().eq_ignore_ascii_case("q") {
                range.q = value.parse().unwrap_or(0.0);
            } else if name.trim().eq_ignore_ascii_case("version") {
                range.is_version_1 = value == "1.0.0";
            }
        }
        range
    }
}

/// Writes metrics as text.
///
/// # Errors
/// If a family has no name. Those of this proxy all have one.
pub fn render(format: Format, families: Vec<MetricFamily>) -> prometheus::Result<String> {
    let mut families = families;
    families.retain(|family| {
        family.get_field_type() != MetricType::UNTYPED && !family.get_metric().is_empty()
    });
    match format {
        Format::Text => TextEncoder::new().encode_to_string(&families),
        Format::OpenMetrics => Ok(open_metrics(&families)),
    }
}

fn open_metrics(families: &[MetricFamily]) -> String {
    let mut out = String::with_capacity(families.len() * 1024);
    for family in families {
        write_family(&mut out, family);
    }
    out.push_str("# EOF\n");
    out
}

fn write_family(out: &mut String, family: &MetricFamily) {
    let kind = family.get_field_type();
    let name = match kind {
        MetricType::COUNTER => family.name().strip_suffix("_total").unwrap_or(family.name()),
        MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED | MetricType::HISTOGRAM => {
            family.name()
        }
    };
    line(out, &["# TYPE ", name, " ", kind_name(kind)]);
    if let Some(unit) = ["seconds", "bytes"].into_iter().find(|unit| has_unit(name, unit)) {
        line(out, &["# UNIT ", name, " ", unit]);
    }
    line(out, &["# HELP ", name, " ", &escape(family.help())]);
    for metric in family.get_metric() {
        write_metric(out, name, kind, metric);
    }
}

fn has_unit(name: &str, unit: &str) -> bool {
    name.strip_suffix(unit).is_some_and(|stem| stem.ends_with('_'))
}

const fn kind_name(kind: MetricType) -> &'static str {
    match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "unknown",
        MetricType::HISTOGRAM => "histogram",
    }
}

fn write_metric(out: &mut String, name: &str, kind: MetricType, metric: &Metric) {
    let mut sample = |suffix: &str, extra: Option<(&str, &str)>, value: f64| {
        write_sample(out, name, suffix, metric, extra, value);
    };
    match kind {
        MetricType::COUNTER => sample("_total", None, metric.get_counter().get_value()),
        MetricType::GAUGE => sample("", None, metric.get_gauge().get_value()),
        MetricType::HISTOGRAM => write_histogram(&mut sample, metric.get_histogram()),
        MetricType::SUMMARY => write_summary(&mut sample, metric.get_summary()),
        MetricType::UNTYPED => {}
    }
}

/// Writes one sample: what follows the name, one more label, the value.
type Sample<'a> = dyn FnMut(&str, Option<(&str, &str)>, f64) + 'a;

#[expect(clippy::cast_precision_loss, reason = "samples are floats by definition")]
fn write_histogram(sample: &mut Sample<'_>, histogram: &Histogram) {
    for bucket in histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite()) {
        let bound = canonical(bucket.upper_bound());
        sample("_bucket", Some(("le", &bound)), bucket.cumulative_count() as f64);
    }
    let count = histogram.get_sample_count() as f64;
    sample("_bucket", Some(("le", "+Inf")), count);
    sample("_count", None, count);
    sample("_sum", None, histogram.get_sample_sum());
}

#[expect(clippy::cast_precision_loss, reason = "samples are floats by definition")]
fn write_summary(sample: &mut Sample<'_>, summary: &Summary) {
    for quantile in summary.get_quantile() {
        sample("", Some(("quantile", &canonical(quantile.quantile()))), quantile.value());
    }
    sample("_count", None, summary.sample_count() as f64);
    sample("_sum", None, summary.sample_sum());
}

fn write_sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    metric: &Metric,
    extra: Option<(&str, &str)>,
    value: f64,
) {
    out.push_str(name);
    out.push_str(suffix);
    let own = metric.get_label().iter().map(|pair| (pair.name(), pair.value()));
    let mut separator = '{';
    for (label, text) in own.chain(extra) {
        out.push(separator);
        out.push_str(label);
        out.push_str("=\"");
        out.push_str(&escape(text));
        out.push('"');
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    line(out, &[" ", &number(value)]);
}

fn line(out: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| out.push_str(part));
    out.push('\n');
}

/// A value: whole numbers without a point.
fn number(value: f64) -> String {
    if value.is_finite() {
        value.to_string()
    } else if value.is_nan() {
        "NaN".to_owned()
    } else if value > 0.0 {
        "+Inf".to_owned()
    } else {
        "-Inf".to_owned()
    }
}

/// A bound as OpenMetrics wants it in a label: always a float, so that `1` and `1.0` are one
/// series.
fn canonical(bound: f64) -> String {
    let mut text = number(bound);
    if bound.is_finite() && !text.contains('.') {
        text.push_str(".0");
    }
    text
}

/// Label values and help texts.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::time::Duration;

    use prometheus::core::Collector as _;

    use super::*;
    use crate::outcome::Outcome;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn openmetrics_is_for_whoever_prefers_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,\
            text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, format) in [
            (None, Format::Text),
            (Some(""), Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/plain"), Format::Text),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (Some("Application/OpenMetrics-Text; version=\"1.0.0\""), Format::OpenMetrics),
            (Some("application/openmetrics-text; version=2.0.0"), Format::Text),
            (Some("application/openmetrics-text;q=0"), Format::Text),
            (Some("application/openmetrics-text;q=0.2, text/plain;q=0.3"), Format::Text),
            (Some("application/openmetrics-text;q=0.3, */*;q=0.3"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=x"), Format::Text),
            (Some(prometheus), Format::OpenMetrics),
        ] {
            assert_eq!(Format::negotiate(accept), format, "{accept:?}");
        }
    }

    /// A proxy that did something, with a route named to break things.
    fn families() -> Vec<MetricFamily> {
        let metrics = Metrics::new("1.0");
        for route in ["plain", "a\"b\\c\nd"] {
            let arm = metrics.arm(route, "stable");
            arm.ended(Outcome::Ok, 200);
            arm.duration.observe(Duration::from_millis(7));
            arm.duration.observe(Duration::from_secs(7000));
            arm.request_bytes.add(1_000_000_007);
        }
        metrics.endpoint("stable", "[::1]:80").in_flight.dec();
        metrics.gather()
    }

    type Labels = Vec<(String, String)>;

    /// What a reader of either format understood.
    #[derive(Debug, Default)]
    struct Read {
        kinds: BTreeMap<String, String>,
        units: BTreeMap<String, String>,
        /// Name, labels in order, value.
        samples: Vec<(String, Labels, f64)>,
    }

    /// An independent, strict reader. It checks that every sample belongs to the family last
    /// announced, that nothing occurs twice, and that histograms add up.
    fn read(text: &str, format: Format) -> Read {
        let mut read = Read::default();
        let mut family = String::new();
        let mut seen = HashSet::new();
        let body = match format {
            Format::Text => text,
            Format::OpenMetrics => text.strip_suffix("# EOF\n").expect("the closing mark"),
        };
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (key, name) = (words.next().expect("key"), words.next().expect("name"));
                let rest = words.next().expect("rest").to_owned();
                assert!(seen.insert(format!("{key} {name}")), "twice: {line}");
                name.clone_into(&mut family);
                match key {
                    "TYPE" => drop(read.kinds.insert(family.clone(), rest)),
                    "UNIT" => drop(read.units.insert(family.clone(), rest)),
                    other => assert_eq!(other, "HELP", "{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("a value");
            assert!(seen.insert(series.to_owned()), "twice: {line}");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let suffix = name.strip_prefix(family.as_str()).expect("of the family announced");
            let allowed: &[&str] = match (read.kinds[&family].as_str(), format) {
                ("counter", Format::OpenMetrics) => &["_total"],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(allowed.contains(&suffix), "{line}");
            let value = value.parse().expect("a number");
            read.samples.push((name.to_owned(), read_labels(labels), value));
        }
        check_histograms(&read);
        read
    }

    fn read_labels(mut text: &str) -> Labels {
        let mut labels = Vec::new();
        while text != "}" {
            let (name, rest) = text.split_once("=\"").expect("a label");
            let (mut value, mut characters) = (String::new(), rest.char_indices());
            let end = loop {
                match characters.next().expect("a closing quote") {
                    (at, '"') => break at,
                    (_, '\\') => match characters.next().expect("an escape").1 {
                        'n' => value.push('\n'),
                        other => value.push(other),
                    },
                    (_, other) => value.push(other),
                }
            };
            labels.push((name.to_owned(), value));
            text = rest[end + 1..].trim_start_matches(',');
        }
        labels
    }

    fn check_histograms(read: &Read) {
        let mut last: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        let mut counts = BTreeMap::new();
        for (name, labels, value) in &read.samples {
            if let Some(family) = name.strip_suffix("_bucket") {
                let (le, others) = labels.split_last().expect("le comes last");
                let bound: f64 = le.1.parse().expect("a bound");
                let before = last.insert(format!("{family}{others:?}"), (bound, *value));
                assert!(before.is_none_or(|(le, count)| le < bound && count <= *value), "{name}");
            } else if let Some(family) = name.strip_suffix("_count") {
                counts.insert(format!("{family}{labels:?}"), (f64::INFINITY, *value));
            }
        }
        assert!(!counts.is_empty(), "there are histograms to check");
        assert_eq!(last, counts, "the last bucket holds all");
    }

    #[test]
    fn both_formats_say_the_same() {
        let text = render(Format::Text, families()).expect("encodes");
        let open = render(Format::OpenMetrics, families()).expect("encodes");
        let (text, open) = (read(&text, Format::Text), read(&open, Format::OpenMetrics));
        let flat = |read: Read| {
            let mut all: Vec<String> = read
                .samples
                .into_iter()
                .map(|(name, mut labels, value)| {
                    if let Some((_, le)) = labels.iter_mut().find(|(label, _)| label == "le") {
                        *le = le.parse::<f64>().expect("a bound").to_string();
                    }
                    format!("{name} {labels:?} {value}")
                })
                .collect();
            all.sort();
            all
        };
        assert_eq!(text.kinds.len(), open.kinds.len());
        assert_eq!(flat(text), flat(open));
    }

    #[test]
    fn counters_units_and_bounds_follow_openmetrics() {
        let open = render(Format::OpenMetrics, families()).expect("encodes");
        let read = read(&open, Format::OpenMetrics);
        assert_eq!(read.kinds["outrigger_requests"], "counter");
        assert_eq!(read.units["outrigger_request_bytes"], "bytes");
        assert_eq!(read.units["outrigger_first_byte_seconds"], "seconds");
        assert_eq!(read.units.get("outrigger_requests"), None);
        assert!(open.contains("le=\"1.0\"} ") && open.contains("le=\"0.001\"} "), "{open}");
        assert!(!open.contains("le=\"1\""));
        let bytes = read.samples.iter().find(|(name, ..)| name == "outrigger_request_bytes_total");
        assert_eq!(bytes.map(|(.., value)| *value), Some(1_000_000_007.0));
    }

    #[test]
    fn hostile_label_values_come_back_unchanged() {
        for format in [Format::Text, Format::OpenMetrics] {
            let text = render(format, families()).expect("encodes");
            let read = read(&text, format);
            let routes: HashSet<_> = read
                .samples
                .iter()
                .flat_map(|(_, labels, _)| labels)
                .filter(|(name, _)| name == "route")
                .map(|(_, value)| value.as_str())
                .collect();
            assert_eq!(routes, HashSet::from(["plain", "a\"b\\c\nd"]), "{format:?}");
        }
    }

    #[test]
    fn numbers_that_are_none_have_names() {
        let values = [1.0, -0.5, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        assert_eq!(values.map(number), ["1", "-0.5", "+Inf", "-Inf", "NaN"]);
        assert_eq!([1.0, 0.25, 1e22].map(canonical), ["1.0", "0.25", "10000000000000000000000.0"]);
    }

    #[test]
    fn collectors_of_the_library_are_written_too() {
        let options = prometheus::Opts::new("x_requests", "A \"quoted\" help.");
        let counter = prometheus::IntCounter::with_opts(options).expect("valid");
        counter.inc();
        let open = render(Format::OpenMetrics, counter.collect()).expect("encodes");
        let expected = "# TYPE x_requests counter\n# HELP x_requests A \\\"quoted\\\" help.\n\
            x_requests_total 1\n# EOF\n";
        assert_eq!(open, expected);
        assert_eq!(render(Format::OpenMetrics, Vec::new()).expect("encodes"), "# EOF\n");
    }
}
