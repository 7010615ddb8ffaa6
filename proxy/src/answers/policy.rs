//! May this request be answered from store, may this answer be stored, and for how long.
//!
//! Why not simply RFC 9111: no cache of HTTP may answer a POST (RFC 9110, 9.3.3). Storing the answers of a model is the
//! operator's decision, taken route by route. But what clients and endpoints say about storing holds here as it does
//! there, so that nobody who forbids it is overruled.
//!
//! What it decides, without a clock:
//! - [`Wish`]: what a request's `cache-control` asks for (RFC 9111, 5.2.1; `stale-if-error` of RFC 5861);
//! - [`terms`]: whether an answer's head lets it be stored, and how long it is fresh;
//! - [`use_of`]: what a stored answer of a certain age is good for: fresh, stale but allowed, or nothing;
//! - [`is_deterministic`]: whether asking again would give the same answer.
//!
//! An operator's `stale_for` is the out-of-band permission of RFC 9111, 4.2.4: it allows stale answers where nobody
//! forbids them. Where somebody sets a bound, the lower one holds.

use std::{sync::LazyLock, time::Duration};

use memchr::memmem::Finder;
use outrigger_config::validated::Answers;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::record::Terms;
use crate::{
    stream::Kind,
    wire::{Fields, fields::tokens},
};

/// What a request asks of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Nothing of it may be stored, and nothing stored may answer it.
    pub no_store: bool,
    /// Nothing stored may answer it.
    pub no_cache: bool,
    /// It must be answered from store, or not at all.
    pub only_if_cached: bool,
    /// The most an answer may be old.
    pub max_age: Option<Duration>,
    /// For so much longer an answer must be fresh.
    pub min_fresh: Option<Duration>,
    /// So stale an answer may be at any time.
    pub max_stale: Option<Duration>,
    /// So stale an answer may be where there would be an error.
    pub stale_if_error: Option<Duration>,
}

/// What a stored answer is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Anything.
    Fresh,
    /// It is stale, and the client takes it, or the route does while a new one is fetched.
    Stale {
        /// A new one is to be fetched.
        revalidate: bool,
    },
    /// It may stand in where there would be an error.
    OnError,
    /// Nothing.
    Nothing,
}

/// Why an answer is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Its status is not 200.
    Status,
    /// The endpoint forbids it.
    Forbidden,
    /// It depends on fields of the request that are not in the key.
    Varies,
    /// It is compressed, or of a kind whose end can not be known.
    Kind,
}

/// Each directive of a `cache-control` field with its argument.
fn directives(fields: &Fields) -> impl Iterator<Item = (&str, Option<&str>)> {
    fields.get_all("cache-control").flat_map(tokens).filter_map(|token| {
        let text = std::str::from_utf8(token).ok()?;
        let (name, value) = text.split_once('=').map_or((text, None), |(n, v)| (n, Some(v)));
        Some((name.trim(), value.map(|value| value.trim().trim_matches('"'))))
    })
}

/// A number of seconds; one that can not be read is none at all, which is the careful meaning of every bound here.
fn seconds(value: Option<&str>) -> Option<Duration> {
    Some(Duration::from_secs(value.and_then(|value| value.parse().ok()).unwrap_or(0)))
}

/// The shorter of two that may be there.
fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl Wish {
    /// What these fields of a request say.
    #[must_use]
    pub fn of(fields: &Fields) -> Self {
        let mut wish = Wish::default();
        for (name, value) in directives(fields) {
            match name.to_ascii_lowercase().as_str() {
                "no-store" => wish.no_store = true,
                "no-cache" => wish.no_cache = true,
                "only-if-cached" => wish.only_if_cached = true,
                "max-age" => wish.max_age = shorter(wish.max_age, seconds(value)),
                "min-fresh" => wish.min_fresh = seconds(value).max(wish.min_fresh),
                // Without a number it is any time.
                "max-stale" if value.is_none() => wish.max_stale = Some(Duration::MAX),
                "max-stale" => wish.max_stale = shorter(wish.max_stale, seconds(value)),
                "stale-if-error" => {
                    wish.stale_if_error = shorter(wish.stale_if_error, seconds(value));
                }
                _ => {}
            }
        }
        let pragma = fields.get("pragma").filter(|_| !fields.contains("cache-control"));
        wish.no_cache |= pragma.is_some_and(|value| value.eq_ignore_ascii_case(b"no-cache"));
        wish
    }

    /// Whether nothing stored may answer the request.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.no_store || self.no_cache
    }
}

