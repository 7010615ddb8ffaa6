//! A table of bad files, `problems.txt`, each with every line that must be said about it and no other.

use crate::parse;

/// A good file of five lines, so that what is added to it starts on line 6.
const GOOD: &str = "\
backends:
  a: { endpoints: ['a:1'] }
routes:
- { backend: a }

";

const TABLE: &str = include_str!("problems.txt");

/// What is said about the file, one problem per line; nothing when it is good.
fn said(text: &str) -> String {
    parse(text, "f").err().map(|report| report.to_string()).unwrap_or_default()
}

#[test]
fn the_good_file_is_good() {
    assert_eq!(said(GOOD), "");
}

#[test]
fn every_problem_of_every_bad_file_is_said_at_its_place() {
    let (mut cases, mut wrong) = (0, Vec::new());
    for case in TABLE.split("\n==== ").skip(1) {
        let (title, rest) = case.split_once('\n').expect("a title ends its line");
        let (text, expected) = rest.split_once("\n----\n").expect("a case has a ---- line");
        let good = if title.ends_with('+') { GOOD } else { "" };
        let (expected, said) = (expected.trim_end(), said(&format!("{good}{text}")));
        assert!(!expected.is_empty(), "{title}: a case without a problem tests nothing");
        if expected != said {
            wrong.push(format!(
                "==== {title}\n{text}\n---- expected\n{expected}\n---- said\n{said}\n"
            ));
        }
        cases += 1;
    }
    assert!(cases >= 60, "only {cases} cases found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
