//! A request body unpacked, under bounds that no input escapes.
//!
//! What it decides:
//! - which codings: gzip (also several members), deflate (with the zlib frame that the RFC asks for, or without, as
//!   some clients send it), br, zstd (also several frames), and two of them on top of one another;
//! - how far: [`Decompress::max`] bytes and, past the first 64 KiB, [`Decompress::ratio`] times the bytes that came
//!   in. The ratio is reckoned as the body comes, so a body whose end would make up for its start is refused too.
//!   Between two codings it is 4 whatever the settings say: what is compressed does not shrink again, unless it
//!   was made to;
//! - that the coding is kept to: a body that ends early, or goes on after its end, or fails its checksum is refused. A
//!   body of no bytes at all is taken for an empty one;
//! - how much memory: windows of 32 KiB (gzip), 16 MiB (brotli), 8 MiB (zstd; RFC 9659), each only as large as the
//!   stream asks for, and for brotli as it fills; the large-window variant of brotli is not read.
//!
//! One call gives up to `room` bytes, or takes a few KiB of input and gives less, and returns: some input costs far
//! more than what comes of it, and the caller may give other work a turn in between. Measured on one core, in MB/s
//! that come out of text: gzip and deflate 200 to 500, brotli 350, zstd 1400. The slowest input known, brotli that
//! builds tables and hardly uses them, is read at 1 MB/s, so that one call takes some 5 ms, and 10 at worst.
//!
//! What it leaves out: `transfer-encoding`, and codings inside messages (gRPC).

mod brotli;
mod inflate;
mod zstd;

use std::{error, fmt};

use outrigger_config::validated::Decompress;

use super::drop_digests;
use crate::wire::{BodyLength, Fields, RequestHead, fields::tokens};

/// What is read, for the `accept-encoding` of a 415 (RFC 9110, 15.5.16).
pub const ACCEPTED: &str = "gzip, deflate, br, zstd";

/// So much may come out whatever came in: short bodies are not worth a refusal, and their ratio says little.
const FREE: u64 = 64 * 1024;
/// Between two codings, so many times the bytes that came in.
const BETWEEN: u64 = 4;
/// Bytes that a coder gives in one step.
const PIECE: usize = 16 * 1024;
/// Bytes that a coder takes in one step, and about what one call takes.
const BITE: usize = 4 * 1024;

/// Why a body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A coding that is not known, or more than two of them.
    Unsupported,
    /// More comes out than is allowed.
    TooLarge,
    /// More comes out for what came in than is allowed.
    Bomb,
    /// It is not what its coding says.
    Corrupt,
    /// It ended in the middle.
    Truncated,
    /// It goes on after its end.
    Trailing,
}

impl Refused {
    /// The status that says so.
    pub const fn status(self) -> u16 {
        match self {
            Self::Unsupported => 415,
            Self::TooLarge | Self::Bomb => 413,
            Self::Corrupt | Self::Truncated | Self::Trailing => 400,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "the content coding is not supported",
            Self::TooLarge => "the body is too large once it is decompressed",
            Self::Bomb => "the body grows too much when it is decompressed",
            Self::Corrupt => "the body is not what its content coding says",
            Self::Truncated => "the compressed body ends too early",
            Self::Trailing => "the compressed body goes on after its end",
        })
    }
}

impl error::Error for Refused {}

/// Decodes one body.
pub struct Decoder {
    /// The coding applied last, where there are two.
    outer: Option<Stage>,
    inner: Stage,
    limits: Decompress,
}

impl Decoder {
    /// What decodes the body after this head, which is edited to what will come out; `None` when there is nothing
    /// to decode, and the head is as it was.
    ///
    /// # Errors
    /// [`Refused::Unsupported`].
    pub fn of(head: &mut RequestHead, limits: &Decompress) -> Result<Option<Self>, Refused> {
        if head.body == BodyLength::Empty {
            return Ok(None);
        }
        let (outer, inner) = match codings(&head.fields)?[..] {
            [] => return Ok(None),
            [only] => (None, only),
            [first, second] => (Some(second), first),
            _ => return Err(Refused::Unsupported),
        };
        let (outer, inner) = (outer.map(Stage::new).transpose()?, Stage::new(inner)?);
        for name in ["content-encoding", "content-length"] {
            head.fields.remove(name);
        }
        drop_digests(&mut head.fields);
        head.body = BodyLength::Unknown;
        Ok(Some(Self { outer, inner, limits: limits.clone() }))
    }

    /// Decodes from the front of `input`, which is moved on past what was used, and appends to `out`, at most `room`
    /// bytes (which must not be 0) and one step of 16 KiB more. `true` when all that came so far has been
    /// decoded; `false` when something was appended and it must be called again, with the rest of the input, even
    /// an empty one. So when nothing was appended, all of the input was used.
    ///
    /// # Errors
    /// [`Refused`], but not [`Refused::Truncated`]; nothing more can be decoded then.
    pub fn decode(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
        room: usize,
    ) -> Result<bool, Refused> {
        let (start, enough) = (out.len(), self.taken() + BITE as u64);
        let end = start.saturating_add(room);
        // Input of which nothing comes is cheap; what is dear gives at least a little.
        while out.len() < end && (out.len() == start || self.taken() < enough) {
            let moved = self.step(input)?;
            self.check()?;
            out.extend_from_slice(self.inner.waiting());
            self.inner.clear();
            if !moved {
                // Every coder takes something or gives something as long as there is any.
                return if input.is_empty() { Ok(true) } else { Err(Refused::Corrupt) };
            }
        }
        Ok(false)
    }

