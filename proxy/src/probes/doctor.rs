//! `outrigger doctor`: which probes run here, which could, and what stands in the way of the others.

use std::fmt::Write as _;

use outrigger_config::validated as config;

use super::{cuda, driver, fences, kernel::Obstacle, requests, sockets};

/// A probe, as far as it can be judged before it runs.
struct Probe {
    /// As in the configuration.
    name: &'static str,
    what: &'static str,
    is_wanted: fn(&config::Probes) -> bool,
    /// Loads it and takes it out again; what there is to say of how it would run, a line each.
    attempt: fn(&config::Probes) -> Result<Vec<String>, Obstacle>,
}

const PROBES: &[Probe] = &[
    Probe {
        name: "requests",
        what: "where each request's time went, at the application's socket",
        is_wanted: |settings| settings.requests,
        attempt: |_| requests::attempt().map(|how| vec![how]),
    },
    Probe {
        name: "driver",
        what: "how long calls into the GPU's driver take",
        is_wanted: |settings| settings.driver.is_some(),
        attempt: |_| driver::attempt().map(|how| vec![how]),
    },
    Probe {
        name: "fences",
        what: "how long processes wait in the kernel for a GPU's work, and their jobs in the DRM scheduler (not CUDA)",
        is_wanted: |settings| settings.fences,
        attempt: |_| fences::attempt(),
    },
    Probe {
        name: "sockets",
        what: "round trips and queues of endpoints once a second, and their processes if they may be seen",
        is_wanted: |settings| settings.sockets,
        attempt: |_| sockets::attempt().map(|()| Vec::new()),
    },
    Probe {
        name: "cuda",
        what: "how long calls of the GPU's user-space driver take (CUDA, HIP)",
        is_wanted: |settings| settings.cuda.is_some(),
        attempt: |settings| {
            let how = cuda::attempt()?;
            Ok([vec![how], cuda::found(settings)].concat())
        },
    },
];

/// How it stands with one probe.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It is asked for and can be; how.
    On(Vec<String>),
    /// It can be, and is not asked for; how it would be.
    Off(Vec<String>),
    /// It cannot be.
    Impossible(Obstacle),
}

impl Standing {
    fn of(wanted: bool, trial: Result<Vec<String>, Obstacle>) -> Self {
        match trial {
            Err(obstacle) => Standing::Impossible(obstacle),
            Ok(how) if wanted => Standing::On(how),
            Ok(how) => Standing::Off(how),
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
        let standing = Standing::of(is_wanted, (probe.attempt)(settings));
        is_fine &= !is_wanted || matches!(standing, Standing::On(_));
        text += &told(probe.name, probe.what, &standing);
    }
    (text, is_fine)
}

fn told(probe: &str, what: &str, standing: &Standing) -> String {
    let mut text = String::new();
    let how = match standing {
        Standing::On(how) | Standing::Off(how) => how.as_slice(),
        Standing::Impossible(_) => &[],
    };
    let how: String = how.iter().map(|line| format!("\n{:<10} {line}", "")).collect();
    // Writing to a text cannot fail.
    let _ = match standing {
        Standing::On(_) => writeln!(text, "{probe:<10} on          {what}{how}"),
        Standing::Off(_) => writeln!(
            text,
            "{probe:<10} off         {what}{how}\n{:<10} to have it: probes: {{ {probe}: true }}",
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
        let on = told("requests", "where time went", &Standing::of(true, Ok(Vec::new())));
        assert_eq!(on, "requests   on          where time went\n");
        let how = || Ok(vec!["by looking".to_owned()]);
        let on = told("requests", "where time went", &Standing::of(true, how()));
        assert_eq!(on, "requests   on          where time went\n           by looking\n");
        let off = told("requests", "where time went", &Standing::of(false, how()));
        assert!(off.contains(" off ") && off.contains("probes: { requests: true }"), "{off}");
        let lacking = Obstacle::Capabilities(vec!["CAP_BPF"]);
        let not = told("requests", "where time went", &Standing::of(true, Err(lacking)));
        assert!(not.contains(" impossible ") && not.contains("without CAP_BPF"), "{not}");
        assert!(not.contains("add the capabilities"), "{not}");
    }
}