/// Whether an answer with this head may be stored, and for how long it may be used. `vary` are the fields of a request
/// that are in its key.
///
/// # Errors
/// Why it may not.
pub fn terms(status: u16, fields: &Fields, settings: &Answers) -> Result<Terms, Unfit> {
    if status != 200 {
        return Err(Unfit::Status);
    }
    let mut terms =
        Terms { ttl: settings.ttl, if_error: None, while_revalidate: None, never_stale: false };
    let (mut max_age, mut shared) = (None, None);
    for (name, value) in directives(fields) {
        match name.to_ascii_lowercase().as_str() {
            // What would have to be asked for each time is of no use here.
            "no-store" | "private" | "no-cache" => return Err(Unfit::Forbidden),
            "max-age" => max_age = shorter(max_age, seconds(value)),
            "s-maxage" => shared = shorter(shared, seconds(value)),
            "must-revalidate" | "proxy-revalidate" => terms.never_stale = true,
            "stale-if-error" => terms.if_error = shorter(terms.if_error, seconds(value)),
            "stale-while-revalidate" => {
                terms.while_revalidate = shorter(terms.while_revalidate, seconds(value));
            }
            _ => {}
        }
    }
    if !fields.get_all("vary").flat_map(tokens).all(|name| covers(settings, name)) {
        return Err(Unfit::Varies);
    }
    let coded = fields
        .get("content-encoding")
        .is_some_and(|coding| !coding.eq_ignore_ascii_case(b"identity"));
    let grpc = fields.get("content-type").is_some_and(|kind| kind.starts_with(b"application/grpc"));
    if coded || grpc || fields.contains("content-range") || fields.contains("trailer") {
        return Err(Unfit::Kind);
    }
    // A shared lifetime forbids stale answers as well (RFC 9111, 5.2.2.10).
    terms.never_stale |= shared.is_some();
    if let Some(lifetime) = shared.or(max_age).or_else(|| expires(fields)) {
        terms.ttl = lifetime;
    }
    Ok(terms)
}

