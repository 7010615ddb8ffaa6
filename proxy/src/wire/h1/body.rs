//! Where a body ends, and how ours are framed.

use bytes::{Buf, BytesMut};

use super::parse::{self, HeadLimits};
use crate::wire::{BodyLength, Frame, WireError};

/// A chunk-size line longer than this is an attack or an accident.
const MAX_SIZE_LINE: usize = 1024;

/// Takes frames off the bytes that were read.
#[derive(Debug)]
pub enum Decoder {
    /// So many bytes are still to come.
    Exact(u64),
    /// The next thing is a chunk-size line.
    ChunkSize,
    /// So many bytes of this chunk are still to come.
    ChunkData(u64),
    /// The CRLF after a chunk's data.
    ChunkEnd,
    /// The trailer section.
    Trailers,
    /// Everything until the connection closes.
    UntilClose,
    /// The body is complete.
    Done,
}

impl Decoder {
    /// A decoder for a body that `length` describes, chunked where it is not known and `chunked` holds.
    pub fn new(length: BodyLength, chunked: bool) -> Self {
        match length {
            BodyLength::Empty => Decoder::Done,
            BodyLength::Exact(bytes) => Decoder::Exact(bytes),
            BodyLength::Unknown if chunked => Decoder::ChunkSize,
            BodyLength::Unknown => Decoder::UntilClose,
        }
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        matches!(self, Decoder::Done)
    }

    /// The next frame in `input`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for broken chunk framing, [`WireError::TooLarge`] for trailers beyond the limits.
    pub fn decode(
        &mut self,
        input: &mut BytesMut,
        limits: HeadLimits,
    ) -> Result<Option<Frame>, WireError> {
        loop {
            match self {
                Decoder::Done => return Ok(Some(Frame::End)),
                _ if input.is_empty() => return Ok(None),
                Decoder::UntilClose => return Ok(Some(Frame::Data(input.split().freeze()))),
                Decoder::Exact(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        *self = Decoder::Done;
                    }
                    return Ok(Some(data));
                }
                Decoder::ChunkData(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        *self = Decoder::ChunkEnd;
                    }
                    return Ok(Some(data));
                }
                Decoder::ChunkSize => match chunk_size(input)? {
                    None => return Ok(None),
                    Some(0) => *self = Decoder::Trailers,
                    Some(size) => *self = Decoder::ChunkData(size),
                },
                Decoder::ChunkEnd => {
                    if !skip_crlf(input)? {
                        return Ok(None);
                    }
                    *self = Decoder::ChunkSize;
                }
                Decoder::Trailers => return self.trailers(input, limits),
            }
        }
    }

    fn trailers(
        &mut self,
        input: &mut BytesMut,
        limits: HeadLimits,
    ) -> Result<Option<Frame>, WireError> {
        let Some((fields, len)) = parse::trailers(input, limits)? else { return Ok(None) };
        input.advance(len);
        *self = Decoder::Done;
        Ok(Some(if fields.is_empty() { Frame::End } else { Frame::Trailers(fields) }))
    }

    /// The peer closed: complete where the close is the end, an error elsewhere.
    pub fn close(&mut self) -> Result<Frame, WireError> {
        if matches!(self, Decoder::UntilClose | Decoder::Done) {
            *self = Decoder::Done;
            return Ok(Frame::End);
        }
        Err(WireError::truncated())
    }
}

fn take(input: &mut BytesMut, left: &mut u64) -> Frame {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= count as u64;
    Frame::Data(input.split_to(count).freeze())
}

