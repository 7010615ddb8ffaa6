//! What is done to bodies: compressed, decompressed, and put together.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// How responses are compressed, for clients that take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Compress {
    /// What is offered, best first; at least one, none twice.
    pub algorithms: Vec<Coding>,
    /// Bytes of a response body; one that is known to be shorter is left as it is.
    #[serde(serialize_with = "units::size")]
    pub min: u64,
    /// Whether event streams are compressed as well.
    pub events: bool,
}

/// A way to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Coding {
    /// Zstandard.
    Zstd,
    /// Brotli.
    Br,
    /// gzip.
    Gzip,
}

/// How request bodies are decompressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decompress {
    /// Bytes of a decompressed body; a longer one is refused with 413.
    #[serde(serialize_with = "units::size")]
    pub max: u64,
    /// How many times as long as it came a body may become, 2 to 10000.
    pub ratio: u32,
}

/// How requests are sent together. Whichever bound is reached first ends a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Batch {
    /// How long the first request waits for others, 100us to 1s.
    #[serde(serialize_with = "units::duration")]
    pub window: Duration,
    /// Requests in one batch, 2 to 1024.
    pub requests: usize,
    /// Bytes of all bodies in one batch.
    #[serde(serialize_with = "units::size")]
    pub bytes: u64,
}

impl Coding {
    /// Every coding, in the default order of preference.
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Br, Self::Gzip];

    /// Its name in the configuration and in `content-encoding`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }
}
