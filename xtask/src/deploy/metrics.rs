//! Whether what `deploy/` names exists: the metrics, labels and outcomes in queries and texts are compared with the
//! proxy's source, because a dashboard that asks for a renamed metric shows nothing and says nothing.
//!
//! The source is read as text: to link the proxy would make this package as slow to build as the proxy. If the form
//! of the declarations changes, this fails and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::promql;
use crate::workspace;

const DECLARATIONS: &str = "proxy/src/telemetry/metrics/table.rs";
const OUTCOMES: &str = "proxy/src/outcome.rs";
const PREFIX: &str = "outrigger_";

/// Labels that a scrape adds.
const OF_THE_SCRAPE: [&str; 4] = ["job", "instance", "namespace", "pod"];

#[test]
fn every_query_asks_for_metrics_and_labels_that_exist() {
    let series = declared_series();
    for Query { file, text } in queries() {
        let names = promql::names(&text);
        assert!(!names.metrics.is_empty(), "{file}: no metric in `{text}`");
        let mut known: BTreeSet<&str> = OF_THE_SCRAPE.into();
        for (metric, labels) in &names.metrics {
            let has = series.get(metric).unwrap_or_else(|| panic!("{file}: no `{metric}`: {text}"));
            known.extend(has.iter().map(String::as_str));
            for label in labels {
                let exists = has.contains(label) || OF_THE_SCRAPE.contains(&label.as_str());
                assert!(exists, "{file}: `{metric}` has no label `{label}`: {text}");
            }
        }
        for label in &names.grouping {
            assert!(known.contains(label.as_str()), "{file}: no label `{label}`: {text}");
        }
    }
}

#[test]
fn every_text_that_names_a_metric_names_one_that_exists() {
    let declared = declarations();
    let series = declared_series();
    for path in files() {
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices(PREFIX) {
            let word: String = text[at..].chars().take_while(|c| is_name(*c)).collect();
            let exists = declared.contains_key(&word) || series.contains_key(&word);
            assert!(exists, "{}: there is no metric `{word}`", path.display());
        }
    }
}

#[test]
fn every_outcome_that_a_query_selects_exists() {
    let source = read(OUTCOMES);
    let mut seen = 0;
    for Query { file, text } in queries() {
        for matcher in ["outcome=~\"", "outcome!~\"", "outcome=\"", "outcome!=\""] {
            for selected in text.split(matcher).skip(1).filter_map(|rest| rest.split('"').next()) {
                for outcome in selected.split('|') {
                    assert!(source.contains(&format!("\"{outcome}\"")), "{file}: no `{outcome}`");
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 0, "no query selects by outcome any more: this test has lost its subject");
}

/// A query and the file it stands in.
struct Query {
    file: String,
    text: String,
}

fn queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for path in files() {
        let text = fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let found = match path.extension().and_then(|end| end.to_str()) {
            Some("json") => of_dashboard(&serde_json::from_str(&text).unwrap()),
            Some("yaml") => of_rules(&text),
            _ => continue,
        };
        queries.extend(found.into_iter().map(|text| Query { file: file.clone(), text }));
    }
    for file in ["outrigger.json", "alerts.yaml", "alerts.test.yaml"] {
        assert!(queries.iter().any(|query| query.file == file), "no query found in {file}");
    }
    queries
}

/// Panels hold theirs under `expr`; variables hold `label_values(query, label)` under `definition`.
fn of_dashboard(json: &Value) -> Vec<String> {
    match json {
        Value::Array(items) => items.iter().flat_map(of_dashboard).collect(),
        Value::Object(fields) => {
            fields.iter().flat_map(|(key, value)| of_field(key, value)).collect()
        }
        _ => Vec::new(),
    }
}

fn of_field(key: &str, value: &Value) -> Vec<String> {
    match (key, value.as_str()) {
        ("expr", Some(query)) => vec![query.to_owned()],
        ("definition", Some(call)) => {
            let inside = call.strip_prefix("label_values(").and_then(|it| it.strip_suffix(')'));
            let (query, label) = inside.and_then(|it| it.rsplit_once(',')).unwrap();
            vec![format!("sum by ({}) ({query})", label.trim())]
        }
        _ => of_dashboard(value),
    }
}

/// `expr: query` or `expr: |` with deeper lines below, and the `series:` of tests.
fn of_rules(yaml: &str) -> Vec<String> {
    let lines: Vec<&str> = yaml.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut queries = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let field = line.trim_start_matches([' ', '-']);
        match field.strip_prefix("expr:").or_else(|| field.strip_prefix("series:")).map(str::trim) {
            Some("|") => {
                let block = lines[at + 1..].iter().take_while(|it| indent(it) > indent(line));
                queries.push(block.copied().collect::<Vec<_>>().join("\n"));
            }
            Some(query) => queries.push(query.to_owned()),
            None => {}
        }
    }
    queries
}

/// A metric as declared.
struct Metric {
    labels: BTreeSet<String>,
    is_histogram: bool,
}

/// Every series that a query may name, with its labels: a histogram is three.
fn declared_series() -> BTreeMap<String, BTreeSet<String>> {
    let mut series = BTreeMap::new();
    for (name, Metric { labels, is_histogram }) in declarations() {
        if !is_histogram {
            series.insert(name, labels);
            continue;
        }
        for suffix in ["_sum", "_count"] {
            series.insert(format!("{name}{suffix}"), labels.clone());
        }
        let of_bucket = labels.into_iter().chain(["le".to_owned()]).collect();
        series.insert(format!("{name}_bucket"), of_bucket);
    }
    series
}

/// Reads lines like `Requests COUNTER "requests_total" ["route" "arm"]` of the table of declarations.
fn declarations() -> BTreeMap<String, Metric> {
    let source = read(DECLARATIONS);
    let table = source.split_once("\ndeclare! {\n").and_then(|(_, rest)| rest.split_once("\n}\n"));
    let (table, _) = table.expect("the table of metrics is no longer `declare! { … }`");
    let found: BTreeMap<String, Metric> = table.lines().filter_map(declaration).collect();
    let entries = table.lines().filter(|line| line.ends_with(';')).count();
    assert_eq!(found.len(), entries, "the form of a declaration in {DECLARATIONS} has changed");
    found
}

fn declaration(line: &str) -> Option<(String, Metric)> {
    let (head, labels) = line.trim().strip_suffix(']')?.split_once('[')?;
    let mut words = head.split_whitespace().skip(1);
    let (kind, name) = (words.next()?, words.next()?.trim_matches('"'));
    let labels = labels.split_whitespace().map(|label| label.trim_matches('"').to_owned());
    let metric = Metric { labels: labels.collect(), is_histogram: kind == "HISTOGRAM" };
    Some((format!("{PREFIX}{name}"), metric))
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn read(file: &str) -> String {
    fs::read_to_string(workspace::root().join(file))
        .unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Every file under `deploy/`.
fn files() -> Vec<PathBuf> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, files) } else { files.push(path) }
        }
    }
    let mut files = Vec::new();
    walk(&workspace::root().join("deploy"), &mut files);
    files
}
