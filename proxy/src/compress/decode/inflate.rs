//! gzip (RFC 1952) and deflate (RFC 1950, 1951).

use flate2::{Decompress, FlushDecompress, Status};

use super::{Coder, Refused, Step};

/// One step of the library; whether its stream has ended.
fn inflate(
    stream: &mut Decompress,
    input: &[u8],
    output: &mut [u8],
) -> Result<(Step, bool), Refused> {
    let before = (stream.total_in(), stream.total_out());
    let status =
        stream.decompress(input, output, FlushDecompress::None).map_err(|_| Refused::Corrupt)?;
    let taken = (stream.total_in() - before.0) as usize;
    let given = (stream.total_out() - before.1) as usize;
    Ok((Step { taken, given }, status == Status::StreamEnd))
}

/// Members, one after another.
pub(super) struct Gzip {
    /// Between two members there is none.
    member: Option<Decompress>,
    first: bool,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Self { member: None, first: true }
    }
}

impl Coder for Gzip {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Refused> {
        let mut done = Step::default();
        while done.given < output.len() {
            let rest = &input[done.taken..];
            if self.member.is_none() {
                match rest.first() {
                    None => break,
                    Some(0x1f) => self.member = Some(Decompress::new_gzip(15)),
                    Some(_) if self.first => return Err(Refused::Corrupt),
                    Some(_) => return Err(Refused::Trailing),
                }
            }
            let Some(member) = &mut self.member else { break };
            let (step, ended) = inflate(member, rest, &mut output[done.given..])?;
            done.taken += step.taken;
            done.given += step.given;
            if ended {
                self.member = None;
                self.first = false;
            } else if step == Step::default() {
                break;
            }
        }
        Ok(done)
    }

    fn ended(&self) -> bool {
        self.member.is_none() && !self.first
    }
}

/// One stream, in a zlib frame or bare.
pub(super) struct Deflate {
    /// The first two bytes tell which of both it is.
    head: [u8; 2],
    known: usize,
    stream: Option<Decompress>,
    ended: bool,
}

impl Deflate {
    pub(super) fn new() -> Self {
        Self { head: [0; 2], known: 0, stream: None, ended: false }
    }

    /// Takes bytes of the head; when it is whole, the stream begins with it.
    fn begin(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Refused> {
        let taken = input.len().min(self.head.len() - self.known);
        self.head[self.known..self.known + taken].copy_from_slice(&input[..taken]);
        self.known += taken;
        if self.known < self.head.len() {
            return Ok(Step { taken, given: 0 });
        }
        let mut stream = Decompress::new(has_frame(self.head));
        let (step, ended) = inflate(&mut stream, &self.head, output)?;
        if step.taken < self.head.len() {
            return Err(Refused::Corrupt);
        }
        (self.stream, self.ended) = (Some(stream), ended);
        Ok(Step { taken, given: step.given })
    }
}

/// Whether this is the head of a zlib frame: method 8, and divisible by 31. A bare stream that starts so would be a
/// stored block with padding that nobody writes.
fn has_frame([method, flags]: [u8; 2]) -> bool {
    method & 0x0f == 8 && u16::from_be_bytes([method, flags]) % 31 == 0
}

impl Coder for Deflate {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Refused> {
        let Some(stream) = &mut self.stream else { return self.begin(input, output) };
        if self.ended {
            return if input.is_empty() { Ok(Step::default()) } else { Err(Refused::Trailing) };
        }
        let (step, ended) = inflate(stream, input, output)?;
        self.ended = ended;
        Ok(step)
    }

    fn ended(&self) -> bool {
        self.ended
    }
}
