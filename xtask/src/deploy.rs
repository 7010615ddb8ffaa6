//! `cargo xtask deploy`: whether the files under `deploy/` are true.
//!
//! promtool reads the alert rules, runs their tests and reads the scrape configuration; Outrigger itself reads the
//! configuration inside the pod's manifest. That every metric they name exists is a unit test (`metrics`).

#[cfg(test)]
mod metrics;
#[cfg(test)]
mod promql;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::build;
use crate::setup::{self, Need};
use crate::shell::{program, run as execute};
use crate::workspace;

const POD: &str = "deploy/kubernetes/sidecar-pod.yaml";

pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Build, Need::Checks])?;
    check()
}

pub(crate) fn check() -> Result<()> {
    let promtool = setup::promtool()?;
    let folder = Path::new("deploy/prometheus");
    execute(program(&promtool).args(["check", "rules"]).arg(folder.join("alerts.yaml")))?;
    execute(program(&promtool).args(["test", "rules"]).arg(folder.join("alerts.test.yaml")))?;
    execute(program(&promtool).args(["check", "config"]).arg(folder.join("scrape.yaml")))?;
    pod_configuration()
}

/// Lets Outrigger check the configuration that stands in the pod's ConfigMap.
fn pod_configuration() -> Result<()> {
    let manifest = fs::read_to_string(workspace::root().join(POD)).context(POD)?;
    let config = block(&manifest, "outrigger.yaml")
        .with_context(|| format!("{POD} has no configuration"))?;
    let file = workspace::target().join("sidecar-pod.outrigger.yaml");
    fs::write(&file, config).with_context(|| file.display().to_string())?;
    execute(program(build::programs()?.outrigger).arg("check").arg(&file))
}

/// The text of a YAML block scalar (`key: |`), without its indentation.
fn block(yaml: &str, key: &str) -> Option<String> {
    let opening = format!("{key}: |");
    let mut lines = yaml.lines().skip_while(|line| line.trim() != opening);
    let indent = lines.next()?.find(|c| c != ' ')?;
    let inside = |line: &&str| line.trim().is_empty() || line.find(|c| c != ' ') > Some(indent);
    let text: Vec<&str> = lines.take_while(inside).collect();
    let depth = text.iter().filter_map(|line| line.find(|c| c != ' ')).min()?;
    Some(text.iter().map(|line| line.get(depth..).unwrap_or_default().to_owned() + "\n").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_scalar_ends_where_the_indentation_does() {
        let yaml = "a:\n  key: |\n    one:\n      two\n\n    three\n  next: 1\n";
        assert_eq!(block(yaml, "key").as_deref(), Some("one:\n  two\n\nthree\n"));
        assert_eq!(block(yaml, "next"), None);
    }
}
