//! The probes in the real kernel, through the built proxy.
//!
//! Where one cannot run (no privilege, or a binary without the programs) its tests say so and do nothing; with
//! `OUTRIGGER_PROBES_REQUIRED` in the environment that is a failure.

mod cuda;
mod driver;
mod guest;
mod requests;
mod servers;
mod sockets;
mod tracing;

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;

use outrigger_tests::harness::program;

/// Whether a probe cannot run here; if so, why, said past the test runner's capture.
fn is_impossible(probe: &str) -> bool {
    let output = Command::new(program()).arg("doctor").output().expect("the program can be run");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = told.lines().find(|line| line.starts_with(probe)).expect("a line of each probe");
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

fn following(server: SocketAddr) -> String {
    format!(
        "backends: {{ app: {{ endpoints: ['{server}'] }} }}\nroutes: [{{ backend: app }}]\n\
         drain: {{ delay: 0s }}\naccess_log: {{ format: json }}\nprobes: {{ requests: true }}\n"
    )
}