/// Takes a chunk-size line off the input. Extensions are skipped, a bare LF is refused.
fn chunk_size(input: &mut BytesMut) -> Result<Option<u64>, WireError> {
    let invalid = WireError::Invalid("malformed chunk size");
    let Some(end) = memchr::memchr(b'\n', input) else {
        return if input.len() > MAX_SIZE_LINE { Err(invalid) } else { Ok(None) };
    };
    if end > MAX_SIZE_LINE {
        return Err(invalid);
    }
    let Some(line) = input[..end].strip_suffix(b"\r") else { return Err(invalid) };
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    if digits == 0 || digits > 15 || !(rest.is_empty() || rest.starts_with(b";")) {
        return Err(invalid);
    }
    let size = line[..digits].iter().fold(0, |sum, &digit| sum << 4 | hex_value(digit));
    input.advance(end + 1);
    Ok(Some(size))
}

fn hex_value(digit: u8) -> u64 {
    u64::from(match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    })
}

fn skip_crlf(input: &mut BytesMut) -> Result<bool, WireError> {
    match &input[..] {
        [b'\r', b'\n', ..] => {
            input.advance(2);
            Ok(true)
        }
        [b'\r'] => Ok(false),
        _ => Err(WireError::Invalid("chunk data longer than its size")),
    }
}

/// How our body is framed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As it is: its length was declared, or the close ends it, or it is no HTTP any more.
    Plain,
    /// In chunks.
    Chunked,
}

/// Writes the size line of a chunk of `len` bytes.
pub fn chunk_head(len: usize) -> ([u8; 18], usize) {
    let mut line = [0; 18];
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1) as usize;
    for (i, slot) in line[..digits].iter_mut().enumerate() {
        let nibble = (len >> (4 * (digits - 1 - i))) & 15;
        *slot = b"0123456789abcdef"[nibble];
    }
    line[digits..digits + 2].copy_from_slice(b"\r\n");
    (line, digits + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 1024, fields: 8 };

    /// Feeds `wire` in pieces of `step` bytes and returns body and trailers.
    fn decode(wire: &[u8], step: usize) -> Result<(Vec<u8>, Vec<String>, usize), WireError> {
        let (mut decoder, mut input) = (Decoder::ChunkSize, BytesMut::new());
        let (mut body, mut trailers, mut fed) = (Vec::new(), Vec::new(), 0);
        loop {
            match decoder.decode(&mut input, LIMITS)? {
                Some(Frame::Data(data)) => body.extend_from_slice(&data),
                Some(Frame::Trailers(fields)) => {
                    trailers.extend(fields.iter().map(|(n, _)| String::from_utf8_lossy(n).into()));
                }
                Some(Frame::End) => return Ok((body, trailers, input.len() + wire.len() - fed)),
                None if fed == wire.len() => return Err(decoder.close().unwrap_err()),
                None => {
                    let next = (fed + step).min(wire.len());
                    input.extend_from_slice(&wire[fed..next]);
                    fed = next;
                }
            }
        }
    }

    #[test]
    fn chunks_come_through_whatever_the_reads() {
        let wire = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\nNEXT";
        for step in 1..wire.len() {
            let (body, trailers, left) = decode(wire, step).unwrap();
            assert_eq!(body, b"hello world", "step {step}");
            assert_eq!(trailers, ["X-A", "X-B"]);
            assert_eq!(left, 4, "the next message must stay");
        }
    }

    #[test]
    fn broken_chunks_are_refused() {
        for wire in [
            "5\nhello\r\n",
            "x\r\n",
            "\r\n",
            "5 x\r\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n",
            "1234567890123456\r\n",
        ] {
            assert!(matches!(decode(wire.as_bytes(), 3), Err(WireError::Invalid(_))), "{wire:?}");
        }
        assert!(matches!(decode(b"5\r\nhel", 2), Err(WireError::Closed(_))));
        assert!(matches!(decode(&b"5;".repeat(2000), 64), Err(WireError::Invalid(_))));
    }

    #[test]
    fn chunk_heads_are_hexadecimal() {
        for len in [1, 9, 10, 15, 16, 255, 4096, 65536, usize::MAX] {
            let (line, n) = chunk_head(len);
            assert_eq!(&line[..n], format!("{len:x}\r\n").as_bytes());
        }
    }
}
