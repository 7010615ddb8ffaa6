//! Whether a failed attempt is followed by another one, and after which pause.
//!
//! A retry hides a failure from the client and costs the backend a second attempt. [`decide`]
//! weighs the two, in this order; the first objection wins:
//!
//! 1. no byte of an answer may have reached the client: two answers cannot be mixed;
//! 2. the route must allow retries for this [`Reason`]. A request that may have run may run twice then; what the
//!    default leaves out are the reasons after which the first one is probably still running;
//! 3. the whole request body must still be at hand;
//! 4. attempts are counted;
//! 5. there must be an endpoint left to try, in a backend that is not left alone as a whole: an open
//!    breaker is not tried again;
//! 6. a server that asks for a long pause is obeyed by passing its answer on;
//! 7. the [`Budget`] must have room. It is asked last: what fails for another reason must not spend
//!    it.
//!
//! Left out: doing it, and remembering which endpoints were tried.

use std::time::Duration;

pub use outrigger_config::validated::{RetryOn as Reasons, RetryReason as Reason};
use rand::Rng;

mod backoff;
mod budget;

pub use backoff::{backoff, parse_retry_after, parse_retry_after_ms};
pub use budget::Budget;

/// What a route allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Attempts in all, the first included. One or none means no retry.
    pub attempts: u32,
    /// Which failures are tried again.
    pub on: Reasons,
    /// The ceiling of the first pause; it doubles with each retry.
    pub backoff: Duration,
    /// The highest that ceiling gets.
    pub max_backoff: Duration,
    /// The longest `Retry-After` that is waited for.
    pub max_retry_after: Duration,
}

/// An attempt that failed, and its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Why.
    pub reason: Reason,
    /// How many attempts there have been, this one included; from 1.
    pub attempts: u32,
    /// Any byte of an answer has been sent to the client.
    pub response_started: bool,
    /// The request can be sent again from its first byte.
    pub replayable: bool,
    /// The breaker of the backend is open.
    pub circuit_open: bool,
    /// There is an endpoint that may still be tried.
    pub endpoint_left: bool,
    /// The pause that the server asked for.
    pub retry_after: Option<Duration>,
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another attempt.
    Retry {
        /// The pause before it.
        after: Duration,
    },
    /// The failure is the client's.
    Stop {
        /// The first objection.
        why: Denied,
    },
}

/// Why there is no other attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denied {
    /// The client has part of an answer.
    ResponseStarted,
    /// The route does not retry such a failure.
    NotRetryable,
    /// The request body is no longer whole.
    Buffer,
    /// All attempts are used up.
    Attempts,
    /// The backend as a whole is left alone.
    CircuitOpen,
    /// Every endpoint has been tried, or none is usable.
    NoEndpoint,
    /// The server asked for a longer pause than [`Policy::max_retry_after`].
    RetryAfterTooLong,
    /// There have been too many retries lately.
    Budget,
}

impl Denied {
    /// The word for logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ResponseStarted => "response_started",
            Self::NotRetryable => "not_retryable",
            Self::Buffer => "buffer",
            Self::Attempts => "attempts",
            Self::CircuitOpen => "circuit_open",
            Self::NoEndpoint => "no_endpoint",
            Self::RetryAfterTooLong => "retry_after_too_long",
            Self::Budget => "budget",
        }
    }
}

/// What follows `failed`. `withdraw` is [`Budget::try_withdraw`]; it is called at most once, and
/// `true` is followed by a retry.
///
/// The pause is the random [`backoff()`], on top of the server's `Retry-After` if there is one:
/// never earlier than the server asked, and not everybody at the same moment.
pub fn decide(
    policy: &Policy,
    failed: &Failed,
    rng: &mut impl Rng,
    withdraw: impl FnOnce() -> bool,
) -> Decision {
    match objection(policy, failed) {
        Some(why) => Decision::Stop { why },
        None if !withdraw() => Decision::Stop { why: Denied::Budget },
        None => {
            let pause = backoff(failed.attempts, policy.backoff, policy.max_backoff, rng);
            Decision::Retry { after: failed.retry_after.unwrap_or_default().saturating_add(pause) }
        }
    }
}

