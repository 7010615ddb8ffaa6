//! `outrigger doctor`: which probes run here, which could, and what stands in the way of the others.

use std::fmt::Write as _;

use outrigger_config::validated as config;

use super::{cuda, kernel::Obstacle, requests};

/// A probe, as far as it can be judged before it runs.
struct Probe {
    /// As in the configuration.
    name: &'static str,
    what: &'static str,
    is_wanted: fn(&config::Probes) -> bool,
    /// Loads it and takes it out again.
    attempt: fn() -> Result<(), Obstacle>,
    /// What it would find here, one line each.
    found: fn(&config::Probes) -> Vec<String>,
}

const PROBES: &[Probe] = &[
    Probe {
        name: "requests",
        what: "where each request's time went, at the application's socket",
        is_wanted: |settings| settings.requests,
        attempt: requests::attempt,
        found: |_| Vec::new(),
    },
    Probe {
        name: "cuda",
        what: "how long calls of the GPU's user-space driver take (CUDA, HIP)",
        is_wanted: |settings| settings.cuda.is_some(),
        attempt: cuda::attempt,
        found: cuda::found,
    },
];

/// How it stands with one probe.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It is asked for and can be.
    On,
    /// It can be, and is not asked for.
    Off,
    /// It cannot be.
    Impossible(Obstacle),
}

impl Standing {
    fn of(wanted: bool, trial: Result<(), Obstacle>) -> Self {
        match trial {
            Err(obstacle) => Standing::Impossible(obstacle),
            Ok(()) if wanted => Standing::On,
            Ok(()) => Standing::Off,
        }
    }
}

/// What is said, and whether everything that is asked for can be. Loads each probe and takes it out again.
#[must_use]
pub fn examine(settings: &config::Probes) -> (String, bool) {
    let mut text = String::new();
    let mut is_fine = true;
    for probe in PROBES {
        let is_wanted = (probe.is_wanted)(settings);
        let standing = Standing::of(is_wanted, (probe.attempt)());
        is_fine &= !is_wanted || standing == Standing::On;
        text += &told(probe.name, probe.what, &standing);
        for found in (probe.found)(settings) {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{:<10} found: {found}", "");
        }
    }
    (text, is_fine)
}

fn told(probe: &str, what: &str, standing: &Standing) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = match standing {
        Standing::On => writeln!(text, "{probe:<10} on          {what}"),
        Standing::Off => writeln!(
            text,
            "{probe:<10} off         {what}\n{:<10} to have it: probes: {{ {probe}: true }}",
            ""
        ),
        Standing::Impossible(obstacle) => writeln!(
            text,
            "{probe:<10} impossible  {obstacle}\n{:<10} to have it: {}",
            "",
            obstacle.remedy()
        ),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_standing_says_what_to_do() {
        let on = told("requests", "where time went", &Standing::of(true, Ok(())));
        assert_eq!(on, "requests   on          where time went\n");
        let off = told("requests", "where time went", &Standing::of(false, Ok(())));
        assert!(off.contains(" off ") && off.contains("probes: { requests: true }"), "{off}");
        let lacking = Obstacle::Capabilities(vec!["CAP_BPF"]);
        let not = told("requests", "where time went", &Standing::of(true, Err(lacking)));
        assert!(not.contains(" impossible ") && not.contains("without CAP_BPF"), "{not}");
        assert!(not.contains("add the capabilities"), "{not}");
    }
}
