//! What a request costs its endpoint.

/// What a request adds to the load of its endpoint, in thousandths of a running request.
///
/// A request costs twice over: its prompt is computed before the first byte, then its answer is
/// generated token by token beside the others. The first share is known from the size of the prompt
/// and given back at the first byte; the second is at most one request, and is given back as the
/// answer comes, or at its end.
///
/// Forty prompt tokens that are not computed yet weigh as much as one running request
/// ([`TOKEN`](Self::TOKEN)): who comes next waits for them, while one request more in the batch
/// makes a step hardly longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Given back at the first byte of the answer. `0..=MAX_PREFILL`.
    pub prefill: u64,
    /// Given back by the end of the request. `1..=REQUEST`.
    pub decode: u64,
}

impl Cost {
    /// One running request.
    pub const REQUEST: u64 = 1_000;

    /// What a token of a prompt weighs before the first byte, in thousandths of a running request.
    /// Measured on simulated fleets: from 15 to 80 all are alike; with 1 the slowest first bytes
    /// take a quarter longer where prompts are short, and three times as long where a few are not.
    pub const TOKEN: u64 = 25;

    /// The most that a prompt weighs: a context of 128,000 tokens, full. Bytes are a poor estimate
    /// of tokens where a body carries an image, and one upload must not make an endpoint look busy
    /// for ever.
    pub const MAX_PREFILL: u64 = Self::MAX_TOKENS * Self::TOKEN;

    const MAX_TOKENS: u64 = 128_000;

    /// The least that an answer weighs: however short, it takes a place in the batch.
    pub const MIN_DECODE: u64 = 100;

    /// Bytes of prompt text in a token, roughly, in English and in code.
    const BYTES_PER_TOKEN: u64 = 4;

    /// The cost of a request whose body has this many bytes, and of whose answer nothing is known.
    /// Zero is a request without a prompt.
    pub const fn of_prompt(bytes: u64) -> Self {
        Self { prefill: Self::prefill_of(bytes), decode: Self::REQUEST }
    }

    /// The cost of a request of whose answer something is known: `answer` is how many tokens are
    /// expected, over those of a typical answer.
    ///
    /// A limit on the length (`max_tokens`) is such an expectation only where it is below the
    /// typical length. So a share above 1 counts as 1, like one that is not a number; what is below
    /// `MIN_DECODE` thousandths counts as that.
    pub fn new(prompt_bytes: u64, answer: f64) -> Self {
        let decode = (Self::REQUEST as f64 * answer.min(1.0)) as u64;
        let decode = decode.max(Self::MIN_DECODE);
        Self { decode, ..Self::of_prompt(prompt_bytes) }
    }

    /// Both shares: the load from the choice of the endpoint until the first byte.
    pub const fn total(self) -> u64 {
        self.prefill + self.decode
    }

    /// How many tokens a prompt of this many bytes has, roughly; at most 128,000.
    pub const fn tokens_of(bytes: u64) -> u64 {
        let tokens = bytes / Self::BYTES_PER_TOKEN;
        if tokens < Self::MAX_TOKENS { tokens } else { Self::MAX_TOKENS }
    }

    /// The work of computing a prompt of this many bytes.
    pub(super) const fn prefill_of(bytes: u64) -> u64 {
        Self::tokens_of(bytes) * Self::TOKEN
    }

    /// The same request where this many bytes of its prompt are computed already.
    pub(super) const fn with_cached(self, bytes: u64) -> Self {
        Self { prefill: self.prefill.saturating_sub(Self::prefill_of(bytes)), ..self }
    }
}

impl Default for Cost {
    /// A request without a prompt.
    fn default() -> Self {
        Self::of_prompt(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_prompt_tokens_weigh_one_request() {
        assert_eq!(Cost::of_prompt(160), Cost { prefill: 1_000, decode: 1_000 });
        assert_eq!(Cost::of_prompt(160).total(), 2 * Cost::REQUEST);
        assert_eq!(Cost::default().total(), Cost::REQUEST);
        assert_eq!(Cost::of_prompt(u64::MAX).prefill, Cost::MAX_PREFILL);
        assert_eq!([Cost::tokens_of(4_003), Cost::tokens_of(u64::MAX)], [1_000, 128_000]);
    }

    #[test]
    fn what_is_cached_is_not_computed_and_never_more_than_there_is() {
        let cost = Cost::of_prompt(8_000);
        assert_eq!(cost.with_cached(2_000), Cost { prefill: 1_500 * Cost::TOKEN, ..cost });
        assert_eq!(cost.with_cached(9_000), Cost { prefill: 0, ..cost });
    }

    #[test]
    fn an_answer_weighs_what_is_expected_of_it_and_at_most_a_request() {
        assert_eq!(Cost::new(160, 0.5), Cost { prefill: 1_000, decode: 500 });
        let decode = |answer| Cost::new(0, answer).decode;
        assert_eq!([decode(1.0), decode(40.0), decode(f64::NAN)], [Cost::REQUEST; 3]);
        assert_eq!([decode(0.01), decode(0.0), decode(-1.0)], [Cost::MIN_DECODE; 3]);
    }
}