/// The first objection to another attempt, apart from the budget.
fn objection(policy: &Policy, failed: &Failed) -> Option<Denied> {
    let too_long = failed.retry_after.is_some_and(|pause| pause > policy.max_retry_after);
    let objections = [
        (failed.response_started, Denied::ResponseStarted),
        (!policy.on.contains(failed.reason), Denied::NotRetryable),
        (!failed.replayable, Denied::Buffer),
        (failed.attempts >= policy.attempts, Denied::Attempts),
        (failed.circuit_open, Denied::CircuitOpen),
        (!failed.endpoint_left, Denied::NoEndpoint),
        (too_long, Denied::RetryAfterTooLong),
    ];
    objections.into_iter().find_map(|(holds, why)| holds.then_some(why))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn policy() -> Policy {
        Policy {
            attempts: 3,
            on: [Reason::Connect, Reason::Refused, Reason::Reset, Reason::Overloaded]
                .into_iter()
                .collect(),
            backoff: 25 * MILLI,
            max_backoff: 250 * MILLI,
            max_retry_after: 2_000 * MILLI,
        }
    }

    /// A first attempt that could not connect, of a POST: nothing speaks against a retry.
    const FAILED: Failed = Failed {
        reason: Reason::Connect,
        attempts: 1,
        response_started: false,
        replayable: true,
        circuit_open: false,
        endpoint_left: true,
        retry_after: None,
    };

    fn decide_on(policy: &Policy, failed: &Failed) -> Decision {
        decide(policy, failed, &mut SmallRng::seed_from_u64(1), || true)
    }

    fn is_retried(policy: &Policy, failed: &Failed) -> bool {
        matches!(decide_on(policy, failed), Decision::Retry { .. })
    }

    #[test]
    fn a_failure_without_objections_is_retried_within_the_backoff() {
        let Decision::Retry { after } = decide_on(&policy(), &FAILED) else { panic!("stopped") };
        assert!(after <= policy().backoff);
    }

    /// A change of an attempt, and the objection that it causes.
    type Step = (fn(&mut Failed), Denied);

    #[test]
    fn each_objection_stops_and_the_first_one_is_named() {
        // Each step adds an objection that comes before all those already there.
        let steps: [Step; 7] = [
            (|f| f.retry_after = Some(2_001 * MILLI), Denied::RetryAfterTooLong),
            (|f| f.endpoint_left = false, Denied::NoEndpoint),
            (|f| f.circuit_open = true, Denied::CircuitOpen),
            (|f| f.attempts = 3, Denied::Attempts),
            (|f| f.replayable = false, Denied::Buffer),
            (|f| f.reason = Reason::ServerError, Denied::NotRetryable),
            (|f| f.response_started = true, Denied::ResponseStarted),
        ];
        let mut all = FAILED;
        for (spoil, why) in steps {
            let mut alone = FAILED;
            spoil(&mut alone);
            spoil(&mut all);
            for failed in [alone, all] {
                let untouched = || unreachable!("the budget is asked last");
                let mut rng = SmallRng::seed_from_u64(2);
                let decision = decide(&policy(), &failed, &mut rng, untouched);
                assert_eq!(decision, Decision::Stop { why });
            }
        }
    }

    #[test]
    fn an_empty_budget_stops() {
        let decision = decide(&policy(), &FAILED, &mut SmallRng::seed_from_u64(3), || false);
        assert_eq!(decision, Decision::Stop { why: Denied::Budget });
    }

    #[test]
    fn only_the_reasons_of_the_route_are_retried() {
        for reason in Reason::ALL {
            let failed = Failed { reason, ..FAILED };
            let on: Reasons = [reason].into_iter().collect();
            let others: Reasons = Reason::ALL.into_iter().filter(|&r| r != reason).collect();
            assert!(is_retried(&Policy { on, ..policy() }, &failed), "{reason:?}");
            assert!(!is_retried(&Policy { on: others, ..policy() }, &failed), "{reason:?}");
        }
    }

    #[test]
    fn attempts_are_tries_in_all() {
        let retried = |attempts| is_retried(&policy(), &Failed { attempts, ..FAILED });
        assert_eq!([1, 2, 3, 4].map(retried), [true, true, false, false]);
        for attempts in [0, 1] {
            assert!(!is_retried(&Policy { attempts, ..policy() }, &FAILED));
        }
    }

    #[test]
    fn a_short_retry_after_is_waited_for_and_then_the_backoff() {
        let asked = 2_000 * MILLI;
        let busy = Failed { reason: Reason::Overloaded, retry_after: Some(asked), ..FAILED };
        let Decision::Retry { after } = decide_on(&policy(), &busy) else { panic!("stopped") };
        assert!((asked..=asked + policy().backoff).contains(&after), "{after:?}");
    }
}
