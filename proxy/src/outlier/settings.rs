//! When and for how long to eject, and the words for why.

use std::time::Duration;

/// The longest ejection, whatever the settings say: a year. Keeps every sum of times in range.
pub(super) const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// When and for how long to eject.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Failures in a row that eject. Zero is as good as one.
    pub failures: u32,
    /// The first ejection, and the time without trouble after which one ejection is forgotten.
    pub base: Duration,
    /// The longest ejection, before jitter. Wins over `base`.
    pub max: Duration,
    /// An ejection lasts up to so much longer than it would, at random; a share of its length, 0.0
    /// to 1.0.
    pub jitter: f64,
    /// Of the endpoints of a backend, the share that may be out at once, 0.0 to 1.0; see
    /// [`Group`].
    pub max_share: f64,
}

impl Settings {
    /// How much of [`failures`](Self::failures) one failure of this kind makes up.
    pub(super) const fn points(&self, failure: Failure) -> u32 {
        match failure {
            Failure::ConnectRefused => self.failures.div_ceil(2),
            Failure::Stalled => self.failures,
            Failure::ConnectTimeout
            | Failure::Reset
            | Failure::FirstByteTimeout
            | Failure::ServerError
            | Failure::Invalid => 1,
        }
    }

    /// How long the ejection lasts that makes it so many `times`. `chance` is from 0.0 to below
    /// 1.0.
    pub(super) fn ejection(&self, times: u32, chance: f64) -> Duration {
        let plain = self.base.saturating_mul(times).min(self.max).min(FOR_EVER);
        let longer = plain.as_secs_f64() * self.jitter * chance;
        plain + Duration::try_from_secs_f64(longer).unwrap_or_default().min(plain)
    }
}

/// How the endpoints of a backend stand when one of them, `this`, is about to be ejected.
///
/// May be a moment old, and may be seen by two endpoints at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Endpoints in all, this one among them.
    pub all: usize,
    /// How many of the others are ejected or half open ([`Outlier::is_ejected`]).
    ///
    /// [`Outlier::is_ejected`]: super::Outlier::is_ejected
    pub out: usize,
    /// How many of the others are ready and neither ejected nor half open.
    pub serving: usize,
}

impl Group {
    /// Whether this endpoint may go: another one serves, and with it no more than
    /// `max(1, ⌊max_share × all⌋)` are out.
    pub fn spares_one(&self, max_share: f64) -> bool {
        // A hair more, since 0.29 × 100 is 28.999….
        let allowed = (self.all as f64 * max_share + 1e-6) as usize;
        self.serving > 0 && self.out < allowed.max(1)
    }
}

/// How an attempt failed, as far as the endpoint is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Nobody listens: the connection was refused.
    ConnectRefused,
    /// No connection within the connect deadline.
    ConnectTimeout,
    /// The connection died before the answer was complete.
    Reset,
    /// No byte of an answer within the first-byte deadline.
    FirstByteTimeout,
    /// An answer that says so: 500, 502, 504. (429 and 503 mean busy, which is no failure.)
    ServerError,
    /// An answer that is not HTTP.
    Invalid,
    /// The endpoint has stopped working on everything it has ([`stall`](super::stall)). One of
    /// them is enough.
    Stalled,
}

impl Failure {
    /// The word for logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Reset => "reset",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::ServerError => "server_error",
            Self::Invalid => "invalid",
            Self::Stalled => "stalled",
        }
    }

    /// The reason of an ejection for it.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Stalled => Reason::Stalled,
            Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::Reset
            | Self::FirstByteTimeout
            | Self::ServerError
            | Self::Invalid => Reason::Failures,
        }
    }
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Too many failures in a row, or a failed probe.
    Failures,
    /// It fails more often than its peers.
    SuccessRate,
    /// It is slower than its peers.
    Latency,
    /// It has stopped working on everything it has.
    Stalled,
}

impl Reason {
    /// Every reason, in the order of declaration.
    pub const ALL: &'static [Self] =
        &[Self::Failures, Self::SuccessRate, Self::Latency, Self::Stalled];

    /// The word for logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::SuccessRate => "success_rate",
            Self::Latency => "latency",
            Self::Stalled => "stalled",
        }
    }
}
