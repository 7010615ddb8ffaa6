//! What a request costs its endpoint.

/// What a request adds to the load of its endpoint, in thousandths of a running request.
///
/// A request costs twice over: its prompt is computed before the first byte, then its answer is
/// generated token by token beside the others. The first share is known from the size of the prompt
/// and given back at the first byte; the second is at most one request, and is given back as the
/// answer comes, or at its end.
///
/// A thousand prompt tokens weigh as much as one running request. That is a judgement, not a
/// measurement: a long prompt must count, and a chat turn of a few hundred tokens must stay mostly
/// a request.
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

    /// The most that a prompt weighs: a context of 128,000 tokens, full. Bytes are a poor estimate
    /// of tokens where a body carries an image, and one upload must not make an endpoint look busy
    /// with thousands of requests.
    pub const MAX_PREFILL: u64 = 128_000;

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

    /// The work of computing a prompt of this many bytes.
    pub(super) const fn prefill_of(bytes: u64) -> u64 {
        let tokens = bytes / Self::BYTES_PER_TOKEN;
        if tokens < Self::MAX_PREFILL { tokens } else { Self::MAX_PREFILL }
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
    fn a_thousand_prompt_tokens_weigh_one_request() {
        assert_eq!(Cost::of_prompt(4_000), Cost { prefill: 1_000, decode: 1_000 });
        assert_eq!(Cost::of_prompt(4_000).total(), 2 * Cost::REQUEST);
        assert_eq!(Cost::default().total(), Cost::REQUEST);
        assert_eq!(Cost::of_prompt(u64::MAX).prefill, Cost::MAX_PREFILL);
    }

    #[test]
    fn an_answer_weighs_what_is_expected_of_it_and_at_most_a_request() {
        assert_eq!(Cost::new(4_000, 0.5), Cost { prefill: 1_000, decode: 500 });
        let decode = |answer| Cost::new(0, answer).decode;
        assert_eq!([decode(1.0), decode(40.0), decode(f64::NAN)], [Cost::REQUEST; 3]);
        assert_eq!([decode(0.01), decode(0.0), decode(-1.0)], [Cost::MIN_DECODE; 3]);
    }
}
