//! The examples, the comments and the committed JSON schema cannot go stale: each is compared with
//! the types.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::read::tree::{self, Kind, Node};
use crate::{EXAMPLE, MINIMAL, json_schema, load, parse};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_committed_schema_is_the_generated_one() {
    let mut generated = serde_json::to_string_pretty(&json_schema()).expect("a schema is JSON");
    generated.push('\n');
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(file("schema.json"), &generated).expect("schema.json can be written");
    }
    let committed = std::fs::read_to_string(file("schema.json")).unwrap_or_default();
    assert!(committed == generated, "stale: run the tests with UPDATE_SCHEMA=1 to rewrite it");
}

#[test]
fn every_example_is_valid_and_says_nothing_odd() {
    let mut seen = 0;
    for entry in std::fs::read_dir(file("examples")).expect("there are examples") {
        let path = entry.expect("a readable folder").path();
        let config = load(&path).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(config.warnings, [], "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 2, "only {seen} examples");
    parse(MINIMAL, "minimal.yaml").expect("valid");
}

/// Follows `$ref`, and takes the mapping out of "a mapping or off".
fn resolve<'s>(schema: &'s Value, root: &'s Value) -> &'s Value {
    if let Some(name) = schema["$ref"].as_str() {
        let keys = name.trim_start_matches("#/").split('/');
        return resolve(keys.fold(root, |at, key| &at[key]), root);
    }
    let choices = schema["anyOf"].as_array().into_iter().flatten();
    let mut choices = choices.map(|choice| resolve(choice, root));
    choices.find(|choice| choice["properties"].is_object()).unwrap_or(schema)
}

/// Every field of the schema by its path, where `[]` is an element and `{}` a named value.
fn fields() -> BTreeMap<String, Value> {
    fn collect(schema: &Value, root: &Value, path: &str, found: &mut BTreeMap<String, Value>) {
        let mapping = resolve(schema, root);
        for (name, field) in mapping["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            found.insert(path.clone(), field.clone());
            collect(field, root, &path, found);
        }
        if mapping["items"].is_object() {
            collect(&mapping["items"], root, &format!("{path}[]"), found);
        }
        if mapping["additionalProperties"].is_object() {
            collect(&mapping["additionalProperties"], root, &format!("{path}{{}}"), found);
        }
    }
    let (schema, mut found) = (json_schema(), BTreeMap::new());
    collect(&schema, &schema, "", &mut found);
    found
}

fn plain(node: &Node) -> Value {
    match &node.kind {
        Kind::Null => Value::Null,
        Kind::Bool(value) => (*value).into(),
        Kind::Int(value, _) => (*value).into(),
        Kind::Float(value, _) => (*value).into(),
        Kind::Text(text) => text.clone().into(),
        Kind::List(items) => items.iter().map(plain).collect(),
        Kind::Map(entries) => {
            let entries = entries.iter().map(|(key, value)| (key.clone(), plain(value)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
    }
}

fn yaml(text: &str) -> Value {
    plain(&tree::build(text).unwrap_or_else(|flaw| panic!("{text}: {flaw:?}")).root)
}

/// The path of a node as [`fields`] writes it: names of backends, headers and so on become `{}`.
fn field_path(path: &str, known: &BTreeMap<String, Value>) -> Option<String> {
    let mut at = String::new();
    let named = path.replace('[', ".[");
    for part in named.split('.').filter(|part| !part.is_empty()) {
        let next = if part.starts_with('[') && part.ends_with(']') && !part.contains('"') {
            format!("{at}[]")
        } else {
            format!("{at}.{part}")
        };
        let is_prefix = known.keys().any(|path| {
            path.strip_prefix(&next)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
        });
        at = if is_prefix { next } else { format!("{at}{{}}") };
    }
    known.contains_key(&at).then_some(at)
}

#[test]
fn the_full_example_has_every_field() {
    let known = fields();
    assert!(known.len() > 80, "the walk finds the fields, not only {}", known.len());
    let tree = tree::build(EXAMPLE).expect("valid YAML");
    let nodes = tree.root.descendants();
    let shown: BTreeSet<_> = nodes.filter_map(|node| field_path(&node.path, &known)).collect();
    let missing: Vec<_> = known.keys().filter(|path| !shown.contains(*path)).collect();
    assert!(missing.is_empty(), "examples/full.yaml lacks {missing:#?}");
}

/// What a comment claims: `default` alone is the value beside it, `default: x` is x.
fn claimed(comment: &str, value: &Value) -> Option<Value> {
    let (_, rest) = comment.split_once("default")?;
    match rest.strip_prefix(": ") {
        Some(rest) => Some(yaml(rest.split(';').next().unwrap_or_default())),
        None => Some(value.clone()),
    }
}

#[test]
fn the_defaults_in_the_full_example_are_the_real_ones() {
    let known = fields();
    let tree = tree::build(EXAMPLE).expect("valid YAML");
    let mut compared = 0;
    for node in tree.root.descendants() {
        let Some(path) = field_path(&node.path, &known) else { continue };
        let real = &known[&path]["default"];
        let line = EXAMPLE.lines().nth(node.key_line().saturating_sub(1)).unwrap_or_default();
        let comment = line.split_once(" # ").map_or("", |(_, comment)| comment);
        // The default of a mapping is shown by its keys; a mapping in one line has its comment for
        // itself.
        let mapping = real.as_object().is_some_and(|real| !real.is_empty());
        let one_line = line.contains(&format!("{{ {}: ", path.rsplit('.').next().unwrap_or("")));
        if real.is_null() || mapping || one_line {
            continue;
        }
        let same = claimed(comment, &plain(node)) == Some(real.clone());
        let off = *real == "off" || plain(node) == "off";
        assert!(same || (off && comment.is_empty()), "{path}: default {real}, but: {line}");
        compared += 1;
    }
    assert!(compared > 45, "only {compared} defaults compared");
}

#[test]
fn every_field_is_described_with_its_range_and_its_default() {
    for (path, field) in fields() {
        let text = field["description"].as_str().unwrap_or_else(|| panic!("{path}: undescribed"));
        for choice in field["anyOf"].as_array().into_iter().flatten().chain([&field]) {
            for (low, high) in [("minimum", "maximum"), ("x-minimum", "x-maximum")] {
                // A percentage says its range twice; the words have it with the sign.
                let twice = low == "minimum" && !choice["x-minimum"].is_null();
                let (low, high) = (&choice[low], &choice[high]);
                if !low.is_null() && *low != 100 && !twice {
                    let range = format!("{low} to {high}").replace('"', "");
                    assert!(text.contains(&range), "{path}: {range} is not in: {text}");
                }
            }
        }
        let Some((_, claim)) = text.split_once("Default: ") else { continue };
        let claim = claim.trim_end_matches('.');
        let real = &field["default"];
        if real.is_string() || real.is_number() {
            assert_eq!(yaml(claim), *real, "{path}: {text}");
        }
    }
}

#[test]
fn every_value_with_a_default_says_so() {
    let scalar = |field: &Value| field["default"].is_string() || field["default"].is_number();
    for (path, field) in fields().into_iter().filter(|(_, field)| scalar(field)) {
        let text = field["description"].as_str().unwrap_or_default();
        assert!(text.contains("Default: "), "{path}: {text}");
    }
}

/// The default of something that is off by default, as it stands in the file: `place` has an `@` for
/// it.
fn written<T: serde::Serialize + Default>(place: &str) -> String {
    let default = serde_json::to_string(&T::default()).expect("JSON");
    format!("{{{}}}", place.replace('@', &default))
}

#[test]
fn defaults_are_in_their_own_ranges() {
    use crate::schema;
    let file = serde_json::to_string(&schema::File::default()).expect("JSON");
    for text in [
        file,
        written::<schema::Route>("routes: [@]"),
        written::<schema::Guard>("routes: [{guard: @}]"),
        written::<schema::Steps>("routes: [{guard: {steps: @}}]"),
        written::<schema::Mirror>("routes: [{mirror: @}]"),
        written::<schema::Redis>("answers: {redis: @}"),
        written::<schema::Tracing>("tracing: @"),
        written::<schema::Compress>("routes: [{compress: @}]"),
        written::<schema::Decompress>("routes: [{decompress: @}]"),
        written::<schema::Batch>("routes: [{batch: @}]"),
        written::<schema::Hedge>("routes: [{hedge: @}]"),
        written::<schema::Answers>("routes: [{answers: @}]"),
        written::<schema::FallbackAnswers>("routes: [{fallback: {answers: @}}]"),
        written::<schema::AnswerWarmUp>("answers: {warm_up: @}"),
        written::<schema::AdaptiveLimit>("routes: [{limit: {adaptive: @}}]"),
        written::<schema::Queue>("routes: [{queue: @}]"),
        written::<schema::Priority>("routes: [{priority: @}]"),
        written::<schema::RateLimit>("routes: [{rates: [@]}]"),
        written::<schema::Backend>("backends: {a: @}"),
        written::<schema::Health>("backends: {a: {health: @}}"),
        written::<schema::Scrape>("backends: {a: {signals: {scrape: @}}}"),
        written::<schema::WarmUp>("backends: {a: {warm_up: @}}"),
        written::<schema::WarmUpRequest>("backends: {a: {warm_up: {requests: [@]}}}"),
        written::<schema::SlowStart>("backends: {a: {slow_start: @}}"),
        written::<schema::Latency>("backends: {a: {ejection: {latency: @}}}"),
        written::<schema::Breaker>("backends: {a: {breaker: @}}"),
    ] {
        let report = parse(&text, "x").expect_err("a default file has no route");
        let form = ["found", "unknown", "expected"];
        let is_form = |message: &str| form.iter().any(|word| message.contains(word));
        assert!(!report.problems.iter().any(|found| is_form(&found.message)), "{text}: {report}");
    }
}
