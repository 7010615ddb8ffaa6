//! What probes look at, and switching off those that are in other processes.

use serde_json::{Value, json};

use crate::probes::{Probes, Process};

/// Every probe that looks into processes.
pub(super) fn state(probes: &Probes) -> Value {
    let cuda = probes.cuda().map(|cuda| {
        let (on, processes) = cuda.state();
        let processes: Value = processes.iter().map(process).collect();
        json!({ "on": on, "processes": processes, "waits": cuda.waits(0, u64::MAX).len() })
    });
    json!({ "cuda": cuda })
}

fn process(process: &Process) -> Value {
    let Process { pid, library, probes } = process;
    json!({ "pid": pid, "library": library.display().to_string(), "probes": probes })
}

/// Switches the probe of the GPU's library; `None` when it does not run.
pub(super) fn switch(probes: &Probes, on: bool) -> Option<Value> {
    let changed = probes.cuda()?.switch(on);
    tracing::info!(on, changed, "the probe of the GPU's library was switched");
    Some(json!({ "on": on, "changed": changed }))
}
