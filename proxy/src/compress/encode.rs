//! A body put into a coding, piece by piece.
//!
//! What it decides: the levels and windows, for the CPU of a proxy. Measured on one core with 150 KB of chat completions
//! in JSON, pieces of 16 KiB, and with 2165 events of 232 bytes, each flushed (ratio: bytes in / bytes out; µs:
//! per body of 150 KB, per answer of 4 KB, per event; memory of one encoder, all of it counted):
//!
//! | | body | MB/s | ratio | 4 KB | events | per event | ratio | memory: body, events |
//! |---|---|---|---|---|---|---|---|---|
//! | zstd 1, window 128 KiB; 32 KiB for events | 330 µs | 456 | 3.1 | 26 µs | 256 MB/s | 0.9 µs | 14.5 | 950, 310 KiB |
//! | brotli 2, the same windows | 1340 µs | 112 | 3.3 | 39 µs | 241 MB/s | 1.0 µs | 7.7 | 880, 350 KiB |
//! | gzip 2, gzip 1 for events | 970 µs | 155 | 3.05 | 21 µs | 960 MB/s | 0.24 µs | 15.8 | 340 KiB |
//!
//! What was not taken: zstd 3 (3.35 at 315 MB/s, 1.7 MiB; on embeddings even larger than zstd 1), gzip 3 (3.26
//! at 139 MB/s) and gzip 1 for bodies (2.35), gzip 2 for events (five times the time for 2 % of the bytes), brotli 3
//! (five times the time of brotli 2 per event) and brotli 4 (half the speed, 2 MiB). Passing 150 KB on
//! costs the proxy some 100 µs, so every step above these costs more than the whole rest of the work.
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
    /// An encoder for a body that comes like this. Takes up to 1 MiB while it lives; see the table above.
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
