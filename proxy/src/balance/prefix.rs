//! How prompts begin, in twelve numbers.
//!
//! An engine keeps what it computed of a prompt and need not compute it again for the next prompt
//! that begins alike: a long system message, or the earlier turns of a conversation. Which endpoint
//! that is we remember ([`Memory`](super::Memory)); for comparing, the head of a prompt is hashed
//! up to each of twelve growing bounds. Two prompts that share a hash are alike up to its bound.
//!
//! The bounds are bytes, not tokens, and lie closer together at the start: what is shared is
//! usually a system message of one or two thousand bytes. A prompt below the first bound has no
//! prefix; sending it where it was before would save next to nothing.

use xxhash_rust::xxh3::Xxh3Default;

/// Up to where prompts are compared, in bytes.
const BOUNDS: [u16; Prefix::MAX] =
    [512, 1_024, 1_536, 2_048, 3_072, 4_096, 6_144, 8_192, 12_288, 16_384, 24_576, 32_768];

/// The hashes of a prompt's head at each bound that it reaches. Empty for a short prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    hashes: [u64; Self::MAX],
    len: u8,
}

impl Prefix {
    /// A prompt of fewer bytes has no prefix.
    pub const SHORTEST: u64 = BOUNDS[0] as u64;

    /// The most hashes that a prefix has.
    pub const MAX: usize = 12;

    /// The most bytes of a prompt that are compared.
    pub const MAX_BYTES: usize = 32 * 1024;

    /// The prefix of the prompt that begins with `head`.
    pub fn of(head: &[u8]) -> Self {
        let mut builder = Self::builder();
        builder.feed(head);
        builder.finish()
    }

    /// A prefix of a prompt that comes in pieces.
    pub fn builder() -> Builder {
        Builder { state: Xxh3Default::new(), fed: 0, prefix: Self::default() }
    }

    /// Bytes from the start of the prompt up to the bound of hash `k`, `0..MAX`.
    pub const fn bound(k: usize) -> usize {
        BOUNDS[k] as usize
    }

    /// The hashes, that of the shortest head first.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes[..usize::from(self.len)]
    }

    fn push(&mut self, hash: u64) {
        self.hashes[usize::from(self.len)] = hash;
        self.len += 1;
    }
}

/// Takes a prompt piece by piece. About 600 bytes large.
pub struct Builder {
    state: Xxh3Default,
    /// Bytes in `state`.
    fed: usize,
    prefix: Prefix,
}

impl Builder {
    /// The next bytes of the prompt. What is beyond the last bound is not looked at.
    pub fn feed(&mut self, mut piece: &[u8]) {
        while let Some(&bound) = BOUNDS.get(usize::from(self.prefix.len)) {
            let missing = usize::from(bound) - self.fed;
            let Some((head, rest)) = piece.split_at_checked(missing) else {
                self.state.update(piece);
                self.fed += piece.len();
                return;
            };
            self.state.update(head);
            self.fed += head.len();
            self.prefix.push(self.state.digest());
            piece = rest;
        }
    }

    /// Whether the last bound is reached, and more bytes make no difference.
    pub fn is_full(&self) -> bool {
        self.prefix.hashes().len() == Prefix::MAX
    }

    /// The prefix of what was fed.
    pub fn finish(self) -> Prefix {
        self.prefix
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn text(rng: &mut SmallRng, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|_| rng.random()).collect()
    }

    #[test]
    fn a_hash_for_every_bound_that_is_reached() {
        let text = text(&mut SmallRng::seed_from_u64(1), 40_000);
        for (bytes, hashes) in [(0, 0), (511, 0), (512, 1), (1_024, 2), (8_191, 7), (40_000, 12)] {
            assert_eq!(Prefix::of(&text[..bytes]).hashes().len(), hashes, "{bytes} bytes");
        }
        assert_eq!(Prefix::bound(Prefix::MAX - 1), Prefix::MAX_BYTES);
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn prompts_share_hashes_as_far_as_they_are_alike() {
        let mut rng = SmallRng::seed_from_u64(2);
        for _ in 0..200 {
            let one = text(&mut rng, 32_768);
            let alike = rng.random_range(0..one.len());
            let mut other = one.clone();
            other[alike] ^= 1;
            let shared = |k: &usize| Prefix::bound(*k) <= alike;
            let expected = (0..Prefix::MAX).filter(shared).count();
            let (one, other) = (Prefix::of(&one), Prefix::of(&other));
            let same = one.hashes().iter().zip(other.hashes()).take_while(|(a, b)| a == b).count();
            assert_eq!(same, expected, "alike up to {alike}");
        }
    }

    #[test]
    fn where_it_is_cut_into_pieces_does_not_matter() {
        for seed in 0..50 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let len = rng.random_range(0..40_000);
            let text = text(&mut rng, len);
            let mut builder = Prefix::builder();
            let mut rest = &text[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rng.random_range(0..=rest.len().min(3_000)));
                builder.feed(piece);
                rest = after;
            }
            assert_eq!(builder.is_full(), len >= Prefix::MAX_BYTES, "seed {seed}");
            assert_eq!(builder.finish(), Prefix::of(&text), "seed {seed}");
        }
    }

    #[test]
    fn hashes_are_the_same_in_every_release() {
        // Pinned: an upgrade that hands its memory over must find what was remembered.
        let prefix = Prefix::of(&[b'x'; 600]);
        assert_eq!(prefix.hashes(), [xxhash_rust::xxh3::xxh3_64(&[b'x'; 512])]);
    }
}
