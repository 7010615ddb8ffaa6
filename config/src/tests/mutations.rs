//! Seeded damage to good files: whatever the text, reading ends, and ends with a configuration or
//! with problems.

use crate::{EXAMPLE, MINIMAL, Report, parse, parse_endpoints};

struct Dice(u64);

impl Dice {
    /// A number below `most`.
    fn roll(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most.max(1) as u64) as usize
    }
}

const SCRAPS: [&str; 28] = [
    "off",
    "-1",
    "99999999999999999999",
    "[",
    "]",
    "{",
    "}",
    ": ",
    "- ",
    "\n",
    "  ",
    "\t",
    "*",
    "&a ",
    "*a",
    "!!str ",
    "~",
    "\"",
    "'",
    "#",
    "|",
    "é",
    "---\n",
    "0s",
    "5%",
    "1e999",
    "least_load",
    "client: true",
];

const ENDPOINTS: &str = "\
- 10.0.0.1:8000 # the first
- { address: 'vllm.models.svc:8000', weight: 2, zone: eu-1a }
- address: http://[::1]:80/
  local: true
";

fn damaged(text: &str, dice: &mut Dice) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    for _ in 0..=dice.roll(3) {
        let at = dice.roll(letters.len());
        match dice.roll(4) {
            0 => {
                letters.remove(at);
            }
            1 => {
                let scrap: Vec<char> = SCRAPS[dice.roll(SCRAPS.len())].chars().collect();
                letters.splice(at..at, scrap);
            }
            2 => {
                let end = (at + dice.roll(40)).min(letters.len());
                letters.drain(at..end);
            }
            _ => {
                let end = (at + dice.roll(80)).min(letters.len());
                let copy: Vec<char> = letters[at..end].to_vec();
                let to = dice.roll(letters.len());
                letters.splice(to..to, copy);
            }
        }
    }
    letters.into_iter().collect()
}

/// Every problem has its place in the text and words for people.
fn is_told(text: &str, report: &Report) {
    assert!(!report.problems.is_empty(), "{text}");
    let lines = text.lines().count() + 1;
    for problem in &report.problems {
        assert!((1..=lines).contains(&problem.line), "{problem}\n{text}");
        assert!(!problem.message.contains("Mistake"), "{problem}");
    }
}

#[test]
fn damage_never_panics_and_never_goes_without_a_word() {
    let mut dice = Dice(0x5eed_0f0b_0a75);
    let (mut good, mut bad) = (0, 0);
    for round in 0..3000 {
        let text = damaged(if round % 3 == 0 { MINIMAL } else { EXAMPLE }, &mut dice);
        match parse(&text, "x") {
            Ok(config) => {
                serde_json::to_string(&config).expect("what is valid can be printed");
                good += 1;
            }
            Err(report) => {
                is_told(&text, &report);
                bad += 1;
            }
        }
    }
    assert!(good > 100 && bad > 1000, "both must happen: {good} good, {bad} bad");
}

#[test]
fn a_damaged_file_of_endpoints_is_told_or_is_none_the_worse() {
    let mut dice = Dice(0x0dd5_eed5);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..2000 {
        let text = damaged(ENDPOINTS, &mut dice);
        match parse_endpoints(&text, "x") {
            Ok(endpoints) => good += usize::from(!endpoints.is_empty()),
            Err(report) => {
                is_told(&text, &report);
                bad += 1;
            }
        }
    }
    assert!(good > 100 && bad > 500, "both must happen: {good} good, {bad} bad");
}

#[test]
fn hostile_yaml_ends() {
    let deep = format!("a: {}", "[".repeat(200));
    let deep_block: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    let itself = "a: &a [*a]";
    let wide = "x: 1\n".repeat(5000);
    for text in
        [&deep, &deep_block, &bomb, itself, &wide, "\u{0}", "%YAML 9", "\u{feff}", "? [a]\n: b"]
    {
        let report = parse(text, "x").expect_err("not a configuration");
        assert!((1..=5000).contains(&report.problems.len()), "{}", report.problems.len());
    }
}
