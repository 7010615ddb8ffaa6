//! Which trace a request belongs to, and whether it is recorded (W3C Trace Context).
//!
//! Who has begun the trace has decided: a request that comes with a valid `traceparent` is recorded exactly when that says
//! so. Of the others a share is, by the lower 63 bits of the new trace's id, as every SDK of OpenTelemetry does it; so two
//! samplers with the same share agree about the same trace.

use opentelemetry::{SpanId, TraceId, trace::SpanKind};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample};
use rand::{Rng, RngExt};

use crate::wire::Fields;

/// The field that says of which span a request is part.
pub const TRACEPARENT: &str = "traceparent";
/// What else tracers tell each other of the same trace.
pub const TRACESTATE: &str = "tracestate";

/// What a request says of the span that it is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// It is recorded.
    pub sampled: bool,
}

impl Parent {
    /// Reads a `traceparent`; `None` of what is none. A version that is yet to come may have more behind what is known.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (head, tail) = value.split_at_checked(55)?;
        let version = number(head.get(..2)?)?;
        let ends = match version {
            0 => tail.is_empty(),
            255 => false,
            _ => tail.is_empty() || tail.starts_with(b"-"),
        };
        let dashes = [2, 35, 52].iter().all(|at| head.get(*at) == Some(&b'-'));
        let trace = TraceId::from(number(head.get(3..35)?)?);
        let span = SpanId::from(u64::try_from(number(head.get(36..52)?)?).ok()?);
        let flags = number(head.get(53..55)?)?;
        let valid = ends && dashes && trace != TraceId::INVALID && span != SpanId::INVALID;
        valid.then_some(Parent { trace, span, sampled: flags & 1 == 1 })
    }
}

/// A number in lower-case hexadecimal digits, at most 32 of them.
fn number(digits: &[u8]) -> Option<u128> {
    let mut number = 0;
    for digit in digits {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(value);
    }
    Some(number)
}

/// The `traceparent` of a request that is part of this span, which is recorded.
#[must_use]
pub fn traceparent(trace: TraceId, span: SpanId) -> [u8; 55] {
    let mut value = *b"00-00000000000000000000000000000000-0000000000000000-01";
    digits(&mut value[3..35], &trace.to_bytes());
    digits(&mut value[36..52], &span.to_bytes());
    value
}

/// Writes two hexadecimal digits for each byte, without the detour through the formatter.
fn digits(out: &mut [u8], bytes: &[u8]) {
    let digit = |value: u8| b"0123456789abcdef"[usize::from(value & 15)];
    for (pair, byte) in out.as_chunks_mut().0.iter_mut().zip(bytes) {
        *pair = [digit(byte >> 4), digit(*byte)];
    }
}

/// The trace of a request that is to be recorded, its own or a new one; `None` when it is not.
pub fn decide(parent: Option<Parent>, sampler: &Sampler, rng: &mut impl Rng) -> Option<TraceId> {
    match parent {
        Some(parent) => parent.sampled.then_some(parent.trace),
        None => {
            let new = TraceId::from(rng.random::<u128>().max(1));
            let decided = sampler.should_sample(None, new, "", &SpanKind::Server, &[], &[]);
            (decided.decision == SamplingDecision::RecordAndSample).then_some(new)
        }
    }
}

/// A new id of a span.
pub fn id(rng: &mut impl Rng) -> SpanId {
    SpanId::from(rng.random::<u64>().max(1))
}

/// The value of a field that is there once.
#[must_use]
pub fn single<'a>(fields: &'a Fields, name: &'a str) -> Option<&'a [u8]> {
    let mut values = fields.get_all(name);
    values.next().filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..1000 {
            let (trace, span) = (TraceId::from(rng.random::<u128>().max(1)), id(&mut rng));
            let parent = Parent { trace, span, sampled: true };
            assert_eq!(Parent::parse(&traceparent(trace, span)), Some(parent));
        }
        let parent = Parent::parse(GOOD.as_bytes()).expect("it is good");
        assert_eq!(traceparent(parent.trace, parent.span), GOOD.as_bytes());
    }

    #[test]
    fn only_the_lowest_flag_says_that_it_is_recorded() {
        let sampled = |flags: &str| {
            let value = format!("{}{flags}", &GOOD[..53]);
            Parent::parse(value.as_bytes()).map(|parent| parent.sampled)
        };
        assert_eq!((sampled("00"), sampled("02")), (Some(false), Some(false)));
        assert_eq!((sampled("01"), sampled("ff")), (Some(true), Some(true)));
        assert_eq!((sampled("0"), sampled("0g"), sampled("0A")), (None, None, None));
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        let changed = |at: usize, byte: u8| {
            let mut value = GOOD.as_bytes().to_vec();
            value[at] = byte;
            value
        };
        for (value, good) in [
            (GOOD.as_bytes().to_vec(), true),
            (changed(1, b'1'), true),
            ([&changed(1, b'1')[..], b"-more"].concat(), true),
            ([&changed(1, b'1')[..], b"more"].concat(), false),
            ([GOOD.as_bytes(), b"-more"].concat(), false),
            (b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_vec(), false),
            (b"00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_vec(), false),
            (b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".to_vec(), false),
            (GOOD.to_uppercase().into_bytes(), false),
            (changed(2, b'_'), false),
            (changed(35, b'0'), false),
            (changed(52, b'0'), false),
            (GOOD.as_bytes()[..54].to_vec(), false),
            (Vec::new(), false),
        ] {
            let text = String::from_utf8_lossy(&value);
            assert_eq!(Parent::parse(&value).is_some(), good, "{text}");
        }
    }

    #[test]
    fn nothing_that_comes_in_its_place_panics() {
        let mut rng = SmallRng::seed_from_u64(2);
        for _ in 0..20_000 {
            let mut value = GOOD.as_bytes().to_vec();
            for _ in 0..rng.random_range(0..4) {
                let at = rng.random_range(0..value.len());
                value[at] = rng.random();
            }
            value.truncate(rng.random_range(0..=value.len()));
            let _ = Parent::parse(&value);
        }
    }

    #[test]
    fn a_parent_decides_and_without_one_a_share_is_recorded() {
        let mut rng = SmallRng::seed_from_u64(3);
        let parent = Parent::parse(GOOD.as_bytes()).expect("it is good");
        let unsampled = Parent { sampled: false, ..parent };
        for share in [0.0, 1.0] {
            let sampler = Sampler::TraceIdRatioBased(share);
            assert_eq!(decide(Some(parent), &sampler, &mut rng), Some(parent.trace));
            assert_eq!(decide(Some(unsampled), &sampler, &mut rng), None);
            assert_eq!(decide(None, &sampler, &mut rng).is_some(), share > 0.5);
        }
        let sampler = Sampler::TraceIdRatioBased(0.1);
        let recorded = (0..20_000).filter(|_| decide(None, &sampler, &mut rng).is_some()).count();
        // Five standard deviations of 20,000 draws are 212.
        assert!((1788..=2212).contains(&recorded), "{recorded}");
    }
}
