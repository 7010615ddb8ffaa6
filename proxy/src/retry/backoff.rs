//! How long to wait before another attempt: by our own reckoning, or because the server said so.

use std::time::{Duration, SystemTime};

use rand::{Rng, RngExt};

/// What a number of seconds too large to hold is taken for (RFC 9111 section 1.2.2): 68 years.
const MAX_DELTA: u64 = 1 << 31;

/// A random pause between nothing and `min(max, base × 2^(attempts − 1))`, where `attempts` have
/// failed so far.
///
/// This is *full jitter* (Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog): of the
/// usual forms it spreads the retries of many clients best, and spends the fewest of them.
pub fn backoff(attempts: u32, base: Duration, max: Duration, rng: &mut impl Rng) -> Duration {
    let doublings = attempts.saturating_sub(1).min(31);
    let ceiling = base.saturating_mul(1 << doublings).min(max);
    rng.random_range(Duration::ZERO..=ceiling)
}

/// The pause that a `retry-after` header asks for (RFC 9110 section 10.2.3): whole seconds, or an
/// HTTP date, of which one in the past asks for none. `None` when it is neither.
pub fn parse_retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let value = str::from_utf8(value).ok()?.trim_ascii();
    if let Some(seconds) = digits(value) {
        return Some(Duration::from_secs(seconds.min(MAX_DELTA)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The pause that a `retry-after-ms` header asks for: whole milliseconds. Not a standard, but sent
/// by LLM services beside `retry-after`; it is the more exact of the two and should be preferred.
pub fn parse_retry_after_ms(value: &[u8]) -> Option<Duration> {
    let millis = digits(str::from_utf8(value).ok()?.trim_ascii())?;
    Some(Duration::from_millis(millis).min(Duration::from_secs(MAX_DELTA)))
}

/// A number written in digits and nothing else, or the highest number when it is too large.
fn digits(text: &str) -> Option<u64> {
    let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_double_up_to_the_maximum_and_use_the_whole_range() {
        let seed = 5;
        let mut rng = SmallRng::seed_from_u64(seed);
        for (attempts, ceiling) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (1_000, 250)] {
            let mut pause = || backoff(attempts, 25 * MILLI, 250 * MILLI, &mut rng);
            let pauses: Vec<_> = (0..10_000).map(|_| pause()).collect();
            let most = *pauses.iter().max().unwrap();
            let mean = pauses.iter().sum::<Duration>() / 10_000;
            let ceiling = ceiling * MILLI;
            let context = format!("seed {seed}, attempt {attempts}: mean {mean:?}, most {most:?}");
            assert!(most <= ceiling && most > ceiling.mul_f64(0.99), "{context}");
            assert!((mean.as_secs_f64() / ceiling.as_secs_f64() - 0.5).abs() < 0.02, "{context}");
        }
    }

    #[test]
    fn pauses_of_extreme_settings_do_not_panic() {
        let mut rng = SmallRng::seed_from_u64(6);
        for attempts in [0, 1, u32::MAX] {
            assert_eq!(backoff(attempts, Duration::ZERO, Duration::MAX, &mut rng), Duration::ZERO);
            assert_eq!(backoff(attempts, Duration::MAX, Duration::ZERO, &mut rng), Duration::ZERO);
            assert!(backoff(attempts, Duration::MAX, Duration::MAX, &mut rng) <= Duration::MAX);
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110.
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let cases: [(&str, Option<u64>); 14] = [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7\t", Some(7)),
            ("99999999999999999999999", Some(MAX_DELTA)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Sunday, 06-Nov-94 08:49:40 GMT", Some(3)),
            ("Sun Nov  6 08:49:40 1994", Some(3)),
            ("Sun, 06 Nov 1994 08:49:30 GMT", Some(0)),
            ("Sun, 31 Feb 1994 08:49:30 GMT", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
        ];
        for (value, seconds) in cases {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(parse_retry_after(value.as_bytes(), now), expected, "{value:?}");
        }
        assert_eq!(parse_retry_after(b"\xff", now), None);
    }

    #[test]
    fn retry_after_ms_is_milliseconds() {
        assert_eq!(parse_retry_after_ms(b" 250 "), Some(250 * MILLI));
        assert_eq!(parse_retry_after_ms(&[b'9'; 40]), Some(Duration::from_secs(MAX_DELTA)));
        for bad in [&b""[..], b"-5", b"2.5", b"1s", b"\xff"] {
            assert_eq!(parse_retry_after_ms(bad), None, "{bad:?}");
        }
    }
}
