//! Durations, sizes, percentages and rates as people write them: `250ms`, `1h30m`, `64KiB`, `1MB`,
//! `5%`, `100/s`.
//!
//! Decides which units exist and that none may be left out (a bare `30` is an error, `0` included).
//! What is printed reads back as the same value. The words here are used by the schema (reading)
//! and by the validated types (printing).

use std::time::Duration;

use serde::Serializer;

/// Nanoseconds of each unit of time, largest first.
const TIMES: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Bytes of each unit of size that is printed, largest first; the decimal ones only where they say
/// it shorter.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Seconds of each time that a rate has after its slash.
const PERIODS: [(&str, u64); 4] = [("s", 1), ("min", 60), ("h", 3_600), ("d", 86_400)];

/// The most that a rate has before its slash.
const MAX_RATE: u64 = 1_000_000_000_000;

/// Reads a duration: one or more `<number><unit>` without spaces, as `1h30m` or `1.5s`.
///
/// Units: `d h m s ms us ns`. At most about 584 years.
///
/// # Errors
/// A sentence that says what is wrong and shows a right form.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration");
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, unit, tail) = split_number(rest).ok_or_else(wrong)?;
        if unit.is_empty() {
            return Err(format!("\"{text}\" has no unit"));
        }
        let factor = factor(&TIMES, unit)
            .ok_or_else(|| format!("\"{text}\" has the unknown unit \"{unit}\""))?;
        let nanos = scaled(number, factor).ok_or_else(wrong)?;
        total = total.checked_add(nanos).ok_or_else(|| format!("\"{text}\" is too long"))?;
        rest = tail;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Ok(Duration::from_nanos(total))
}

/// Reads a size: `<number><unit>` as `64KiB`, `1.5MB`, `512B`.
///
/// `KiB MiB GiB TiB` count by 1024; `kB MB GB TB` by 1000 (`KB` is taken as `kB`).
///
/// # Errors
/// A sentence that says what is wrong and shows a right form.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit, tail) =
        split_number(text).ok_or_else(|| format!("\"{text}\" is not a size"))?;
    if unit.is_empty() {
        return Err(format!("\"{text}\" has no unit"));
    }
    let unit = if unit == "KB" { "kB" } else { unit };
    let factor = factor(&SIZES, unit).filter(|_| tail.is_empty());
    let factor = factor.ok_or_else(|| format!("\"{text}\" has an unknown unit"))?;
    scaled(number, factor).ok_or_else(|| format!("\"{text}\" is not a whole number of bytes"))
}

/// Reads a rate, as `100/s` or `1000000/min`, into how many in which time.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_rate(text: &str) -> Result<(u64, Duration), String> {
    let wrong = || format!("\"{text}\" is not a rate");
    let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
    let plain = number.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = number.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    let seconds = factor(&PERIODS, unit);
    let seconds = seconds.ok_or_else(|| format!("\"{text}\" has an unknown unit"))?;
    match count {
        1..=MAX_RATE => Ok((count, Duration::from_secs(seconds))),
        _ => Err(format!("must be 1 to {MAX_RATE} in a time, found {text}")),
    }
}

/// `100/s`; the time is one of those that can be read.
#[must_use]
pub fn format_rate(count: u64, period: Duration) -> String {
    let unit = PERIODS.iter().find(|(_, seconds)| *seconds == period.as_secs());
    format!("{count}/{}", unit.map_or("s", |(unit, _)| unit))
}

/// `1h30m`: the fewest units that say it exactly; zero is `0s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, factor) in TIMES.iter().skip(1) {
        if nanos >= *factor {
            text.push_str(&format!("{}{unit}", nanos / factor));
            nanos %= factor;
        }
    }
    text
}

/// `64KiB`: the largest unit that divides it, binary before decimal.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let whole = SIZES.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    let (unit, factor) = whole.unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// Reads a percentage, as `5%` or `0.5%`, into a share: 0.05, 0.005.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let wrong = || format!("\"{text}\" is not a percentage");
    let number = text.strip_suffix('%').ok_or_else(wrong)?;
    let ends_are_digits = !number.starts_with('.') && !number.ends_with('.');
    let plain = ends_are_digits && number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let percent: f64 = number.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    Ok(percent / 100.0)
}

/// `5%`: the fewest decimals that read back as the same share; many where none do, as for a third.
#[must_use]
pub fn format_percent(share: f64) -> String {
    let written = |decimals: usize| format!("{:.decimals$}%", share * 100.0);
    let exact = (0..17).map(written).find(|text| parse_percent(text) == Ok(share));
    exact.unwrap_or_else(|| written(17))
}

/// Splits `1.5ms2s` into `1.5`, `ms`, `2s`.
fn split_number(text: &str) -> Option<(&str, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    let (unit, tail) = rest.split_at(letters);
    let stuck = number.is_empty() || (unit.is_empty() && !tail.is_empty());
    (!stuck).then_some((number, unit, tail))
}

fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

/// `number × factor`, exactly: `None` when it overflows, is malformed or leaves a fraction.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().ok()?;
    let digits: u128 = fraction.parse().ok()?;
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = digits.checked_mul(u128::from(factor))?;
    let exact = part.is_multiple_of(scale).then_some(part / scale)?;
    whole.checked_mul(factor)?.checked_add(u64::try_from(exact).ok()?)
}

