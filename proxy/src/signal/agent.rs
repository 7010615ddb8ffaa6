//! The answer of an agent: one line in which something beside an engine says how much it wants. The
//! protocol is that of HAProxy's `agent-check`, so that agents written for it serve here as well.
//!
//! What it decides: what the line says. Words are separated by spaces, tabs or commas and may be in
//! any order and case; of several of one kind the last one counts. The line ends at the first CR or
//! LF; what comes after it is not looked at.
//!
//! | word | meaning |
//! |---|---|
//! | `75%`, `weight:75%` | the weight as a share of the configured one |
//! | `weight:12` | the weight itself, 0 to 256 |
//! | `maxconn:30` | requests that may be in flight there |
//! | `up`; `down`, `fail`, `stopped` | it works; it does not. What follows a `#` says why |
//! | `ready`, `drain`, `maint` | it takes requests; no new ones; none at all, and its health is not to be checked |
//!
//! What a line does not mention stays as it was ([`Word::update`]), and only the agent takes back
//! what it said. Whether it works and whether it takes requests are two things: `drain up` is an
//! answer, and `ready` undoes the `drain` and not a `down`.
//!
//! What it leaves out: the connection. That none can be made says nothing about the engine, which
//! has its own check.
//!
//! Sources: HAProxy's configuration manual (`agent-check`) and its parser, which settles what the
//! manual leaves open.
//! One difference: HAProxy obeys the words that it knows and shows the first that it does not; here
//! a line with an unknown word is refused as a whole, because half an order is not what the agent
//! meant.

use std::fmt;

/// The longest line, in bytes, without its end.
pub const MAX_LINE: usize = 1024;

/// The highest weight that can be given as such, as for HAProxy.
const MAX_WEIGHT: u32 = 256;

/// HAProxy's limit, in percent: 256 times the configured weight.
const MAX_PERCENT: u32 = 25_600;

/// What an agent said. `None` is what it did not mention.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Word {
    /// How much it wants.
    pub weight: Option<Weight>,
    /// Whether the engine works.
    pub operating: Option<Operating>,
    /// Whether it takes requests.
    pub admin: Option<Admin>,
    /// Requests that may be in flight from each proxy; 0 is no limit, as for HAProxy.
    pub maxconn: Option<u32>,
    /// Why, in the agent's words: what followed `#` in a line that said whether the engine works.
    pub reason: Option<String>,
}

/// A weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weight {
    /// Of the configured one: 0.0 to 256.0, mostly 0.0 to 1.0.
    Share(f64),
    /// Instead of the configured one: 0 to 256.
    Absolute(u32),
}

impl Weight {
    /// The factor by which the configured weight (1 or more) is to be multiplied.
    #[must_use]
    pub fn share(self, configured: u32) -> f64 {
        match self {
            Weight::Share(share) => share,
            Weight::Absolute(weight) => f64::from(weight) / f64::from(configured.max(1)),
        }
    }
}

/// Whether an engine works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operating {
    /// It does.
    Up,
    /// It does not: it is missing.
    Down,
    /// It does not: it runs, and fails.
    Failed,
    /// It does not, as it should be.
    Stopped,
}

/// Whether an engine takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    /// It does.
    Ready,
    /// It takes only those that belong to a session that it has.
    Drain,
    /// None, and it is not to be checked.
    Maint,
}

/// Why an answer is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentError {
    /// A word that means nothing.
    Unknown(String),
    /// A word that begins like a known one, with a number that is none or out of range.
    Number(String),
    /// More than [`MAX_LINE`] bytes without an end.
    TooLong,
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AgentError::Unknown(word) => write!(f, "agent: unknown word {word:?}"),
            AgentError::Number(word) => write!(f, "agent: no such number in {word:?}"),
            AgentError::TooLong => write!(f, "agent: no end of line within {MAX_LINE} bytes"),
        }
    }
}

impl std::error::Error for AgentError {}

impl Word {
    /// Reads what was received so far. `None` while the line has no end: read on, and if nothing
    /// more comes, the agent said nothing.
    ///
    /// # Errors
    /// [`AgentError`], which names the word.
    pub fn read(received: &[u8]) -> Result<Option<Self>, AgentError> {
        let end = memchr::memchr2(b'\r', b'\n', received);
        match end {
            Some(end) if end <= MAX_LINE => Self::of_line(&received[..end]).map(Some),
            None if received.len() <= MAX_LINE => Ok(None),
            _ => Err(AgentError::TooLong),
        }
    }

    /// Takes over what a newer line mentions.
    pub fn update(&mut self, newer: Word) {
        self.weight = newer.weight.or(self.weight);
        self.admin = newer.admin.or(self.admin);
        self.maxconn = newer.maxconn.or(self.maxconn);
        if newer.operating.is_some() {
            (self.operating, self.reason) = (newer.operating, newer.reason);
        }
    }

