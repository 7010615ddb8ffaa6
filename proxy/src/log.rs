//! The proxy's own log, to standard error: what an operator should know. One line per request is the access log.

use std::io::IsTerminal;

use outrigger_config::validated::LogLevel;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Starts logging at `level`; the environment variable `RUST_LOG` (such as `info,outrigger=debug`) wins over it.
pub fn start(level: LogLevel) {
    let wanted = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    // pingora tells of every connection that a client broke; that is not ours to say.
    let filter = wanted.unwrap_or_else(|| {
        let level = level_filter(level);
        Targets::new().with_default(LevelFilter::WARN.min(level)).with_target("outrigger", level)
    });
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second start in one process keeps the first.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
