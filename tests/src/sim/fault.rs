//! The ways in which the simulator can misbehave, and the book of which request meets which.
//!
//! A fault is written `NAME[=ARG][;key=value]...`: `reset`, `reset_mid=3`, `status=429;retry_after=1`,
//! `stall_mid=2;for=500ms`, and any of them with `;at=NAME` to mean only the simulator of that name. A request asks for
//! one by the header `x-sim-fault`; the control endpoint and [`super::Simulator::fault`] inflict them on a share or a
//! number of requests. Times are real, not scaled by the simulator's speed. On h2 a fault that ends the
//! connection ends it for every stream on it. What each does to the wire is in
//! `misbehave.rs` and `connection.rs`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::random::Random;

/// The request header that asks for a fault.
pub const HEADER: &str = "x-sim-fault";

/// One way to misbehave.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// `refuse[=DURATION]`: stop listening and close every connection once it is idle; control only. Listens again
    /// after the duration, or when told to resume.
    Refuse(Option<Duration>),
    /// `reset`: TCP RST before answering.
    Reset,
    /// `reset_mid=N`: TCP RST after N events (or, of an answer that is no stream, after half of it).
    ResetMid(u64),
    /// `close`: FIN before answering.
    Close,
    /// `close_mid=N`: FIN after N events, without the end of the body.
    CloseMid(u64),
    /// `stall_first_byte[=DURATION]`: send nothing, not even a head, for so long or for ever.
    StallFirstByte(Option<Duration>),
    /// `stall_mid=N[;for=DURATION]`: fall silent after N events, for so long or for ever. N = 0: after the head.
    StallMid(u64, Option<Duration>),
    /// `garbage`: bytes that are not HTTP, then FIN.
    Garbage,
    /// `bad_chunk=N`: after N events a chunk whose size is not a number, then FIN; HTTP/1.1 only.
    BadChunk(u64),
    /// `slow[=FACTOR]`: this request's tokens come FACTOR times later (default 10).
    Slow(f64),
    /// `status=CODE[;retry_after=TEXT]`: an error answer in the engine's shape.
    Status(u16, Option<String>),
    /// `wrong_length[=larger|smaller]`: a Content-Length larger (default) or smaller than what is sent, then FIN.
    WrongLength(Length),
    /// `no_health`: `/health` answers 500.
    NoHealth,
    /// `health_stall`: `/health` never answers.
    HealthStall,
    /// `slow_health[=DURATION]`: `/health` answers late (default 1 s).
    SlowHealth(Duration),
    /// `trickle[=DURATION]`: the answer is written byte by byte, so far apart (default 1 ms).
    Trickle(Duration),
}

/// How a Content-Length lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// It promises more than comes.
    Larger,
    /// More comes than it says.
    Smaller,
}

impl Fault {
    /// Whether it concerns `/health` and nothing else.
    pub fn is_about_health(&self) -> bool {
        matches!(self, Self::NoHealth | Self::HealthStall | Self::SlowHealth(_))
    }
}

/// A fault and whom it hits, as the control endpoint takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What to do.
    pub fault: Fault,
    /// The share of matching requests that meet it, 0.0 to 1.0.
    pub share: f64,
    /// How many requests may still meet it; none = no limit.
    pub count: Option<u64>,
    /// Only requests whose path starts with this.
    pub path: String,
    /// Only requests whose body holds this text; when empty, whatever the body. Such a rule makes the simulator receive
    /// every body before it decides.
    pub body: String,
}

impl Rule {
    /// Every request that the fault can concern.
    pub fn always(fault: Fault) -> Self {
        Self { fault, share: 1.0, count: None, path: String::new(), body: String::new() }
    }

    /// The same, for a share of the requests, chosen at random.
    #[must_use]
    pub fn share(self, share: f64) -> Self {
        Self { share, ..self }
    }

    /// The same, for the next `count` requests.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { count: Some(count), ..self }
    }

    /// The same, only for paths that start with `path`.
    #[must_use]
    pub fn path(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// The same, only for bodies that hold `text`.
    #[must_use]
    pub fn holding(self, text: &str) -> Self {
        Self { body: text.to_owned(), ..self }
    }
}

/// A [`Rule`] as JSON: `{"fault":"stall_first_byte","arg":"2s","share":0.3,"count":5,"path":"/v1/"}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleText {
    fault: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arg: Option<serde_json::Value>,
    #[serde(default = "whole")]
    share: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(default)]
    path: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    body: String,
}

fn whole() -> f64 {
    1.0
}

impl TryFrom<RuleText> for Rule {
    type Error = String;

    fn try_from(text: RuleText) -> Result<Self, String> {
        let fault = match &text.arg {
            None | Some(serde_json::Value::Null) => text.fault,
            Some(serde_json::Value::String(arg)) => format!("{}={arg}", text.fault),
            Some(arg) => format!("{}={arg}", text.fault),
        };
        if !(0.0..=1.0).contains(&text.share) {
            return Err(format!("share is {}, not between 0 and 1", text.share));
        }
        let RuleText { share, count, path, body, .. } = text;
        Ok(Self { fault: fault.parse()?, share, count, path, body })
    }
}

impl From<&Rule> for RuleText {
    fn from(rule: &Rule) -> Self {
        let text = rule.fault.to_string();
        let (fault, arg) = text.split_once('=').map_or((&*text, None), |(f, a)| (f, Some(a)));
        Self {
            fault: fault.to_owned(),
            arg: arg.map(Into::into),
            share: rule.share,
            count: rule.count,
            path: rule.path.clone(),
            body: rule.body.clone(),
        }
    }
}