    fn of_line(line: &[u8]) -> Result<Self, AgentError> {
        let (words, comment) = parts(line);
        let mut said = Word::default();
        for word in words.split(is_separator).filter(|word| !word.is_empty()) {
            said.learn(&String::from_utf8_lossy(word))?;
        }
        said.reason = said.operating.and_then(|_| reason(comment));
        Ok(said)
    }

    fn learn(&mut self, word: &str) -> Result<(), AgentError> {
        let lower = word.to_ascii_lowercase();
        let number = || AgentError::Number(word.to_owned());
        match lower.as_str() {
            "up" => self.operating = Some(Operating::Up),
            "down" => self.operating = Some(Operating::Down),
            "fail" => self.operating = Some(Operating::Failed),
            "stopped" => self.operating = Some(Operating::Stopped),
            "ready" => self.admin = Some(Admin::Ready),
            "drain" => self.admin = Some(Admin::Drain),
            "maint" => self.admin = Some(Admin::Maint),
            other => {
                if let Some(limit) = other.strip_prefix("maxconn:") {
                    self.maxconn = Some(whole(limit).ok_or_else(number)?);
                } else if let Some(weight) = other.strip_prefix("weight:") {
                    self.weight = Some(weight_of(weight).ok_or_else(number)?);
                } else if other.starts_with(|first: char| first.is_ascii_digit())
                    && other.contains('%')
                {
                    self.weight = Some(weight_of(other).ok_or_else(number)?);
                } else {
                    return Err(AgentError::Unknown(word.to_owned()));
                }
            }
        }
        Ok(())
    }
}

fn is_separator(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b',')
}

/// The words of a line, and what follows the first `#` that begins a word.
fn parts(line: &[u8]) -> (&[u8], &[u8]) {
    let begins_word =
        |at: usize| at.checked_sub(1).is_none_or(|before| is_separator(&line[before]));
    match memchr::memchr_iter(b'#', line).find(|at| begins_word(*at)) {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, &[]),
    }
}

fn reason(comment: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(comment).trim().replace(char::is_control, " ");
    (!text.is_empty()).then_some(text)
}

/// A weight without its word: `75%` or `12`.
fn weight_of(text: &str) -> Option<Weight> {
    match text.strip_suffix('%') {
        Some(percent) => Some(Weight::Share(f64::from(whole(percent)?.min(MAX_PERCENT)) / 100.0)),
        None => whole(text).filter(|weight| *weight <= MAX_WEIGHT).map(Weight::Absolute),
    }
}

