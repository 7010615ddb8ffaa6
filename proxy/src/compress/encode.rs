//! A body put into a coding, piece by piece.
//!
//! What it decides: levels and windows, for the CPU of a proxy. Measured on one core: 150 KB of chat completions in
//! JSON in pieces of 16 KiB, the same in one answer of 4 KB, and 2165 events of 232 bytes, each flushed. Ratio: bytes
//! in / bytes out. Memory: all of one encoder, for a body and for events.
//!
//! | | 150 KB | MB/s | ratio | 4 KB | ratio | event | ratio | memory |
//! |---|---|---|---|---|---|---|---|---|
//! | zstd 1, window 128 KiB, for events 32 KiB | 305 µs | 495 | 3.1 | 9 µs | 2.1 | 0.8 µs | 14.5 | 950, 310 KiB |
//! | brotli 2, the same windows | 1360 µs | 110 | 3.3 | 38 µs | 2.2 | 0.9 µs | 7.7 | 880, 350 KiB; noise: 1250, 590 |
//! | gzip 2, for events gzip 1 | 855 µs | 175 | 3.05 | 18 µs | 2.3 | 0.15 µs | 15.8 | 340 KiB |
//!
//! To pass 150 KB on as they are costs the proxy some 100 µs, so that levels are dear. Not taken: zstd 3 (1.6 times the
//! time for a ratio of 3.35; 1.7 MiB; on embeddings it even gives more bytes), gzip 3 (1.2 times the time for 3.25),
//! gzip 1 for bodies (0.65 times the time, but 2.35), gzip 2 for events (five times the time, 2 % fewer
//! bytes), brotli 3 (the same for bodies, five times the time for an event), brotli 4 (twice the time, 2 MiB).
//!
//! What it leaves out: when to flush. An event must be readable as soon as it is there, so [`Flow::Events`] is
//! flushed after every piece; another body when its producer pauses, or else a slow one would stand
//! still in the window. Either is the caller's to see.
//!
//! A response whose encoder fails must be cut: what was sent of it can not be completed.

mod brotli;
mod zstd;

use std::{error, fmt};

use flate2::{Compress, Compression, FlushCompress, Status};
use outrigger_config::validated::Coding;

/// Room that every call of a coder finds: more than the marker of a flush takes, so that it is written once.
const ROOM: usize = 128;
/// Logarithm of the bytes that an encoder looks back: 128 KiB.
const BODY_WINDOW: u32 = 17;
/// The same for events, of which many streams are open at once: 32 KiB.
const EVENT_WINDOW: u32 = 15;
/// The least window that both zstd and brotli know.
const LEAST_WINDOW: u32 = 10;

/// How a body comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// In one go, or nearly.
    Body {
        /// Bytes in all, when they are known; only saves memory, and need not be true.
        length: Option<u64>,
    },
    /// In pieces that are each wanted at once: flush after every one.
    Events,
}

impl Flow {
    /// Logarithm of the window: no longer than the body itself.
    fn window(self) -> u32 {
        match self {
            Self::Events => EVENT_WINDOW,
            Self::Body { length: None } => BODY_WINDOW,
            Self::Body { length: Some(length) } => {
                let bits = u64::BITS - length.saturating_sub(1).leading_zeros();
                bits.clamp(LEAST_WINDOW, BODY_WINDOW)
            }
        }
    }
}

/// The coder can not go on: there is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body can not be encoded: out of memory")
    }
}

impl error::Error for Broken {}

/// Encodes one body.
pub struct Encoder(Inner);

enum Inner {
    Zstd(zstd::Frame),
    Brotli(Box<brotli::Stream>),
    Gzip(Compress),
}

impl Encoder {
    /// An encoder for a body that comes like this. Takes up to 1.25 MiB while it lives; see the table above.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn new(coding: Coding, flow: Flow) -> Result<Self, Broken> {
        Ok(Self(match coding {
            Coding::Zstd => Inner::Zstd(zstd::Frame::new(flow)?),
            Coding::Br => Inner::Brotli(Box::new(brotli::Stream::new(flow.window()))),
            Coding::Gzip => Inner::Gzip(Compress::new_gzip(gzip_level(flow), 15)),
        }))
    }

    /// Encodes `input` and appends to `out` what has come of it so far: with `flush`, all of it, so that the client
    /// can decode everything up to here.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>, flush: bool) -> Result<(), Broken> {
        match &mut self.0 {
            Inner::Zstd(frame) => frame.feed(input, out, flush),
            Inner::Brotli(stream) => stream.feed(input, out, flush),
            Inner::Gzip(member) => gzip_feed(member, input, out, flush),
        }
    }

    /// Appends the end of the body.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), Broken> {
        match self.0 {
            Inner::Zstd(frame) => frame.finish(out),
            Inner::Brotli(stream) => stream.finish(out),
            Inner::Gzip(member) => gzip_finish(member, out),
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Inner::Zstd(_) => "Encoder(zstd)",
            Inner::Brotli(_) => "Encoder(br)",
            Inner::Gzip(_) => "Encoder(gzip)",
        })
    }
}

fn gzip_level(flow: Flow) -> Compression {
    match flow {
        Flow::Body { .. } => Compression::new(2),
        Flow::Events => Compression::new(1),
    }
}

fn gzip_feed(
    member: &mut Compress,
    mut input: &[u8],
    out: &mut Vec<u8>,
    flush: bool,
) -> Result<(), Broken> {
    let mode = if flush { FlushCompress::Sync } else { FlushCompress::None };
    loop {
        out.reserve(ROOM + input.len() / 4);
        let before = member.total_in();
        member.compress_vec(input, out, mode).map_err(|_| Broken)?;
        input = &input[(member.total_in() - before) as usize..];
        // Room that is left says that nothing waits inside.
        if input.is_empty() && out.len() < out.capacity() {
            return Ok(());
        }
    }
}

fn gzip_finish(mut member: Compress, out: &mut Vec<u8>) -> Result<(), Broken> {
    loop {
        out.reserve(ROOM);
        let status = member.compress_vec(&[], out, FlushCompress::Finish).map_err(|_| Broken)?;
        if status == Status::StreamEnd {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
