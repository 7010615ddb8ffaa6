//! Which metrics a PromQL expression names, and with which labels.
//!
//! Not a parser of PromQL: it knows just enough of the language to tell a metric from a function, a keyword, a label,
//! a string, a duration and a dashboard's variable.

use std::collections::BTreeSet;

/// What an expression names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Each metric with the labels of its selector.
    pub(super) metrics: Vec<(String, BTreeSet<String>)>,
    /// The labels of `by`, `without`, `on`, `ignoring` and `group_left`.
    pub(super) grouping: BTreeSet<String>,
}

const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const KEYWORDS: [&str; 8] = ["and", "or", "unless", "bool", "offset", "inf", "nan", "atan2"];

pub(super) fn names(expression: &str) -> Names {
    let mut names = Names::default();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        match first {
            '"' | '\'' | '`' => rest = after_string(rest),
            '[' => rest = rest.split_once(']').map_or("", |(_, rest)| rest),
            '{' => {
                let (inside, after) = selector(rest);
                if let Some((_, labels)) = names.metrics.last_mut() {
                    labels.extend(labels_of_matchers(inside));
                }
                rest = after;
            }
            _ if is_word(first) => {
                let (word, after) = split_word(rest);
                rest = names.take(word, after);
            }
            _ => rest = &rest[first.len_utf8()..],
        }
    }
    names
}

impl Names {
    /// Files a word by what follows it and returns what is still to be read.
    fn take<'a>(&mut self, word: &str, after: &'a str) -> &'a str {
        let next = after.trim_start();
        if is_one_of(&GROUPING, word) {
            return self.take_group(next);
        }
        let is_function = next.starts_with('(') || is_one_of(&GROUPING, split_word(next).0);
        let is_name = word.starts_with(|c: char| c.is_ascii_alphabetic() || "_:".contains(c));
        if is_name && !is_function && !is_one_of(&KEYWORDS, word) {
            self.metrics.push((word.to_owned(), BTreeSet::new()));
        }
        after
    }

    fn take_group<'a>(&mut self, next: &'a str) -> &'a str {
        let Some((inside, after)) = next.strip_prefix('(').and_then(|rest| rest.split_once(')'))
        else {
            return next;
        };
        let labels = inside.split(',').map(str::trim).filter(|label| !label.is_empty());
        self.grouping.extend(labels.map(str::to_owned));
        after
    }
}

/// Digits and a dashboard's `$` belong to a word, so that `5m` and `$route` are each read in one piece.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_:$".contains(c)
}

fn split_word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_word(c)).unwrap_or(text.len()))
}

/// The language does not mind the case of its keywords.
fn is_one_of(words: &[&str], word: &str) -> bool {
    words.iter().any(|it| it.eq_ignore_ascii_case(word))
}

/// What follows the string that `text` begins with.
fn after_string(text: &str) -> &str {
    let Some(quote) = text.chars().next() else {
        return text;
    };
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

/// Splits `{inside}after`; a brace within a string does not count.
fn selector(text: &str) -> (&str, &str) {
    let inside = &text[1..];
    let mut rest = inside;
    while let Some(first) = rest.chars().next() {
        match first {
            '"' | '\'' => rest = after_string(rest),
            '}' => return (&inside[..inside.len() - rest.len()], &rest[1..]),
            _ => rest = &rest[first.len_utf8()..],
        }
    }
    (inside, "")
}

fn labels_of_matchers(mut inside: &str) -> BTreeSet<String> {
    let mut labels = BTreeSet::new();
    while let Some(first) = inside.chars().next() {
        match first {
            '"' | '\'' => inside = after_string(inside),
            _ if is_word(first) => {
                let (label, after) = split_word(inside);
                labels.insert(label.to_owned());
                inside = after;
            }
            _ => inside = &inside[first.len_utf8()..],
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(expression: &str) -> (Vec<String>, String) {
        let names = names(expression);
        let metric = |(name, labels): &(String, BTreeSet<String>)| {
            format!("{name}{{{}}}", labels.iter().cloned().collect::<Vec<_>>().join(","))
        };
        let grouping = names.grouping.iter().cloned().collect::<Vec<_>>().join(",");
        (names.metrics.iter().map(metric).collect(), grouping)
    }

    #[test]
    fn functions_durations_and_strings_are_no_metrics() {
        let (metrics, grouping) =
            read(r#"sum by (le, arm) (rate(a_bucket{b=~"x}y|c", d!="\"e"}[5m])) > 0.5"#);
        assert_eq!((metrics, grouping.as_str()), (vec!["a_bucket{b,d}".to_owned()], "arm,le"));
    }

    #[test]
    fn both_sides_of_an_operator_are_read() {
        let (metrics, grouping) = read(
            "sum(a) / on (x) group_left sum without (y) (b offset 5m) or -c and ON(z) d > bool 1",
        );
        assert_eq!(metrics, ["a{}", "b{}", "c{}", "d{}"]);
        assert_eq!(grouping, "x,y,z");
    }

    #[test]
    fn variables_of_a_dashboard_are_skipped() {
        let (metrics, _) = read(r#"increase(a{route=~"$route"}[$__rate_interval]) * $factor + up"#);
        assert_eq!(metrics, ["a{route}", "up{}"]);
    }
}