pub(crate) fn duration<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&format_duration(*value))
}

pub(crate) fn duration_or_off<S: Serializer>(
    value: &Option<Duration>,
    out: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => duration(value, out),
        None => out.serialize_str("off"),
    }
}

pub(crate) fn size<S: Serializer>(value: &u64, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&format_size(*value))
}

pub(crate) fn percent<S: Serializer>(share: &f64, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&format_percent(*share))
}

pub(crate) fn percent_or_off<S: Serializer>(
    share: &Option<f64>,
    out: S,
) -> Result<S::Ok, S::Error> {
    match share {
        Some(share) => percent(share, out),
        None => out.serialize_str("off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, nanos) in [
            ("250ms", 250_000_000),
            ("2s", 2_000_000_000),
            ("1.5s", 1_500_000_000),
            ("5m", 300_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1d", 86_400_000_000_000),
            ("0s", 0),
            ("10us", 10_000),
            ("0.5ns10ns", u64::MAX),
        ] {
            let read = parse_duration(text).map(|duration| duration.as_nanos());
            if nanos == u64::MAX {
                read.expect_err("half a nanosecond");
            } else {
                assert_eq!(read, Ok(u128::from(nanos)), "{text}");
            }
        }
    }

    #[test]
    fn wrong_durations_say_why() {
        for (text, why) in [
            ("", "is not a duration"),
            ("30", "has no unit"),
            ("0", "has no unit"),
            ("1h30", "has no unit"),
            ("5 m", "is not a duration"),
            ("-5s", "is not a duration"),
            ("s", "is not a duration"),
            ("5sec", "unknown unit \"sec\""),
            ("1.2.3s", "is not a duration"),
            ("1.s", "is not a duration"),
            ("99999999999999h", "is not a duration"),
            ("18446744073s18446744073s", "is too long"),
            ("1e3s", "unknown unit \"e\""),
        ] {
            let message = parse_duration(text).expect_err(text);
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("1MB", 1_000_000),
            ("512MiB", 536_870_912),
            ("1.5KiB", 1_536),
            ("10KB", 10_000),
            ("10kB", 10_000),
            ("7B", 7),
            ("0B", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, why) in [
            ("", "is not a size"),
            ("64", "has no unit"),
            ("64k", "unknown unit"),
            ("64KiB1B", "unknown unit"),
            ("0.3B", "whole number"),
            ("99999999TiB", "whole number"),
            ("-1B", "is not a size"),
        ] {
            let message = parse_size(text).expect_err(text);
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
        for round in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
            let value = seed >> (round % 60);
            let duration = Duration::from_nanos(value);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            assert_eq!(parse_size(&format_size(value)), Ok(value));
        }
    }

    #[test]
    fn rates_are_read_and_printed() {
        for text in ["100/s", "1000000/min", "1/h", "5/d", "1000000000000/s"] {
            let (count, period) = parse_rate(text).expect(text);
            assert_eq!(format_rate(count, period), text);
        }
        assert_eq!(parse_rate("6/min"), Ok((6, Duration::from_secs(60))));
        for (text, why) in [
            ("", "is not a rate"),
            ("100", "is not a rate"),
            ("/s", "is not a rate"),
            ("+1/s", "is not a rate"),
            ("1.5/s", "is not a rate"),
            ("1/ s", "unknown unit"),
            ("1/m", "unknown unit"),
            ("0/s", "must be 1 to"),
            ("1000000000001/s", "must be 1 to"),
        ] {
            let message = parse_rate(text).expect_err(text);
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn percentages_are_read() {
        for (text, share) in
            [("5%", 0.05), ("0.5%", 0.005), ("0%", 0.0), ("100%", 1.0), ("7.25%", 0.0725)]
        {
            assert_eq!(parse_percent(text), Ok(share), "{text}");
        }
        for text in
            ["", "%", "5", "5 %", "-5%", "+5%", "5%%", "1e1%", "inf%", "1.2.3%", ".5%", "5.%"]
        {
            let message = parse_percent(text).expect_err(text);
            assert!(message.contains("is not a percentage"), "{text}: {message}");
        }
    }

    #[test]
    fn every_percentage_reads_back_and_is_short() {
        for hundredths in 0..=100_000_u32 {
            let text = format!("{}%", f64::from(hundredths) / 100.0);
            let share = parse_percent(&text).expect("a percentage");
            assert_eq!(format_percent(share), text);
        }
        assert!(format_percent(1.0 / 3.0).starts_with("33.3333333333333"));
    }

    #[test]
    fn printing_is_short() {
        assert_eq!(format_duration(Duration::from_secs(5400)), "1h30m");
        assert_eq!(format_duration(Duration::from_millis(250)), "250ms");
        assert_eq!(format_duration(Duration::from_secs(120)), "2m");
        assert_eq!(format_size(65_536), "64KiB");
        assert_eq!(format_size(1_000_000), "1MB");
        assert_eq!(format_size(0), "0B");
        assert_eq!(format_size(1_001), "1001B");
    }
}
