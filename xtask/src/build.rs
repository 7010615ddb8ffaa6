//! `cargo xtask build`: the optimised binary; and the binaries that tests and demo run.
//!
//! Tests, demo and check all use the profile `fast` and select the whole workspace, because another profile or
//! another selection of packages (and with it of features) would build pingora a second time.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::ebpf;
use crate::setup::{self, Need};
use crate::shell::{cargo, run, shown};

/// Selects everything, in the profile that tests and demo share.
pub(crate) const FAST: &[&str] = &["--profile", "fast", "--workspace"];

/// The two programs that demo and tests start.
pub(crate) struct Programs {
    pub(crate) outrigger: PathBuf,
    pub(crate) simulator: PathBuf,
}

pub(crate) fn release() -> Result<()> {
    setup::ensure(&[Need::Build, Need::Probes])?;
    ebpf::build_if_possible();
    run(&mut cargo(&["build", "--release", "--locked", "--package", "outrigger"]))
}

/// Builds the programs with cargo's progress on this terminal and returns where they are.
pub(crate) fn programs() -> Result<Programs> {
    let mut built = executables()?;
    let mut take = |name: &str| {
        let position = built.iter().position(|path| path.file_name().is_some_and(|it| it == name));
        position.map(|at| built.swap_remove(at)).with_context(|| format!("cargo built no `{name}`"))
    };
    Ok(Programs { outrigger: take("outrigger")?, simulator: take("outrigger-sim")? })
}

/// Cargo names what it built in JSON on its standard output; nobody has to guess the target folder.
fn executables() -> Result<Vec<PathBuf>> {
    ebpf::build_if_possible();
    let mut command = cargo(&["build", "--bins", "--message-format", "json-render-diagnostics"]);
    command.args(FAST).stdout(Stdio::piped());
    let line = shown(&command);
    println!("$ {line}");
    let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
    let messages = child.stdout.take().context("cargo's output is not piped")?;
    let mut executables = Vec::new();
    for message in BufReader::new(messages).lines() {
        executables.extend(executable(&message?));
    }
    match child.wait()? {
        status if status.success() => Ok(executables),
        status => bail!("{status}\nto repeat this step: {line}"),
    }
}

fn executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    Some(PathBuf::from(message.get("executable")?.as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_about_programs_name_one() {
        let program = r#"{"reason":"compiler-artifact","executable":"/t/fast/outrigger"}"#;
        let library = r#"{"reason":"compiler-artifact","executable":null}"#;
        assert_eq!(executable(program), Some(PathBuf::from("/t/fast/outrigger")));
        assert_eq!(executable(library), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(executable("not JSON"), None);
    }
}
