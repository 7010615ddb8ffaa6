//! Brotli (RFC 7932).

use brotli::enc::{
    StandardAlloc,
    encode::{
        BrotliEncoderCompressStream, BrotliEncoderCreateInstance, BrotliEncoderIsFinished,
        BrotliEncoderOperation, BrotliEncoderParameter, BrotliEncoderSetParameter,
        BrotliEncoderStateStruct, BrotliEncoderTakeOutput,
    },
};

use super::Broken;

/// Three and above take five times as long for an event that is flushed.
const QUALITY: u32 = 2;

/// One brotli stream.
pub(super) struct Stream(BrotliEncoderStateStruct<StandardAlloc>);

impl Stream {
    pub(super) fn new(window: u32) -> Self {
        let mut state = BrotliEncoderCreateInstance(StandardAlloc::default());
        let mut set = |parameter, value| BrotliEncoderSetParameter(&mut state, parameter, value);
        set(BrotliEncoderParameter::BROTLI_PARAM_QUALITY, QUALITY);
        set(BrotliEncoderParameter::BROTLI_PARAM_LGWIN, window);
        Self(state)
    }

    pub(super) fn feed(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        flush: bool,
    ) -> Result<(), Broken> {
        let operation = if flush {
            BrotliEncoderOperation::BROTLI_OPERATION_FLUSH
        } else {
            BrotliEncoderOperation::BROTLI_OPERATION_PROCESS
        };
        loop {
            let before = out.len();
            let taken = self.step(operation, input, out)?;
            input = &input[taken..];
            // Output of a full block may have stood in the way of the flush; only silence says that it is done.
            if taken == 0 && out.len() == before {
                return Ok(());
            }
        }
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        while BrotliEncoderIsFinished(&self.0) == 0 {
            self.step(BrotliEncoderOperation::BROTLI_OPERATION_FINISH, &[], out)?;
        }
        Ok(())
    }

    /// How much of the input was taken; what came of it is appended.
    fn step(
        &mut self,
        operation: BrotliEncoderOperation,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize, Broken> {
        let (mut left, mut taken) = (input.len(), 0);
        // No room is offered: the output is taken from where it lies, without a copy in between.
        let ok = BrotliEncoderCompressStream(
            &mut self.0,
            operation,
            &mut left,
            input,
            &mut taken,
            &mut 0,
            &mut [],
            &mut 0,
            &mut None,
            &mut |_, _, _, _| (),
        );
        let mut size = 0;
        let output = BrotliEncoderTakeOutput(&mut self.0, &mut size);
        out.extend_from_slice(&output[..size]);
        if ok == 1 { Ok(taken) } else { Err(Broken) }
    }
}
