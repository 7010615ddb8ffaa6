//! Zstandard (RFC 8878).
//!
//! The head of every frame is read here before the library sees it, in one piece. Built with support for the formats
//! before 1.0, which another user of the library may ask for, it would fall back to decoders that are
//! neither bounded by the window nor maintained; and it looks for those formats in whatever piece of a head it
//! is given.

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::{Coder, Refused, Step};

/// Logarithm of the largest window: 8 MiB, which RFC 9659 sets for this content coding.
const WINDOW: u32 = 23;
/// The longest head of a frame.
const HEAD: usize = 18;

/// Frames, one after another.
pub(super) struct Frames {
    context: DCtx<'static>,
    head: [u8; HEAD],
    /// How much of the next head is there.
    known: usize,
    /// In a frame, after its head.
    inside: bool,
    /// The last output was too short for all that there was.
    full: bool,
    first: bool,
}

impl Frames {
    pub(super) fn new() -> Result<Self, Refused> {
        // Without memory for a context, nothing can be decompressed: as if the coding were not known.
        let mut context = DCtx::try_create().ok_or(Refused::Unsupported)?;
        let limit = DParameter::WindowLogMax(WINDOW);
        context.set_parameter(limit).map_err(|_| Refused::Unsupported)?;
        Ok(Self { context, head: [0; HEAD], known: 0, inside: false, full: false, first: true })
    }

    /// Takes bytes of a head; when it is whole, the frame begins with it.
    fn begin(&mut self, input: &[u8]) -> Result<usize, Refused> {
        let mut taken = 0;
        while taken < input.len() && !self.inside {
            self.head[self.known] = input[taken];
            self.known += 1;
            taken += 1;
            let length = head_length(&self.head[..self.known]).ok_or(self.stranger())?;
            if self.known == length {
                self.enter()?;
            }
        }
        Ok(taken)
    }

    /// What bytes are that begin no frame.
    fn stranger(&self) -> Refused {
        if self.first { Refused::Corrupt } else { Refused::Trailing }
    }

    fn enter(&mut self) -> Result<(), Refused> {
        self.inside = true;
        let (head, length) = (self.head, self.known);
        let step = self.run(&head[..length], &mut [])?;
        if step.taken == length { Ok(()) } else { Err(Refused::Corrupt) }
    }

    fn run(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Refused> {
        let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
        let hint = self.context.decompress_stream(&mut to, &mut from);
        let step = Step { taken: from.pos(), given: to.pos() };
        if hint.map_err(|_| Refused::Corrupt)? == 0 {
            (self.known, self.inside, self.first) = (0, false, false);
        }
        Ok(step)
    }
}

/// How long the head is that starts like this, as far as it can be told; `None` when it is none. (RFC 8878, 3.1)
pub(super) fn head_length(start: &[u8]) -> Option<usize> {
    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    /// The low half of its first byte is free.
    const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
    let skippable = start.first()? & 0xf0 == SKIPPABLE[0];
    let magic =
        if skippable { [start[0], SKIPPABLE[1], SKIPPABLE[2], SKIPPABLE[3]] } else { MAGIC };
    if !start.iter().zip(magic).all(|(&byte, known)| byte == known) {
        return None;
    }
    let Some(&descriptor) = start.get(4) else { return Some(HEAD) };
    if skippable {
        return Some(8);
    }
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let single = descriptor & 0x20 != 0;
    let content = match descriptor >> 6 {
        0 => usize::from(single),
        flag => 1 << flag,
    };
    Some(5 + usize::from(!single) + dictionary + content)
}

impl Coder for Frames {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Refused> {
        let mut done = Step::default();
        while done.given < output.len() {
            if !self.inside {
                done.taken += self.begin(&input[done.taken..])?;
            }
            let rest = &input[done.taken..];
            // To be asked too often for nothing is an error to the library.
            if !self.inside || (rest.is_empty() && !self.full) {
                break;
            }
            let step = self.run(rest, &mut output[done.given..])?;
            done.taken += step.taken;
            done.given += step.given;
            self.full = done.given == output.len();
        }
        Ok(done)
    }

    fn ended(&self) -> bool {
        !self.inside && self.known == 0 && !self.first
    }
}
