//! Zstandard (RFC 8878), in a window that every client must have (RFC 9659: 8 MiB and less).
//!
//! To make a context takes longer than to encode 4 KB with it (14 µs, most of it asking the CPU for its features,
//! which a virtual machine answers slowly), so that each thread keeps a few that were used. No stream of events gets one: it
//! lives long, should hold no memory that a larger window once took, and does not feel the price.

use std::cell::RefCell;

use zstd::zstd_safe::{
    CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, zstd_sys::ZSTD_EndDirective,
};

use super::{Broken, Flow, ROOM};

const LEVEL: i32 = 1;
/// Contexts that wait on a thread, each with up to 1 MiB.
const KEPT: usize = 4;

thread_local! {
    static IDLE: RefCell<Vec<CCtx<'static>>> = const { RefCell::new(Vec::new()) };
}

/// One frame.
pub(super) struct Frame {
    /// Only empty while it is dropped.
    context: Option<CCtx<'static>>,
}

impl Frame {
    pub(super) fn new(flow: Flow) -> Result<Self, Broken> {
        let kept = match flow {
            Flow::Body { .. } => IDLE.with_borrow_mut(Vec::pop),
            Flow::Events => None,
        };
        let mut context = kept.or_else(CCtx::try_create).ok_or(Broken)?;
        context.reset(ResetDirective::SessionAndParameters).map_err(|_| Broken)?;
        for parameter in [CParameter::CompressionLevel(LEVEL), CParameter::WindowLog(flow.window())]
        {
            context.set_parameter(parameter).map_err(|_| Broken)?;
        }
        Ok(Self { context: Some(context) })
    }

    pub(super) fn feed(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        flush: bool,
    ) -> Result<(), Broken> {
        let directive = if flush {
            ZSTD_EndDirective::ZSTD_e_flush
        } else {
            ZSTD_EndDirective::ZSTD_e_continue
        };
        let mut input = InBuffer::around(input);
        loop {
            let left = self.step(directive, &mut input, out)?;
            if input.pos() == input.src.len() && (left == 0 || !flush) {
                return Ok(());
            }
        }
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        let mut nothing = InBuffer::around(&[]);
        while self.step(ZSTD_EndDirective::ZSTD_e_end, &mut nothing, out)? > 0 {}
        Ok(())
    }

    /// Bytes that are at least left to be written, as far as the directive asks for them.
    fn step(
        &mut self,
        directive: ZSTD_EndDirective,
        input: &mut InBuffer<'_>,
        out: &mut Vec<u8>,
    ) -> Result<usize, Broken> {
        let context = self.context.as_mut().ok_or(Broken)?;
        out.reserve(ROOM + (input.src.len() - input.pos()) / 4);
        let end = out.len();
        let mut output = OutBuffer::around_pos(out, end);
        context.compress_stream2(&mut output, input, directive).map_err(|_| Broken)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let Some(context) = self.context.take() else { return };
        // While a thread ends, there may be nowhere to keep it any more.
        let _ = IDLE.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.len() < KEPT {
                idle.push(context);
            }
        });
    }
}

#[cfg(test)]
impl Frame {
    /// Bytes that the context takes.
    pub(super) fn memory(&self) -> usize {
        self.context.as_ref().map_or(0, CCtx::sizeof)
    }
}