/// Whether the key says all that an answer depends on in this field. The coding does not matter: none is stored.
fn covers(settings: &Answers, name: &[u8]) -> bool {
    let known = ["accept-encoding", "content-type", "cookie"].into_iter();
    let mut known = known.chain(settings.vary.iter().map(String::as_str));
    known.any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// A date that can not be read has passed (RFC 9111, 5.3).
fn expires(fields: &Fields) -> Option<Duration> {
    let value = fields.get_str("expires")?;
    let date = fields.get_str("date").and_then(|date| httpdate::parse_http_date(date).ok());
    let until = httpdate::parse_http_date(value).ok();
    let lifetime = until.zip(date).and_then(|(until, date)| until.duration_since(date).ok());
    Some(lifetime.unwrap_or_default())
}

/// What an answer of this age is good for, to a client that wishes so, on a route with these settings.
#[must_use]
pub fn use_of(terms: &Terms, age: Duration, wish: &Wish, settings: &Answers) -> Use {
    if wish.refuses() {
        return Use::Nothing;
    }
    let beyond = wish.max_age.map_or(Duration::ZERO, |most| age.saturating_sub(most));
    let is_fresh = |age: Duration| age < terms.ttl && beyond.is_zero();
    match wish.min_fresh {
        // Who wants it so fresh wants nothing stale.
        Some(margin) if !is_fresh(age.saturating_add(margin)) => return Use::Nothing,
        _ if is_fresh(age) => return Use::Fresh,
        _ if terms.never_stale => return Use::Nothing,
        _ => {}
    }
    let stale = age.saturating_sub(terms.ttl).max(beyond);
    if wish.max_stale.is_some_and(|most| stale <= most) {
        return Use::Stale { revalidate: false };
    }
    if wish.stale_if_error.is_none() && (wish.max_stale.is_some() || wish.max_age.is_some()) {
        return Use::Nothing;
    }
    let graced = grace(terms, settings).is_some_and(|grace| stale <= grace);
    if graced && wish.stale_if_error.is_none() {
        return Use::Stale { revalidate: true };
    }
    match may_replace_error(terms, wish, settings).is_some_and(|most| stale <= most) {
        true => Use::OnError,
        false => Use::Nothing,
    }
}

/// For so long a stale answer is given while a new one is fetched; the endpoint may shorten it.
fn grace(terms: &Terms, settings: &Answers) -> Option<Duration> {
    let ours = settings.stale_while_revalidate;
    ours.and(shorter(ours, terms.while_revalidate))
}

/// So stale an answer may be that stands in for an error: by the route, and no more than endpoint and client allow.
fn may_replace_error(terms: &Terms, wish: &Wish, settings: &Answers) -> Option<Duration> {
    let ours = settings.fallback.as_ref()?.stale_for;
    shorter(shorter(Some(ours), terms.if_error), wish.stale_if_error)
}

/// How long an answer is worth keeping: until the last moment at which somebody might get it.
#[must_use]
pub fn keep(terms: &Terms, settings: &Answers) -> Duration {
    let stale_for = settings.fallback.as_ref().map(|fallback| fallback.stale_for);
    let longest = stale_for.max(settings.stale_while_revalidate).unwrap_or_default();
    terms.ttl.saturating_add(if terms.never_stale { Duration::ZERO } else { longest })
}

/// What a JSON request says about itself.
#[derive(Debug, Default, Deserialize)]
pub struct Said {
    model: Option<Value>,
    temperature: Option<Value>,
    seed: Option<Value>,
}

impl Said {
    /// The model, where it is named.
    #[must_use]
    pub fn model(&self) -> &str {
        self.model.as_ref().and_then(Value::as_str).unwrap_or("")
    }
}

/// Whether the same request would get the same answer again: it takes no chances (`temperature` 0), or the same ones each
/// time (`seed`); or it is of a sort in which there are none.
#[must_use]
pub fn is_deterministic(path: &str, said: &Said) -> bool {
    const WITHOUT_CHANCE: [&str; 6] =
        ["/embeddings", "/rerank", "/score", "/classify", "/tokenize", "/detokenize"];
    let greedy = said.temperature.as_ref().and_then(Value::as_f64) == Some(0.0);
    let seeded = said.seed.as_ref().is_some_and(Value::is_number);
    greedy || seeded || WITHOUT_CHANCE.iter().any(|end| path.ends_with(end))
}

/// Whether a body is a whole answer and none of an error, as far as it can be told from here.
///
/// An event stream has to end as its protocol has it: with `[DONE]` (OpenAI), or with the last event of the Anthropic
/// or of the responses interface. Engines that fail in the middle of a stream say so in an event and then end the
/// stream as if nothing had happened.
#[must_use]
pub fn is_whole(kind: Kind, body: &[u8]) -> bool {
    match kind {
        Kind::EventStream => is_whole_stream(body),
        Kind::Json => !tells_error(body) && serde_json::from_slice::<IgnoredAny>(body).is_ok(),
        Kind::Other => true,
    }
}

fn is_whole_stream(body: &[u8]) -> bool {
    let mut ended = false;
    for line in body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
        if let Some(data) = line.strip_prefix(b"data:") {
            let data = data.trim_ascii();
            if tells_error(data) {
                return false;
            }
            ended |= data == b"[DONE]";
        } else if let Some(name) = line.strip_prefix(b"event:") {
            let name = name.trim_ascii();
            if name == b"error" {
                return false;
            }
            ended |= name == b"message_stop" || name == b"response.completed";
        }
    }
    ended
}

