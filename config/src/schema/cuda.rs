//! The probe of the GPU's user-space driver.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::Abbreviated;

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