/// A number of nothing but digits; one that is too large to hold is the largest.
fn whole(digits: &str) -> Option<u32> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    fn said(line: &str) -> Word {
        let answer = Word::read(format!("{line}\n").as_bytes());
        answer.unwrap_or_else(|error| panic!("{line:?}: {error}")).expect("the line has an end")
    }

    fn refused(line: &str) -> AgentError {
        Word::read(format!("{line}\n").as_bytes()).expect_err(line)
    }

    fn operating(how: Operating) -> Word {
        Word { operating: Some(how), ..Word::default() }
    }

    fn admin(how: Admin) -> Word {
        Word { admin: Some(how), ..Word::default() }
    }

    fn weight(weight: Weight) -> Word {
        Word { weight: Some(weight), ..Word::default() }
    }

    #[test]
    fn every_word_alone() {
        assert_eq!(said("up"), operating(Operating::Up));
        assert_eq!(said("down"), operating(Operating::Down));
        assert_eq!(said("fail"), operating(Operating::Failed));
        assert_eq!(said("stopped"), operating(Operating::Stopped));
        assert_eq!(said("ready"), admin(Admin::Ready));
        assert_eq!(said("drain"), admin(Admin::Drain));
        assert_eq!(said("maint"), admin(Admin::Maint));
        assert_eq!(said("50%"), weight(Weight::Share(0.5)));
        assert_eq!(said("0%"), weight(Weight::Share(0.0)));
        assert_eq!(said("weight:150%"), weight(Weight::Share(1.5)));
        assert_eq!(said("weight:12"), weight(Weight::Absolute(12)));
        assert_eq!(said("maxconn:30"), Word { maxconn: Some(30), ..Word::default() });
        assert_eq!(said(""), Word::default());
        assert_eq!(said(" \t, "), Word::default());
    }

    #[test]
    fn several_words_in_any_order_case_and_separation() {
        let all = Word {
            weight: Some(Weight::Share(0.75)),
            operating: Some(Operating::Up),
            admin: Some(Admin::Ready),
            maxconn: Some(30),
            reason: None,
        };
        assert_eq!(said("up ready 75% maxconn:30"), all);
        assert_eq!(said("MAXCONN:30,Ready\tuP , 75%"), all);
        assert_eq!(said("down,drain 10% up  weight:75% ready maxconn:1 maxconn:30"), all);
    }

    #[test]
    fn a_reason_belongs_to_a_word_on_operation() {
        let failed = Word {
            reason: Some("out of memory, GPU 3".to_owned()),
            ..operating(Operating::Failed)
        };
        assert_eq!(said("fail # \tout of memory, GPU 3 "), failed);
        assert_eq!(said("down #"), operating(Operating::Down));
        assert_eq!(said("drain # rolling update"), admin(Admin::Drain));
        assert_eq!(said("# drain"), Word::default());
        assert_eq!(said("stopped #a\u{7}b#c").reason.as_deref(), Some("a b#c"));
        assert_eq!(refused("down#reason"), AgentError::Unknown("down#reason".to_owned()));
    }

    #[test]
    fn words_and_numbers_that_mean_nothing_are_named() {
        for word in ["upp", "75", "%", "-5%", "+5%", "weight", "maxconn", "caf\u{e9}", "u\u{fffd}p"]
        {
            assert_eq!(refused(&format!("up {word} drain")), AgentError::Unknown(word.to_owned()));
        }
        let numbers = [
            "weight:",
            "weight:257",
            "weight:x",
            "weight:-1",
            "weight:%",
            "7x%",
            "5%%",
            "0.5%",
            "maxconn:",
            "maxconn:1k",
        ];
        for word in numbers {
            assert_eq!(refused(&format!("up {word}")), AgentError::Number(word.to_owned()));
        }
        assert_eq!(refused("Bogus").to_string(), "agent: unknown word \"Bogus\"");
        assert_eq!(refused("weight:x").to_string(), "agent: no such number in \"weight:x\"");
    }

    #[test]
    fn numbers_without_bounds_are_bounded() {
        assert_eq!(said("99999999999999999999%").weight, Some(Weight::Share(256.0)));
        assert_eq!(said("maxconn:99999999999999999999").maxconn, Some(u32::MAX));
        assert_eq!(said("weight:256").weight, Some(Weight::Absolute(256)));
    }

    #[test]
    fn a_weight_is_a_share_of_the_configured_one() {
        assert_eq!(Weight::Share(0.75).share(8), 0.75);
        assert_eq!(Weight::Absolute(12).share(8), 1.5);
        assert_eq!(Weight::Absolute(0).share(1), 0.0);
        assert_eq!(Weight::Absolute(3).share(0), 3.0);
    }

    #[test]
    fn a_line_is_read_once_it_has_an_end() {
        assert_eq!(Word::read(b""), Ok(None));
        assert_eq!(Word::read(b"up 75"), Ok(None));
        for end in ["\r", "\n", "\r\n", "\rnonsense", "\nnonsense\n"] {
            let received = format!("up{end}");
            assert_eq!(
                Word::read(received.as_bytes()),
                Ok(Some(operating(Operating::Up))),
                "{end:?}"
            );
        }
        let longest = [vec![b' '; MAX_LINE - 2], b"up\n".to_vec()].concat();
        assert_eq!(Word::read(&longest), Ok(Some(operating(Operating::Up))));
        assert_eq!(Word::read(&longest[..MAX_LINE]), Ok(None));
        assert_eq!(Word::read(&[b' '; MAX_LINE + 1]), Err(AgentError::TooLong));
        let longer = [b" ", &*longest].concat();
        assert_eq!(Word::read(&longer), Err(AgentError::TooLong));
    }

    #[test]
    fn what_is_not_mentioned_stays() {
        let mut known = said("down 40% maxconn:5 # loading");
        known.update(said("drain"));
        known.update(said("weight:7"));
        let both = Word {
            weight: Some(Weight::Absolute(7)),
            operating: Some(Operating::Down),
            admin: Some(Admin::Drain),
            maxconn: Some(5),
            reason: Some("loading".to_owned()),
        };
        assert_eq!(known, both);
        known.update(said("up ready maxconn:0"));
        let after = Word {
            operating: Some(Operating::Up),
            admin: Some(Admin::Ready),
            maxconn: Some(0),
            reason: None,
            ..both
        };
        assert_eq!(known, after);
    }

    #[test]
    fn nonsense_is_an_error_and_never_a_panic() {
        let mut rng = StdRng::seed_from_u64(17);
        let alphabet = b"updown 0159%#:,\tweightmaxconnready\r\n\x00\xff";
        let mut outcomes = [0; 3];
        for _ in 0..20_000 {
            let len = rng.random_range(0..24);
            let line: Vec<u8> =
                (0..len).map(|_| alphabet[rng.random_range(0..alphabet.len())]).collect();
            match Word::read(&line) {
                Ok(None) => outcomes[0] += 1,
                Ok(Some(word)) => {
                    let share = word.weight.map_or(0.0, |weight| weight.share(1));
                    assert!((0.0..=256.0).contains(&share), "{line:?}: {word:?}");
                    outcomes[1] += 1;
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    outcomes[2] += 1;
                }
            }
        }
        assert!(outcomes.iter().all(|count| *count > 100), "{outcomes:?}");
    }
}
