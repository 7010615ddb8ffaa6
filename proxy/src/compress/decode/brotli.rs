//! Brotli (RFC 7932).

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};

use super::{Coder, Refused, Step};

type State = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

/// One stream.
pub(super) struct Stream {
    state: Box<State>,
    /// Bytes out so far, as the library counts them.
    total: usize,
    ended: bool,
}

impl Stream {
    pub(super) fn new() -> Self {
        let [bytes, words, codes] = [(); 3].map(|()| StandardAlloc::default());
        // Strict: windows of more than 16 MiB are no brotli.
        Self { state: Box::new(State::new_strict(bytes, words, codes)), total: 0, ended: false }
    }
}

impl Coder for Stream {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Refused> {
        if self.ended {
            return if input.is_empty() { Ok(Step::default()) } else { Err(Refused::Trailing) };
        }
        let (mut left, mut taken) = (input.len(), 0);
        let (mut room, mut given) = (output.len(), 0);
        let result = BrotliDecompressStream(
            &mut left,
            &mut taken,
            input,
            &mut room,
            &mut given,
            output,
            &mut self.total,
            &mut self.state,
        );
        match result {
            BrotliResult::ResultFailure => return Err(Refused::Corrupt),
            BrotliResult::ResultSuccess => self.ended = true,
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
        }
        Ok(Step { taken, given })
    }

    fn ended(&self) -> bool {
        self.ended
    }
}