/// Whether a JSON text is an error, or an answer that the engine gave up. Inside a string the quotes would be escaped.
fn tells_error(text: &[u8]) -> bool {
    static GIVEN_UP: LazyLock<[Finder<'static>; 4]> = LazyLock::new(|| {
        [
            "\"finish_reason\":\"abort\"",
            "\"finish_reason\": \"abort\"",
            "\"finish_reason\":\"error\"",
            "\"finish_reason\": \"error\"",
        ]
        .map(Finder::new)
    });
    let first = text.trim_ascii().strip_prefix(b"{").unwrap_or_default().trim_ascii();
    let object = first.strip_prefix(b"\"object\":").unwrap_or_default().trim_ascii();
    first.starts_with(b"\"error\"")
        || object.starts_with(b"\"error\"")
        || GIVEN_UP.iter().any(|given_up| given_up.find(text).is_some())
}

#[cfg(test)]
mod tests {
    use outrigger_config::validated::{FallbackAnswers, FallbackOn, FallbackReason, Replay};

    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn settings() -> Answers {
        let when: FallbackOn = FallbackReason::ALL.into_iter().collect();
        Answers {
            prefer: true,
            ttl: secs(100),
            stale_while_revalidate: None,
            fallback: Some(FallbackAnswers { stale_for: secs(1000), when }),
            deterministic_only: true,
            across_arms: false,
            vary: vec!["accept".to_owned()],
            max_request: 1 << 20,
            max_answer: 1 << 20,
            replay: Replay::AtOnce,
            coalesce: false,
        }
    }

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        pairs.iter().for_each(|(name, value)| fields.append(name, value));
        fields
    }

    fn wish(control: &str) -> Wish {
        Wish::of(&fields(&[("cache-control", control)]))
    }

    fn of_head(control: &str) -> Result<Terms, Unfit> {
        terms(200, &fields(&[("Cache-Control", control)]), &settings())
    }

    /// What a client with this `cache-control` may use an answer of this age for, which came with that one.
    fn used(endpoint: &str, client: &str, age: u64) -> Use {
        use_of(&of_head(endpoint).unwrap(), secs(age), &wish(client), &settings())
    }

    #[test]
    fn an_answer_gets_old() {
        assert_eq!(used("", "", 0), Use::Fresh);
        assert_eq!(used("", "", 99), Use::Fresh);
        assert_eq!(used("", "", 100), Use::OnError);
        assert_eq!(used("", "", 1100), Use::OnError);
        assert_eq!(used("", "", 1101), Use::Nothing);
    }

    #[test]
    fn the_matrix_of_what_clients_and_endpoints_say() {
        use Use::{Fresh, Nothing, OnError, Stale};
        let taken = Stale { revalidate: false };
        for (endpoint, client, age, expected) in [
            // The endpoint's lifetime counts before the route's, a shared one before the other.
            ("max-age=10", "", 9, Fresh),
            ("max-age=10", "", 10, OnError),
            ("max-age=500", "", 499, Fresh),
            ("max-age=500, s-maxage=10", "", 11, Nothing),
            ("max-age=0", "", 0, OnError),
            ("max-age=what", "", 0, OnError),
            ("must-revalidate", "", 99, Fresh),
            ("must-revalidate", "", 100, Nothing),
            ("proxy-revalidate", "max-stale", 100, Nothing),
            ("stale-if-error=50", "", 150, OnError),
            ("stale-if-error=50", "", 151, Nothing),
            // Clients that want nothing stored.
            ("", "no-store", 0, Nothing),
            ("", "no-cache", 0, Nothing),
            ("", "No-Cache, max-stale", 0, Nothing),
            // Clients with bounds.
            ("", "max-age=5", 5, Fresh),
            ("", "max-age=5", 6, Nothing),
            ("", "max-age=5, max-stale=10", 15, taken),
            ("", "max-age=5, max-stale=10", 16, Nothing),
            ("", "min-fresh=30", 69, Fresh),
            ("", "min-fresh=30", 70, Nothing),
            ("", "min-fresh=30, max-stale", 70, Nothing),
            ("", "max-stale", 100_000, taken),
            ("", "max-stale=50", 150, taken),
            ("", "max-stale=50", 151, Nothing),
            ("", "stale-if-error=50", 99, Fresh),
            ("", "stale-if-error=50", 150, OnError),
            ("", "stale-if-error=50", 151, Nothing),
            ("", "stale-if-error=5000", 1101, Nothing),
            ("", "max-stale=10, stale-if-error=50", 110, taken),
            ("", "max-stale=10, stale-if-error=50", 150, OnError),
            ("", "max-age=5, stale-if-error=50", 50, OnError),
            ("", "only-if-cached", 5, Fresh),
        ] {
            assert_eq!(used(endpoint, client, age), expected, "{endpoint:?} {client:?} at {age}");
        }
    }

    #[test]
    fn a_stale_answer_is_given_while_a_new_one_is_fetched() {
        let graceful = Answers { stale_while_revalidate: Some(secs(20)), ..settings() };
        let graced_use = |control: &str, client: &str, age| {
            let terms = terms(200, &fields(&[("cache-control", control)]), &graceful).unwrap();
            use_of(&terms, secs(age), &wish(client), &graceful)
        };
        let graced = Use::Stale { revalidate: true };
        assert_eq!(graced_use("", "", 120), graced);
        assert_eq!(graced_use("", "", 121), Use::OnError);
        assert_eq!(graced_use("stale-while-revalidate=5", "", 106), Use::OnError);
        assert_eq!(graced_use("stale-while-revalidate=500", "", 121), Use::OnError);
        assert_eq!(graced_use("must-revalidate", "", 101), Use::Nothing);
        assert_eq!(graced_use("", "max-age=50", 110), Use::Nothing);
        // An endpoint can not begin what the route does not want.
        assert_eq!(used("stale-while-revalidate=50", "", 101), Use::OnError);
    }

    #[test]
    fn without_a_fallback_nothing_stands_in_for_an_error() {
        let settings = Answers { fallback: None, ..settings() };
        let terms = of_head("").unwrap();
        assert_eq!(use_of(&terms, secs(101), &Wish::default(), &settings), Use::Nothing);
        assert_eq!(keep(&terms, &settings), secs(100));
    }

    #[test]
    fn what_is_kept_is_kept_as_long_as_it_may_be_of_use() {
        assert_eq!(keep(&of_head("").unwrap(), &settings()), secs(1100));
        assert_eq!(keep(&of_head("max-age=7").unwrap(), &settings()), secs(1007));
        assert_eq!(keep(&of_head("max-age=7, must-revalidate").unwrap(), &settings()), secs(7));
    }

    #[test]
    fn what_the_endpoint_forbids_is_not_stored() {
        for control in ["no-store", "private", "No-Cache", "max-age=10, private=\"x\""] {
            assert_eq!(of_head(control), Err(Unfit::Forbidden), "{control}");
        }
        let unfit =
            |status, pairs: &[(&str, &str)]| terms(status, &fields(pairs), &settings()).err();
        for status in [101, 201, 204, 206, 301, 400, 429, 500, 503] {
            assert_eq!(unfit(status, &[]), Some(Unfit::Status), "{status}");
        }
        assert_eq!(unfit(200, &[("vary", "Accept, accept-encoding")]), None);
        assert_eq!(unfit(200, &[("vary", "*")]), Some(Unfit::Varies));
        assert_eq!(unfit(200, &[("vary", "accept"), ("vary", "origin")]), Some(Unfit::Varies));
        assert_eq!(unfit(200, &[("content-encoding", "gzip")]), Some(Unfit::Kind));
        let private = [("content-encoding", "gzip"), ("cache-control", "private")];
        assert_eq!(unfit(200, &private), Some(Unfit::Forbidden), "which says more");
        assert_eq!(unfit(200, &[("content-encoding", "identity")]), None);
        assert_eq!(unfit(200, &[("content-type", "application/grpc+proto")]), Some(Unfit::Kind));
    }

    #[test]
    fn an_expiry_date_is_a_lifetime() {
        let date = ("date", "Thu, 26 Nov 2026 12:00:00 GMT");
        let ttl = |expires| {
            terms(200, &fields(&[date, ("expires", expires)]), &settings()).map(|terms| terms.ttl)
        };
        assert_eq!(ttl("Thu, 26 Nov 2026 12:01:00 GMT"), Ok(secs(60)));
        assert_eq!(ttl("Thu, 26 Nov 2026 11:59:00 GMT"), Ok(Duration::ZERO));
        assert_eq!(ttl("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn pragma_counts_where_nothing_else_is_said() {
        let pragma = ("pragma", "no-cache");
        assert!(Wish::of(&fields(&[pragma])).refuses());
        assert!(!Wish::of(&fields(&[pragma, ("cache-control", "max-age=5")])).refuses());
    }

    #[test]
    fn only_what_takes_no_chances_is_deterministic() {
        let chat = |body: &str| {
            let said: Said = serde_json::from_str(body).unwrap();
            is_deterministic("/v1/chat/completions", &said)
        };
        assert!(chat(r#"{"temperature":0}"#) && chat(r#"{"temperature":0.0,"top_p":1}"#));
        assert!(chat(r#"{"temperature":1,"seed":7}"#));
        for body in ["{}", r#"{"temperature":1}"#, r#"{"temperature":"0"}"#, r#"{"seed":null}"#] {
            assert!(!chat(body), "{body}");
        }
        assert!(is_deterministic("/v1/embeddings", &Said::default()));
    }

    #[test]
    fn half_a_stream_is_no_answer() {
        let whole = |body: &str| is_whole(Kind::EventStream, body.as_bytes());
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\"event: message_stop\"}}]}\n\n";
        assert!(whole(&format!("{event}data: [DONE]\n\n")));
        assert!(whole(&format!("{event}data:[DONE]")));
        assert!(whole("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"));
        assert!(whole("event: response.completed\r\ndata: {}\r\n\r\n"));
        for half in [
            event.to_owned(),
            String::new(),
            "event: response.incomplete\ndata: {}\n\n".to_owned(),
            format!("{event}data: {{\"error\": {{\"message\":\"x\"}}}}\n\ndata: [DONE]\n\n"),
            format!("{event}data: {{\"object\":\"error\"}}\n\ndata: [DONE]\n\n"),
            format!("event: error\ndata: {{}}\n\n{event}data: [DONE]\n\n"),
            "data: {\"finish_reason\":\"abort\"}\n\ndata: [DONE]\n\n".to_owned(),
        ] {
            assert!(!whole(&half), "{half}");
        }
    }

    #[test]
    fn half_a_document_is_no_answer() {
        let whole = |body: &str| is_whole(Kind::Json, body.as_bytes());
        assert!(whole("{\"text\":\"\\\"error\\\"\"}") && whole("[1]"));
        for half in ["", "{\"a\":", "{\"error\":{}}", " { \"error\" : 1}"] {
            assert!(!whole(half), "{half}");
        }
        assert!(is_whole(Kind::Other, b""));
    }
}
