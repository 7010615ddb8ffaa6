//! Running other programs: each is shown before it runs, and a failure says how to repeat it.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{ebpf, workspace};

/// Cargo of the toolchain that runs this, in the repository's root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace::root());
    // The same for every job: what is embedded decides whether the proxy has to be built again.
    let probes = ebpf::folder();
    if probes.is_dir() {
        command.env(ebpf::VARIABLE, probes);
    }
    command
}

/// Any other program, in the repository's root.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(workspace::root());
    command
}

/// Shows a command, runs it with this terminal, and fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = shown(command);
    println!("$ {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("{status}\nto repeat this step: {line}");
    }
    Ok(())
}

/// Whether a command can be run and succeeds; nothing is shown.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// What a command that succeeds says, without the space around it.
pub(crate) fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Where in PATH a program is.
pub(crate) fn found(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// A command as one would type it in the repository's root.
pub(crate) fn shown(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        // What is taken away is what this program was started with, and not there in a shell.
        let Some(value) = value else { continue };
        let _ = write!(line, "{}={} ", name.to_string_lossy(), quoted(value));
    }
    line.push_str(&typed_name(command.get_program()));
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&quoted(argument));
    }
    line
}

/// Cargo is typed by its name, whatever toolchain folder it came from.
fn typed_name(program: &OsStr) -> String {
    match PathBuf::from(program).file_name() {
        Some(name) if name == "cargo" => "cargo".to_owned(),
        _ => quoted(program),
    }
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("/opt/toolchain/bin/cargo");
        command.env("RUSTDOCFLAGS", "-D warnings").env_remove("CARGO").args(["doc", "it's", ""]);
        assert_eq!(shown(&command), r"RUSTDOCFLAGS='-D warnings' cargo doc 'it'\''s' ''");
    }
}
