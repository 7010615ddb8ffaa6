//! The probes in the real kernel, through the built proxy.
//!
//! Where one cannot run (no privilege, or a binary without the programs) its tests say so and do nothing; with
//! `OUTRIGGER_PROBES_REQUIRED` in the environment that is a failure.

mod cuda;
mod driver;
mod fences;
mod guest;
mod older;
mod requests;
mod servers;
mod sockets;
mod steps;
mod tracing;

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::LazyLock;

use outrigger_tests::harness::{Metrics, program};
use tokio::sync::RwLock;

/// The processors of this machine: shared by tests that compare the clocks of others with the kernel's, and taken whole by
/// those that emulate another machine, which would be in the way of the first for a minute.
static PROCESSORS: RwLock<()> = RwLock::const_new(());

/// What the doctor says here; asked once, for it loads every probe.
static DOCTOR: LazyLock<String> = LazyLock::new(|| {
    let output = Command::new(program()).arg("doctor").output();
    String::from_utf8_lossy(&output.expect("the program can be run").stdout).into_owned()
});

/// Whether a probe cannot run here; if so, why, said past the test runner's capture.
fn is_impossible(probe: &str) -> bool {
    let line = DOCTOR.lines().find(|line| line.starts_with(probe)).expect("a line of each probe");
    if !line.contains("impossible") {
        return false;
    }
    not_tested(&format!("the probe cannot run here: {line}"));
    true
}

/// Says that something is missing, or fails where nothing may be.
fn not_tested(why: &str) {
    assert!(std::env::var_os("OUTRIGGER_PROBES_REQUIRED").is_none(), "NOT TESTED: {why}");
    let _ = writeln!(std::io::stderr(), "NOT TESTED, {why}");
}

/// How many timelines ended so; all of them with an empty word.
fn timelines(metrics: &Metrics, result: &str) -> f64 {
    let labels = [("result", result)];
    let labels = if result.is_empty() { &[][..] } else { &labels };
    metrics.get("outrigger_app_timelines_total", labels)
}

/// Nothing was lost for want of room.
fn assert_nothing_lost(metrics: &Metrics) {
    assert_eq!(metrics.get("outrigger_probe_lost_total", &[]), 0.0, "{}", metrics.text);
}

fn following(server: SocketAddr) -> String {
    format!(
        "backends: {{ app: {{ endpoints: ['{server}'] }} }}\nroutes: [{{ backend: app }}]\n\
         drain: {{ delay: 0s }}\naccess_log: {{ format: json }}\nprobes: {{ requests: true }}\n"
    )
}
