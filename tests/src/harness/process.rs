//! A child process whose output is kept and whose end can be awaited.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::within;

/// A running program; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    output: Arc<Output>,
    exit: watch::Receiver<Option<ExitStatus>>,
    threads: Vec<JoinHandle<()>>,
}

/// The lines that it wrote.
#[derive(Debug)]
struct Output {
    lines: Mutex<Vec<String>>,
    count: watch::Sender<usize>,
}

impl Output {
    fn read(&self, pipe: impl Read) {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push(line);
            self.count.send_replace(lines.len());
        }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Process {
    /// Runs `command` and collects what it writes on both outputs.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn spawn(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => super::fail(&format!("cannot run {command:?}: {error}")),
        };
        let pid = Pid::from_raw(child.id().cast_signed());
        let output = Arc::new(Output { lines: Mutex::default(), count: watch::Sender::new(0) });
        let (tell, exit) = watch::channel(None);
        let (reading, read) = mpsc::channel();
        let mut threads = Vec::new();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        threads.extend(stdout.map(|pipe| follow(&output, &reading, pipe)));
        threads.extend(stderr.map(|pipe| follow(&output, &reading, pipe)));
        drop(reading);
        threads.push(std::thread::spawn(move || reap(child, &read, &tell)));
        Self { pid, output, exit, threads }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("the process is there to be signalled");
    }

    /// Every line that it has written so far, on either output.
    pub fn log(&self) -> Vec<String> {
        self.output.lines()
    }

    /// Waits for a line that contains `pattern`, also one that came before, and gives it.
    ///
    /// # Panics
    /// After 20 s, or when the process ends without it.
    pub async fn await_log(&self, pattern: &str) -> String {
        let found =
            self.await_lines(|lines| lines.iter().find(|line| line.contains(pattern)).cloned());
        match found.await {
            Some(line) => line,
            None => self.fail(&format!("no line with {pattern:?}")),
        }
    }

    /// Waits until `wished` gives something for the lines written so far; none after 20 s or at the end of the process.
    pub async fn await_lines<T>(&self, wished: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let mut count = self.output.count.subscribe();
        let mut exit = self.exit.clone();
        let wait = async {
            loop {
                count.mark_unchanged();
                let ended = exit.borrow().is_some();
                let found = wished(&self.output.lines());
                if found.is_some() || ended {
                    return found;
                }
                tokio::select! {
                    _ = count.changed() => {}
                    _ = exit.changed() => {}
                }
            }
        };
        tokio::time::timeout(super::PATIENCE, wait).await.ok().flatten()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it goes on for longer than `timeout`.
    pub async fn wait_exit(&self, timeout: Duration) -> ExitStatus {
        match tokio::time::timeout(timeout, self.exited()).await {
            Ok(status) => status,
            Err(_) => self.fail(&format!("still running after {timeout:?}")),
        }
    }

    /// Waits for its end, for ever.
    pub async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await.map(|status| *status);
        status.ok().flatten().expect("the thread that waits for the process tells its status")
    }

    /// Whether it is still running.
    pub fn is_running(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Fails the test with the process's output.
    ///
    /// # Panics
    /// Always.
    pub fn fail(&self, why: &str) -> ! {
        super::fail(&format!("{why}; process {} wrote:\n{}", self.pid, self.log().join("\n")))
    }

    /// Runs a program to its end and gives its status and its output.
    ///
    /// # Panics
    /// When it takes longer than 20 s.
    pub async fn finish(command: &mut Command) -> (ExitStatus, Vec<String>) {
        let mut process = Self::spawn(command);
        let status = within("a program", process.exited()).await;
        process.join();
        (status, process.log())
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A reader that panicked has lost lines, no more.
            let _ = thread.join();
        }
    }
}

/// Tells the status when everything that was written has been read, so that nobody misses the last words.
fn reap(mut child: Child, read: &mpsc::Receiver<()>, tell: &watch::Sender<Option<ExitStatus>>) {
    if let Ok(status) = child.wait() {
        // Ends by disconnection; a grandchild that holds the pipes open must not hold up the news.
        let _ = read.recv_timeout(Duration::from_secs(1));
        tell.send_replace(Some(status));
    }
}

/// Reads to the end of the pipe; `reading` is dropped then.
fn follow(
    output: &Arc<Output>,
    reading: &mpsc::Sender<()>,
    pipe: impl Read + Send + 'static,
) -> JoinHandle<()> {
    let (output, reading) = (Arc::clone(output), reading.clone());
    std::thread::spawn(move || {
        output.read(pipe);
        drop(reading);
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // It may have ended this instant.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        if std::thread::panicking() {
            self.show();
        }
    }
}

impl Process {
    #[expect(clippy::print_stderr, reason = "a failed test shows what the process had to say")]
    fn show(&self) {
        let lines = self.log();
        let from = lines.len().saturating_sub(200);
        eprintln!("--- process {} wrote (last lines):\n{}", self.pid, lines[from..].join("\n"));
    }
}
