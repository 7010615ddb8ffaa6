//! How long the client waits, if it says so, and how long an endpoint is told to take.
//!
//! Three fields say it: `grpc-timeout` (a number of at most eight digits and a unit), `x-envoy-expected-rq-timeout-ms`
//! and `x-request-timeout-ms`. Of several the shortest holds. A value that can not be read is passed over: it is advice,
//! and a request that can be served is not refused for it. Zero is no time at all.
//!
//! Left out: when the time began, and what to do when it is over.

use std::time::Duration;

use outrigger_config::validated::BudgetField;

use crate::wire::Fields;

/// What the client said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// How long it waits from when it sent its request.
    pub time: Option<Duration>,
    /// In which fields it said something that can be read, in the order of [`BudgetField::ALL`].
    said: [bool; BudgetField::ALL.len()],
    /// Something could not be read.
    pub odd: bool,
}

impl Budget {
    /// What these fields say.
    pub fn read(fields: &Fields) -> Self {
        let mut budget = Self::default();
        for (name, value) in fields.iter() {
            let is = |field: &BudgetField| name.eq_ignore_ascii_case(field.name().as_bytes());
            let Some(place) = BudgetField::ALL.iter().position(is) else { continue };
            match parse(BudgetField::ALL[place], value.trim_ascii()) {
                Some(time) => {
                    budget.time = Some(budget.time.map_or(time, |known| known.min(time)));
                    budget.said[place] = true;
                }
                None => budget.odd = true,
            }
        }
        budget
    }

    /// Tells the endpoint how much is left: in the fields of the client, and in this one.
    pub fn tell(&self, fields: &mut Fields, left: Duration, also: Option<BudgetField>) {
        for (field, said) in BudgetField::ALL.into_iter().zip(self.said) {
            if said || also == Some(field) {
                fields.set(field.name(), text(field, left));
            }
        }
    }
}

fn parse(field: BudgetField, value: &[u8]) -> Option<Duration> {
    match field {
        BudgetField::GrpcTimeout => {
            let (unit, digits) = value.split_last()?;
            let number = number(digits, 8)?;
            Some(match unit {
                b'H' => Duration::from_secs(number * 3_600),
                b'M' => Duration::from_secs(number * 60),
                b'S' => Duration::from_secs(number),
                b'm' => Duration::from_millis(number),
                b'u' => Duration::from_micros(number),
                b'n' => Duration::from_nanos(number),
                _ => return None,
            })
        }
        BudgetField::XEnvoyExpectedRqTimeoutMs | BudgetField::XRequestTimeoutMs => {
            number(value, 15).map(Duration::from_millis)
        }
    }
}

/// So many digits at most, and nothing else.
fn number(digits: &[u8], most: usize) -> Option<u64> {
    let plain = (1..=most).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|_| plain)
}

/// Never longer than what is left, and never nothing.
fn text(field: BudgetField, left: Duration) -> String {
    let (micros, millis) = (left.as_micros().max(1), left.as_millis());
    match field {
        BudgetField::GrpcTimeout => match millis {
            0 => format!("{micros}u"),
            1..=99_999_999 => format!("{millis}m"),
            _ => format!("{}S", left.as_secs().min(99_999_999)),
        },
        BudgetField::XEnvoyExpectedRqTimeoutMs | BudgetField::XRequestTimeoutMs => {
            millis.max(1).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(said: &[(&str, &str)]) -> Budget {
        let mut fields = Fields::new();
        said.iter().for_each(|(name, value)| fields.append(name, value));
        Budget::read(&fields)
    }

    #[test]
    fn each_field_is_read_by_its_own_rules() {
        for (name, value, time) in [
            ("grpc-timeout", "2S", Some(2_000_000)),
            ("grpc-timeout", "99999999u", Some(99_999_999)),
            ("grpc-timeout", "1H", Some(3_600_000_000)),
            ("grpc-timeout", "3M", Some(180_000_000)),
            ("grpc-timeout", "250m", Some(250_000)),
            ("grpc-timeout", "5000n", Some(5)),
            ("Grpc-Timeout", " 7m ", Some(7_000)),
            ("grpc-timeout", "0m", Some(0)),
            ("x-request-timeout-ms", "1500", Some(1_500_000)),
            ("x-envoy-expected-rq-timeout-ms", "15000", Some(15_000_000)),
            ("grpc-timeout", "100000000m", None),
            ("grpc-timeout", "m", None),
            ("grpc-timeout", "5", None),
            ("grpc-timeout", "-5m", None),
            ("grpc-timeout", "5 m", None),
            ("grpc-timeout", "", None),
            ("x-request-timeout-ms", "1.5", None),
            ("x-request-timeout-ms", "+5", None),
            ("x-request-timeout-ms", "5ms", None),
            ("x-request-timeout-ms", "9999999999999999", None),
        ] {
            let read = budget(&[(name, value)]);
            assert_eq!(read.time, time.map(Duration::from_micros), "{name}: {value:?}");
            assert_eq!(read.odd, time.is_none(), "{name}: {value:?}");
        }
        assert_eq!(budget(&[("x-request-id", "5")]), Budget::default());
    }

    #[test]
    fn of_several_the_shortest_holds_and_odd_ones_are_passed_over() {
        let both = budget(&[
            ("x-request-timeout-ms", "900"),
            ("grpc-timeout", "soon"),
            ("x-envoy-expected-rq-timeout-ms", "400"),
            ("x-request-timeout-ms", "500"),
        ]);
        assert_eq!((both.time, both.odd), (Some(Duration::from_millis(400)), true));
    }

    #[test]
    fn an_endpoint_is_told_in_the_fields_of_the_client_what_is_left() {
        let told = |said: &[(&str, &str)], left: Duration, also| {
            let mut fields = Fields::new();
            said.iter().for_each(|(name, value)| fields.append(name, value));
            Budget::read(&fields).tell(&mut fields, left, also);
            let text = |field: BudgetField| fields.get_str(field.name()).map(str::to_owned);
            BudgetField::ALL.map(text)
        };
        let left = Duration::from_micros(1_234_567);
        let some = |text: &str| Some(text.to_owned());
        let said = [("grpc-timeout", "2S"), ("x-request-timeout-ms", "soon")];
        assert_eq!(told(&said, left, None), [some("1234m"), None, some("soon")]);
        let also = Some(BudgetField::XRequestTimeoutMs);
        assert_eq!(told(&[], left, also), [None, None, some("1234")]);
        let said = [("x-envoy-expected-rq-timeout-ms", "5000")];
        assert_eq!(told(&said, left, also), [None, some("1234"), some("1234")]);
    }

    #[test]
    fn what_is_told_is_never_longer_and_never_nothing() {
        for micros in [1, 999, 1_000, 1_999, 99_999_999_999, 1 << 50] {
            let left = Duration::from_micros(micros);
            for field in BudgetField::ALL {
                let text = text(field, left);
                let read = parse(field, text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
                let nothing_shorter = field != BudgetField::GrpcTimeout && micros < 1_000;
                assert!(read <= left || nothing_shorter, "{text} for {left:?}");
                assert!(!read.is_zero(), "{text} for {left:?}");
            }
        }
    }
}
