//! A model server that is none: the OpenAI API, continuous batching, vLLM's metrics, and faults on demand.
//!
//! Every end-to-end test needs a server that behaves like a GPU engine (queues, slows down with its batch, streams) and
//! that can be made to misbehave. It says openly what it is: `server: outrigger-sim`, `"owned_by":"outrigger-sim"`. Each
//! simulator runs on a thread of its own, so that a busy test does not disturb its pace, and dropping it closes all its
//! sockets at once, like a kill. What it can answer is listed in `routes.rs`.

mod body;
mod connection;
mod context;
mod control;
mod echo;
pub mod engine;
pub mod fault;
mod line;
mod misbehave;
mod openai;
pub mod options;
mod pace;
pub mod random;
mod reports;
mod routes;
mod samples;
mod telemetry;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use self::context::{Seen, State};
pub use self::echo::{Echo, sha256};
pub use self::fault::{Fault, Length, Rule};
pub use self::options::{Answers, Options, Reports};
pub use self::samples::{pattern, text};

use self::connection::Port;
use self::context::{Context, lock};

/// How long the awaiting methods wait before they give up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running simulator; dropping it stops it.
pub struct Simulator {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where its control listener is, when it was asked for one.
    pub control: Option<SocketAddr>,
    context: Arc<Context>,
    aborts_told: AtomicU64,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Simulator {
    /// Starts one.
    ///
    /// # Panics
    /// When it cannot listen; see [`Simulator::try_start`].
    pub fn start(options: Options) -> Self {
        Self::try_start(options).expect("a simulator can listen where it was told to")
    }

    /// Starts one.
    ///
    /// # Errors
    /// When an address cannot be listened on, or no thread can be had.
    pub fn try_start(options: Options) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ready = {
            let _inside = runtime.enter();
            Ready::new(options)?
        };
        let (addr, control) = (ready.port.address(), ready.control_address()?);
        let context = Arc::clone(&ready.context);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("outrigger-sim".to_owned());
        let thread = thread.spawn(move || runtime.block_on(ready.run(stopped)))?;
        let aborts_told = AtomicU64::new(0);
        Ok(Self { addr, control, context, aborts_told, stop: Some(stop), thread: Some(thread) })
    }

    /// `127.0.0.1:PORT`: an endpoint for a configuration.
    pub fn endpoint(&self) -> String {
        self.addr.to_string()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.context.options.name
    }

    /// What is going on in it now.
    pub fn state(&self) -> State {
        self.context.state()
    }

    /// The latest requests it saw (at most 1024), oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.context.seen()
    }

    /// Makes every request meet `fault`, until [`Simulator::clear_faults`].
    pub fn fault(&self, fault: Fault) {
        self.inflict(Rule::always(fault));
    }

    /// Puts a rule into force. Earlier rules are tried first.
    pub fn inflict(&self, rule: Rule) {
        self.context.inflict(rule);
    }

    /// Forgets all rules.
    pub fn clear_faults(&self) {
        lock(&self.context.faults).clear();
    }

    /// Lets the requests that have come so far go on where they stall before their first byte.
    pub fn release(&self) {
        self.context.release();
    }

    /// Stops listening and closes every connection as soon as it is idle; resolves when connections are refused.
    pub async fn refuse(&self) {
        self.context.listen(false);
        self.reached(|state| state.refusing).await;
    }

    /// Listens again, on the same port; resolves when connections are accepted.
    pub async fn resume(&self) {
        self.context.listen(true);
        self.reached(|state| !state.refusing).await;
    }

    /// Closes every open connection, whatever is in progress on it.
    pub fn hang_up(&self) {
        self.context.hang_up();
    }

    /// Makes its engine take `factor` times longer for every step from now on.
    pub fn set_slowdown(&self, factor: f64) {
        self.context.pace.set_slowdown(factor);
    }

    /// Resolves when a client has gone away before its answer was complete: once for each such request, also for one
    /// before this call.
    ///
    /// # Panics
    /// After 20 s without one.
    pub async fn aborted(&self) {
        let nth = self.aborts_told.fetch_add(1, Relaxed) + 1;
        self.reached(|state| state.aborted >= nth).await;
    }

    /// Resolves when the state is as wished, with that state.
    ///
    /// # Panics
    /// After 20 s.
    pub async fn reached(&self, wished: impl Fn(&State) -> bool) -> State {
        let mut changes = self.context.changes();
        let wait = async {
            loop {
                let state = self.state();
                if wished(&state) {
                    return state;
                }
                // The sender lives in the context that `self` holds.
                let _ = changes.changed().await;
            }
        };
        let state = tokio::time::timeout(PATIENCE, wait).await;
        state.unwrap_or_else(|_| self.gave_up())
    }

    #[expect(
        clippy::panic,
        reason = "a test that waits for what never comes must fail with what came"
    )]
    fn gave_up(&self) -> State {
        panic!("the simulator did not get there in {PATIENCE:?}: {:#?}", self.state())
    }

    /// Runs until the process ends.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            // It ends only by a panic, which has been reported.
            let _ = thread.join();
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It cannot be helped here when it panicked; the test has seen the connection end.
            let _ = thread.join();
        }
    }
}

/// A simulator that is bound and not yet running.
struct Ready {
    context: Arc<Context>,
    port: Port,
    listener: TcpListener,
    control: Option<TcpListener>,
}

impl Ready {
    fn new(options: Options) -> io::Result<Self> {
        let port = Port::reserve(options.listen)?;
        let listener = port.listen()?;
        let control =
            options.control.map(|address| Port::reserve(address)?.listen()).transpose()?;
        Ok(Self { context: Arc::new(Context::new(options)), port, listener, control })
    }

    fn control_address(&self) -> io::Result<Option<SocketAddr>> {
        self.control.as_ref().map(TcpListener::local_addr).transpose()
    }

    async fn run(self, stopped: oneshot::Receiver<()>) {
        let context = &self.context;
        let control = async {
            match self.control {
                Some(listener) => connection::serve_control(listener, Arc::clone(context)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = stopped => {}
            () = context.pace.run(|| context.notice()) => {}
            _ = connection::serve_port(self.port, self.listener, Arc::clone(context)) => {}
            () = control => {}
        }
    }
}
