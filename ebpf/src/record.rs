//! Records as they cross the boundary: 64-bit words in order of declaration, so that there is no padding and nothing to
//! disagree about.

/// Declares a record of 64-bit words, and how it is read from words and bytes.
macro_rules! record {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name { $($(#[$doc])* pub $field: u64),+ }

        impl $name {
            /// How many words it has.
            pub const WORDS: usize = [$(stringify!($field)),+].len();

            /// Its words, in order of declaration.
            #[must_use]
            pub const fn to_words(self) -> [u64; Self::WORDS] {
                [$(self.$field),+]
            }

            /// The record of these words.
            #[must_use]
            pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
                let [$($field),+] = words;
                Self { $($field),+ }
            }

            /// The record of these bytes, as they lie in memory; `None` when they are too few or too many.
            #[must_use]
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                if bytes.len() != 8 * Self::WORDS {
                    return None;
                }
                let mut words = [0; Self::WORDS];
                for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                    *word = u64::from_ne_bytes(bytes.try_into().ok()?);
                }
                Some(Self::from_words(words))
            }
        }
    };
}

pub(crate) use record;
