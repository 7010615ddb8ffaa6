//! The command line.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand};
use http::Method;
use outrigger_config::Config;

use crate::{
    app::{self, Options},
    explain::{Described, estimates, explain, taken_by},
    log,
    probes::doctor,
    wire::{Fields, RequestHead},
};

/// How long a running proxy has for telling what it has learned.
const PATIENCE: Duration = Duration::from_secs(2);

/// A sidecar proxy for GPU inference pods: weighted canaries, balancing by work in flight, deadlines that let streams live.
#[derive(Parser)]
#[command(name = "outrigger", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the proxy.
    Run(Run),
    /// Checks a configuration file and prints every problem with its place.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Shows which route, arms, deadlines and policy a request would meet.
    Explain(Explain),
    /// Says which probes run here, which could, and what stands in the way of the others. Exits with 1 when one that the
    /// file asks for cannot run.
    Doctor {
        /// The configuration file; without it nothing is asked for.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Prints the JSON schema of the configuration file.
    Schema,
    /// Prints a configuration file with every setting, commented.
    Example,
    /// Prints completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["config", "upstream"])))]
struct Run {
    /// The configuration file. It is read again when it changes and on SIGHUP.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A model server to put the proxy before, instead of a file; several are balanced.
    #[arg(short, long, value_name = "URL")]
    upstream: Vec<String>,
    /// Where to take traffic, with --upstream [default: 0.0.0.0:8800]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    listen: Option<SocketAddr>,
    /// Where to serve the admin pages, with --upstream [default: 127.0.0.1:8801]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    admin: Option<SocketAddr>,
    /// Writes the addresses that were bound to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    ports_file: Option<PathBuf>,
    /// Takes the listeners over from a running proxy, which is then sent SIGQUIT.
    #[arg(long)]
    upgrade: bool,
}

#[derive(clap::Args)]
struct Explain {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The method.
    #[arg(short, long, default_value = "POST")]
    method: Method,
    /// The host.
    #[arg(long, default_value = "localhost")]
    host: String,
    /// Path and query.
    #[arg(short, long, default_value = "/v1/chat/completions")]
    path: String,
    /// A header field, as `name: value`; may be given again.
    #[arg(short = 'H', long, value_name = "FIELD")]
    header: Vec<String>,
    /// The `model` of the body.
    #[arg(long)]
    model: Option<String>,
    /// The admin address of the running proxy that is asked what it has learned [default: that of the file]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

/// Runs the command line and returns the exit code: 0 done, 1 the configuration is wrong, 2 it could not run.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(arguments) => run(arguments),
        Command::Check { file } => check(&file),
        Command::Explain(arguments) => explain_request(arguments),
        Command::Doctor { config } => examine(config.as_deref()),
        Command::Schema => print(&format!("{:#}\n", outrigger_config::json_schema())),
        Command::Example => print(outrigger_config::EXAMPLE),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
    }
}

fn run(arguments: Run) -> ExitCode {
    let config = match &arguments.config {
        Some(path) => outrigger_config::load(path),
        None => {
            outrigger_config::from_upstreams(&arguments.upstream, arguments.listen, arguments.admin)
        }
    };
    let config = match config {
        Ok(config) => config,
        Err(report) => return fail(1, &report),
    };
    log::start(config.log.level);
    let Run { config: source, ports_file, upgrade, .. } = arguments;
    match app::run(Options { config, source, ports_file, upgrade }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(2, &error),
    }
}

fn check(file: &Path) -> ExitCode {
    match outrigger_config::load(file) {
        Ok(config) => {
            for warning in &config.warnings {
                say(&format!("warning: {warning}\n"));
            }
            print(&format!("{}: ok, {}\n", file.display(), summary(&config)))
        }
        Err(report) => fail(1, &report),
    }
}

fn examine(file: Option<&Path>) -> ExitCode {
    let probes = match file.map(outrigger_config::load).transpose() {
        Ok(config) => config.map(|config| config.probes).unwrap_or_default(),
        Err(report) => return fail(1, &report),
    };
    let (text, is_fine) = doctor::examine(&probes);
    print(&text);
    if is_fine { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn summary(config: &Config) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let listeners = count(config.listeners.len(), "listener");
    let backends = count(config.backends.len(), "backend");
    format!("{listeners}, {backends}, {}", count(config.routes.len(), "route"))
}

fn explain_request(arguments: Explain) -> ExitCode {
    let config = match outrigger_config::load(&arguments.config) {
        Ok(config) => config,
        Err(report) => return fail(1, &report),
    };
    let mut fields = Fields::new();
    fields.append("host", &arguments.host);
    for field in &arguments.header {
        let Some((name, value)) = field.split_once(':') else {
            return fail(2, &format!("--header {field:?}: expected `name: value`"));
        };
        fields.append(name.trim(), value.trim());
    }
    let head = RequestHead::for_target(arguments.method, fields, &arguments.path, 11);
    let described = Described { head, model: arguments.model };
    let mut text = explain(&config, &described);
    if let Some(route) = taken_by(&config, &described).filter(|route| route.deadline.is_learned()) {
        let admin = arguments.admin.unwrap_or(config.admin.address);
        match endpoints_page(admin) {
            Ok(page) => text.push_str(&estimates(&page, &route.name)),
            Err(why) => {
                text.push_str(&format!(
                    "  learned  not known: no proxy tells it at {admin} ({why})\n"
                ));
            }
        }
    }
    print(&text)
}

/// What a running proxy tells of its endpoints.
fn endpoints_page(admin: SocketAddr) -> std::io::Result<serde_json::Value> {
    let ip = match admin.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, admin.port()), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /endpoints HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let body = memchr::memmem::find(&answer, b"\r\n\r\n").map_or(0, |end| end + 4);
    Ok(serde_json::from_slice(&answer[body..])?)
}

/// Writes to standard output. A reader that went away is not an error.
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Writes to standard error; there is nowhere to complain about its failure.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn fail(code: u8, why: &dyn std::fmt::Display) -> ExitCode {
    say(&format!("{}\n", why.to_string().trim_end()));
    ExitCode::from(code)
}