    /// Whether anything moved.
    fn step(&mut self, input: &mut &[u8]) -> Result<bool, Refused> {
        let Some(outer) = &mut self.outer else { return self.inner.step(input) };
        let came = outer.waiting().is_empty() && outer.step(input)?;
        Ok(came | outer.pass_on(&mut self.inner)?)
    }

    /// Bytes in so far, of both codings together.
    fn taken(&self) -> u64 {
        self.inner.taken + self.outer.as_ref().map_or(0, |outer| outer.taken)
    }

    /// The body is over, and all of it has been decoded.
    ///
    /// # Errors
    /// [`Refused::Truncated`].
    pub fn finish(&self) -> Result<(), Refused> {
        let outer = self.outer.as_ref().is_none_or(Stage::ended);
        if outer && self.inner.ended() { Ok(()) } else { Err(Refused::Truncated) }
    }

    fn check(&self) -> Result<(), Refused> {
        let first = self.outer.as_ref().unwrap_or(&self.inner);
        if self.inner.given.max(first.given) > self.limits.max {
            return Err(Refused::TooLarge);
        }
        let bomb = |given, ratio| given > FREE.max(first.taken.saturating_mul(ratio));
        let between = self.outer.is_some() && bomb(first.given, BETWEEN);
        let whole = bomb(self.inner.given, self.limits.ratio.into());
        if between || whole { Err(Refused::Bomb) } else { Ok(()) }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("codings", &(1 + u8::from(self.outer.is_some())))
            .field("out", &self.inner.given)
            .finish_non_exhaustive()
    }
}

/// A coding of a request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// The codings that a head names, in the order in which they were applied.
fn codings(fields: &Fields) -> Result<Vec<Coding>, Refused> {
    let named = fields.get_all("content-encoding").flat_map(tokens);
    named.filter(|name| !name.eq_ignore_ascii_case(b"identity")).map(coding).collect()
}

fn coding(name: &[u8]) -> Result<Coding, Refused> {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    match () {
        () if is("gzip") || is("x-gzip") => Ok(Coding::Gzip),
        () if is("deflate") => Ok(Coding::Deflate),
        () if is("br") => Ok(Coding::Brotli),
        () if is("zstd") => Ok(Coding::Zstd),
        () => Err(Refused::Unsupported),
    }
}

/// What a coder did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Step {
    /// Bytes of the input that were used.
    taken: usize,
    /// Bytes of the output that were filled.
    given: usize,
}

/// Takes one coding off.
trait Coder {
    /// Decodes until the input is used up or the output is full. Neither happens only where both numbers are zero, and
    /// that only without input.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Refused>;

    /// Whether the body may end here.
    fn ended(&self) -> bool;
}

/// One coding, and what came out of it and has not been passed on.
struct Stage {
    coder: Box<dyn Coder + Send + Sync>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes in and out so far.
    taken: u64,
    given: u64,
}

impl Stage {
    fn new(coding: Coding) -> Result<Self, Refused> {
        let coder: Box<dyn Coder + Send + Sync> = match coding {
            Coding::Gzip => Box::new(inflate::Gzip::new()),
            Coding::Deflate => Box::new(inflate::Deflate::new()),
            Coding::Brotli => Box::new(brotli::Stream::new()),
            Coding::Zstd => Box::new(zstd::Frames::new()?),
        };
        let buffer = vec![0; PIECE].into_boxed_slice();
        Ok(Self { coder, buffer, start: 0, end: 0, taken: 0, given: 0 })
    }

    fn waiting(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Fills the buffer, which must be empty; whether anything moved.
    fn step(&mut self, input: &mut &[u8]) -> Result<bool, Refused> {
        let bite = &input[..input.len().min(BITE)];
        let Step { taken, given } = self.coder.step(bite, &mut self.buffer)?;
        *input = &input[taken..];
        (self.start, self.end) = (0, given);
        self.taken += taken as u64;
        self.given += given as u64;
        Ok(taken + given > 0)
    }

    /// Lets the next coding work on what waits here; whether anything moved.
    fn pass_on(&mut self, next: &mut Self) -> Result<bool, Refused> {
        let mut waiting = &self.buffer[self.start..self.end];
        let moved = next.step(&mut waiting)?;
        self.start = self.end - waiting.len();
        Ok(moved)
    }

    fn ended(&self) -> bool {
        self.taken == 0 || (self.waiting().is_empty() && self.coder.ended())
    }
}

#[cfg(test)]
mod tests;