/// The rules in force.
#[derive(Debug)]
pub(crate) struct Book {
    rules: Vec<Rule>,
    random: Random,
}

impl Book {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rules: Vec::new(), random: Random::new(seed) }
    }

    pub(crate) fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether a rule asks what a body holds.
    pub(crate) fn reads_bodies(&self) -> bool {
        self.rules.iter().any(|rule| !rule.body.is_empty())
    }

    /// The first rule that hits a request for `path` with this body; `/health` meets only the faults that are about it.
    pub(crate) fn draw(&mut self, path: &str, body: &[u8]) -> Option<Fault> {
        let health = path == "/health";
        let random = &mut self.random;
        let rule = self.rules.iter_mut().find(|rule| {
            rule.fault.is_about_health() == health
                && rule.count != Some(0)
                && path.starts_with(&rule.path)
                && holds(body, rule.body.as_bytes())
                && random.unit() < rule.share
        })?;
        rule.count = rule.count.map(|left| left - 1);
        Some(rule.fault.clone())
    }
}

fn holds(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|part| part == text)
}

/// What the header `x-sim-fault` says to the simulator called `name`; none when it is meant for another.
pub(crate) fn for_simulator(text: &str, name: &str) -> Result<Option<Fault>, String> {
    let (fault, keys) = split(text);
    let (at, keys): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(key, _)| *key == "at");
    if at.iter().any(|(_, wanted)| *wanted != name) {
        return Ok(None);
    }
    parse(fault, &keys).map(Some)
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (fault, keys) = split(text);
        parse(fault, &keys)
    }
}

type Keys<'a> = Vec<(&'a str, &'a str)>;

fn split(text: &str) -> ((&str, Option<&str>), Keys<'_>) {
    let mut parts = text.split(';').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let fault = first.split_once('=').map_or((first, None), |(name, arg)| (name, Some(arg)));
    (fault, parts.map(|part| part.split_once('=').unwrap_or((part, ""))).collect())
}

fn parse((name, arg): (&str, Option<&str>), keys: &[(&str, &str)]) -> Result<Fault, String> {
    let known = |key: &str| matches!((name, key), ("stall_mid", "for") | ("status", "retry_after"));
    if let Some((key, _)) = keys.iter().find(|(key, _)| !known(key)) {
        return Err(format!("fault `{name}` has no `{key}`"));
    }
    let key = keys.first().map(|(_, value)| *value);
    let time = || arg.map(duration).transpose();
    let events = || number(arg.unwrap_or("0"));
    Ok(match name {
        "refuse" => Fault::Refuse(time()?),
        "reset" => Fault::Reset,
        "reset_mid" => Fault::ResetMid(events()?),
        "close" => Fault::Close,
        "close_mid" => Fault::CloseMid(events()?),
        "stall_first_byte" => Fault::StallFirstByte(time()?),
        "stall_mid" => Fault::StallMid(events()?, key.map(duration).transpose()?),
        "garbage" => Fault::Garbage,
        "bad_chunk" => Fault::BadChunk(events()?),
        "slow" => Fault::Slow(number(arg.unwrap_or("10"))?),
        "status" => Fault::Status(number(arg.unwrap_or("503"))?, key.map(str::to_owned)),
        "wrong_length" => Fault::WrongLength(length(arg.unwrap_or("larger"))?),
        "no_health" => Fault::NoHealth,
        "health_stall" => Fault::HealthStall,
        "slow_health" => Fault::SlowHealth(time()?.unwrap_or(Duration::from_secs(1))),
        "trickle" => Fault::Trickle(time()?.unwrap_or(Duration::from_millis(1))),
        _ => return Err(format!("there is no fault `{name}`")),
    })
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number"))
}

fn length(text: &str) -> Result<Length, String> {
    match text {
        "larger" => Ok(Length::Larger),
        "smaller" => Ok(Length::Smaller),
        _ => Err(format!("`{text}` is neither larger nor smaller")),
    }
}

/// Reads `250ms`, `1.5s` or a bare number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (value, unit) = match text.strip_suffix("ms") {
        Some(value) => (value, 1e-3),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let seconds = number::<f64>(value)? * unit;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is not a duration"))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |name: &str, time: &Option<Duration>| match time {
            Some(time) => format!("{name}={}ms", time.as_millis()),
            None => name.to_owned(),
        };
        let text = match self {
            Self::Refuse(after) => time("refuse", after),
            Self::Reset => "reset".to_owned(),
            Self::ResetMid(n) => format!("reset_mid={n}"),
            Self::Close => "close".to_owned(),
            Self::CloseMid(n) => format!("close_mid={n}"),
            Self::StallFirstByte(after) => time("stall_first_byte", after),
            Self::StallMid(n, None) => format!("stall_mid={n}"),
            Self::StallMid(n, Some(time)) => format!("stall_mid={n};for={}ms", time.as_millis()),
            Self::Garbage => "garbage".to_owned(),
            Self::BadChunk(n) => format!("bad_chunk={n}"),
            Self::Slow(factor) => format!("slow={factor}"),
            Self::Status(code, None) => format!("status={code}"),
            Self::Status(code, Some(after)) => format!("status={code};retry_after={after}"),
            Self::WrongLength(Length::Larger) => "wrong_length=larger".to_owned(),
            Self::WrongLength(Length::Smaller) => "wrong_length=smaller".to_owned(),
            Self::NoHealth => "no_health".to_owned(),
            Self::HealthStall => "health_stall".to_owned(),
            Self::SlowHealth(after) => time("slow_health", &Some(*after)),
            Self::Trickle(gap) => time("trickle", &Some(*gap)),
        };
        f.write_str(&text)
    }
}
