//! The simulator as a program: for demonstrations, for load tests, and for clients that are not written in Rust.

use std::io::Write as _;
use std::net::SocketAddr;

use clap::Parser;
use outrigger_tests::sim::{Answers, Options, Simulator};

/// A simulated model server: the OpenAI API with the timing of a GPU engine, and faults on demand.
#[derive(Parser)]
#[command(name = "outrigger-sim", version)]
struct Arguments {
    /// Where to listen; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A second address for /sim/*, which no fault concerns
    #[arg(long)]
    control: Option<SocketAddr>,
    /// Its name, told in the header x-sim-name
    #[arg(long, default_value = "sim")]
    name: String,
    /// A model it serves (may be repeated); without one it serves whatever it is asked for
    #[arg(long = "model")]
    models: Vec<String>,
    /// Virtual seconds per real second
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    speed: f64,
    /// How many times slower than its peers
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    slowdown: f64,
    /// Mean length of answers, in tokens, for requests without max_tokens
    #[arg(long, default_value_t = 128.0, value_parser = positive)]
    answer: f64,
    /// Most requests in the batch
    #[arg(long, default_value_t = 256)]
    max_running: usize,
    /// Most requests waiting; more are answered 503
    #[arg(long)]
    max_waiting: Option<usize>,
    /// Seed of answers, jitter and faults
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if number > 0.0 && f64::is_finite(number) {
        Ok(number)
    } else {
        Err("must be above 0".to_owned())
    }
}

impl Arguments {
    fn options(self) -> Options {
        let mut options = Options {
            name: self.name,
            listen: self.listen,
            control: self.control,
            models: self.models,
            answers: Answers::Geometric(self.answer),
            speed: self.speed,
            seed: self.seed,
            ..Options::default()
        };
        options.engine.slowdown = self.slowdown;
        options.engine.seed = self.seed;
        options.engine.max_running = self.max_running.max(1);
        options.engine.max_waiting = self.max_waiting.unwrap_or(usize::MAX);
        options
    }
}

fn main() -> std::io::Result<()> {
    let simulator = Simulator::try_start(Arguments::parse().options())?;
    let mut greeting = serde_json::json!({"listening": simulator.addr});
    if let Some(control) = simulator.control {
        greeting["control"] = control.to_string().into();
    }
    let mut out = std::io::stdout();
    writeln!(out, "{greeting}")?;
    out.flush()?;
    simulator.wait();
    Ok(())
}
