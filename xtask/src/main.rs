//! `cargo xtask TASK`: every job a developer or CI runs, one file per task.
//!
//! Written in Rust so that a fresh machine needs nothing but rustup to start, and kept small so that it compiles
//! in seconds. A task prints each program before it runs it, so that any step can be repeated by hand.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "these are command-line jobs")]

mod audit;
mod bench;
mod build;
mod check;
mod demo;
mod deploy;
mod ebpf;
mod engine;
mod fmt;
mod schema;
mod setup;
mod shell;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};
use pico_args::Arguments;

const USAGE: &str = "\
usage: cargo xtask TASK [OPTIONS]

  demo      build, start two simulated model servers behind Outrigger, show a live table
            --seconds N    end after N seconds (default: until Ctrl-C; 15 when not on a terminal)
            --requests N   send N chats and end; fails unless every one of them succeeded
  test      install what the tests need and run them all
            --engine       instead: run a real llama-server behind Outrigger (builds it once)
            -- ARGS        passed on to cargo test, e.g. `cargo xtask test -- --package outrigger-config`
  check     what CI runs: fmt, audit, probes, clippy, docs, deny, test, deploy, demo
  build     the optimised binary with the probes in it, target/release/outrigger
  ebpf      the probes' programs for the kernel, target/ebpf
  fmt       format the source
  schema    write config/schema.json again
  deploy    check deploy/: alert rules and their tests, the scrape configuration, the pod's configuration
  bench     measure with an external bench folder: --dir FOLDER [-- ARGS]
  setup     install what building, testing and checking need (Debian, as root), and only what is missing
";

fn main() -> ExitCode {
    match run(Arguments::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: Arguments) -> Result<()> {
    match arguments.subcommand()?.as_deref() {
        Some("bench") => bench::run(arguments),
        Some("build") => plain(arguments, build::release),
        Some("check") => plain(arguments, check::run),
        Some("demo") => demo::run(arguments),
        Some("ebpf") => plain(arguments, ebpf::build),
        Some("deploy") => plain(arguments, deploy::run),
        Some("fmt") => plain(arguments, fmt::write),
        Some("schema") => plain(arguments, schema::write),
        Some("setup") => plain(arguments, || setup::ensure(setup::EVERYTHING)),
        Some("test") => test::run(arguments),
        Some(other) => bail!("no task is called `{other}`\n\n{USAGE}"),
        None => {
            print!("{USAGE}");
            Ok(())
        }
    }
}

/// Runs a task that takes no options.
fn plain(arguments: Arguments, task: impl FnOnce() -> Result<()>) -> Result<()> {
    nothing_left(arguments)?;
    task()
}

/// Fails when the user wrote something that no option took.
fn nothing_left(arguments: Arguments) -> Result<()> {
    match arguments.finish().first() {
        Some(extra) => bail!("not understood: {}\n\n{USAGE}", extra.to_string_lossy()),
        None => Ok(()),
    }
}
