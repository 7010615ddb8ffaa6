//! What the kernel is asked.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Abbreviated, Timeout};

/// How long calls into the GPU's driver take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Driver {
    /// Files whose calls are timed beside those of the drivers that are known (NVIDIA, DRM, KFD, accel): absolute paths, 64
    /// at most. A character device is known by its number, another file by its place. They may appear later. Default: none.
    #[schemars(length(max = 64))]
    pub devices: Vec<String>,
    /// After how long a call counts as stuck, and is told in the log, 1ms to 7d. Default: 10s.
    pub stuck_after: Timeout,
}

impl Default for Driver {
    fn default() -> Self {
        Self { devices: Vec::new(), stuck_after: super::values::Time(Duration::from_secs(10)) }
    }
}

impl Abbreviated for Driver {
    type Short = bool;
    const FORMS: &'static str = "true, a mapping";
    const BOOLEANS: bool = true;

    fn from_short(_: bool) -> Self {
        Self::default()
    }

    fn short(&self) -> bool {
        true
    }
}

/// How calls of the GPU's user-space driver are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct CudaProbe {
    /// Whether they are. Default in a mapping: true.
    pub enabled: bool,
    /// Count kernel launches, too, of which there may be 100,000 in a second. Default: false.
    pub launches: bool,
    /// Look also at functions whose first instruction the kernel has to single-step, which makes each call slower by 5 to
    /// 26 us (measured in virtual machines). Default: false.
    pub single_step: bool,
}

impl Default for CudaProbe {
    fn default() -> Self {
        Self { enabled: true, launches: false, single_step: false }
    }
}

impl Abbreviated for CudaProbe {
    type Short = bool;
    const FORMS: &'static str = "true, false, or a mapping";
    const BOOLEANS: bool = true;

    fn from_short(enabled: bool) -> Self {
        Self { enabled, ..Self::default() }
    }

    fn short(&self) -> bool {
        self.enabled
    }
}
