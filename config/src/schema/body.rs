//! What is done to bodies: compressed, decompressed, and put together.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Moment, Size, Time, Whole};
use super::{GIB, KIB, MIB};
use crate::validated::Coding;

/// Compresses responses for clients that take it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Compress {
    /// What is offered, best first. At least one. Default: zstd, br, gzip.
    #[schemars(length(min = 1))]
    pub algorithms: Vec<Coding>,
    /// Size of a response body, 0B to 1GiB; a shorter one is left as it is. Default: 1KiB.
    pub min: Size<0, GIB>,
    /// Whether event streams are compressed as well. Default: false.
    pub events: bool,
}

/// Decompresses request bodies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Decompress {
    /// Size of a decompressed body, 1KiB to 1TiB; a longer one is refused with 413. Default: 64MiB.
    pub max: Size<KIB, { 1024 * GIB }>,
    /// How many times as long a body may become, 2 to 10000; beyond it the request is refused with
    /// 413. Default: 100.
    pub ratio: Whole<2, 10_000>,
}

/// Sends requests together that come at almost the same time. Whichever bound is reached first ends a
/// batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// How long the first request waits for others, 100us to 1s. Default: 5ms.
    pub window: Moment,
    /// Requests in one batch, 2 to 1024. Default: 32.
    pub requests: Whole<2, 1024>,
    /// Size of all bodies in one batch, 1KiB to 1GiB. Default: 1MiB.
    pub bytes: Size<KIB, GIB>,
}

impl Default for Compress {
    fn default() -> Self {
        Self { algorithms: Coding::ALL.to_vec(), min: Size(KIB), events: false }
    }
}

impl Default for Decompress {
    fn default() -> Self {
        Self { max: Size(64 * MIB), ratio: Whole(100) }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self { window: Time::millis(5), requests: Whole(32), bytes: Size(MIB) }
    }
}
