//! One line per request, written by a thread of its own.
//!
//! Why: a write per request costs a tenth of a small request, and a slow disk or a stopped terminal
//! must never hold up traffic. So a request only formats its line and puts it on a bounded queue;
//! the writer takes what has gathered and writes it at once.
//!
//! What it decides: when the queue is full, the newest line is dropped and counted, because traffic
//! goes before its log. The writer sleeps without a timer while nothing happens, is woken by the
//! first line, then looks every 100 ms, or earlier when a thousand lines wait; so under load there
//! is no system call per request.
//!
//! What it leaves out: rotation (whoever rotates calls [`AccessLog::reopen`]), and everything that
//! is not for a log: no bodies, no query strings, no credentials. `line` says how a line looks.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst, fence};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, Thread, park, park_timeout};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use outrigger_config::validated::{AccessLog as Settings, LogFormat, LogPath};

use super::instruments::Counter;
pub use kept::Kept;
use line::Layout;
pub use line::Record;

mod kept;
mod line;

/// How the queue and its writer are sized.
#[derive(Clone, Copy, Debug)]
struct Tuning {
    /// Lines that can wait.
    capacity: usize,
    /// So many waiting lines wake the writer early.
    high_water: usize,
    /// How long the writer lets lines gather.
    linger: Duration,
}

const TUNING: Tuning =
    Tuning { capacity: 8192, high_water: 1024, linger: Duration::from_millis(100) };

/// A batch that reaches this many bytes is written before more is taken.
const BATCH: usize = 64 * 1024;

/// Room for an ordinary line, so that it is allocated once.
const LINE: usize = 640;

/// The access log. Clones write to the same place. When the last one is dropped, the writer writes
/// what is left and ends; to wait for that, call [`AccessLog::flush`] before.
#[derive(Clone)]
pub struct AccessLog(Option<Arc<Handle>>);

struct Handle {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    writer: Thread,
}

struct Shared {
    layout: Layout,
    queue: ArrayQueue<Vec<u8>>,
    high_water: usize,
    /// One of the three below.
    state: AtomicU8,
    dropped: Arc<Counter>,
}

/// The writer is at work and will look at the queue again.
const AWAKE: u8 = 0;
/// It lets lines gather for a moment; only a long queue is a reason to wake it.
const LINGERING: u8 = 1;
/// It sleeps until woken.
const ASLEEP: u8 = 2;

enum Command {
    Flush(SyncSender<()>),
    Reopen,
    Stop,
}

impl AccessLog {
    /// Opens the target and starts the writer. `dropped` counts the lines that are lost.
    ///
    /// # Errors
    /// If the file cannot be opened for appending or the thread cannot be started.
    pub fn start(settings: &Settings, dropped: Arc<Counter>) -> io::Result<Self> {
        let Some(format) = settings.format else { return Ok(Self::off()) };
        let target = Target::open(&settings.path)?;
        let terminal = target.is_terminal();
        let layout = match format {
            LogFormat::Json => Layout::json(&settings.fields),
            LogFormat::Auto if !terminal => Layout::json(&settings.fields),
            LogFormat::Text | LogFormat::Auto => {
                let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                Layout::text(&settings.fields, terminal && !plain)
            }
        };
        Self::spawn(layout, Box::new(target), dropped, TUNING)
    }

    /// A log that writes nothing.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether lines go anywhere; if not, a caller need not gather what a [`Record`] takes.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn spawn(
        layout: Layout,
        sink: Box<dyn Sink>,
        dropped: Arc<Counter>,
        tuning: Tuning,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            layout,
            queue: ArrayQueue::new(tuning.capacity),
            high_water: tuning.high_water,
            state: AtomicU8::new(AWAKE),
            dropped,
        });
        let (commands, inbox) = channel();
        let writer = Writer {
            shared: Arc::clone(&shared),
            inbox,
            sink,
            linger: tuning.linger,
            batch: Vec::new(),
            is_failing: false,
        };
        let thread = Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
        let writer = thread.thread().clone();
        Ok(Self(Some(Arc::new(Handle { shared, commands, writer }))))
    }

    /// Puts one line on the queue. Never waits.
    pub fn write(&self, record: &Record<'_>) {
        let Some(handle) = &self.0 else { return };
        let shared = &handle.shared;
        let mut line = Vec::with_capacity(LINE);
        shared.layout.write(record, &mut line);
        if shared.queue.push(line).is_err() {
            shared.dropped.inc();
        }
        if shared.should_wake() {
            handle.writer.unpark();
        }
    }

    /// Waits until everything put on the queue before is written, at most for `timeout`. Blocks the
    /// thread; returns whether it succeeded.
    #[must_use]
    pub fn flush(&self, timeout: Duration) -> bool {
        let Some(handle) = &self.0 else { return true };
        let (done, written) = sync_channel(1);
        handle.tell(Command::Flush(done)) && written.recv_timeout(timeout).is_ok()
    }

    /// Opens the file anew, for log rotation: soon after this, lines go to whatever has its name
    /// then. If that fails, the old one stays in use. Does not wait; a [`AccessLog::flush`] after
    /// it does.
    pub fn reopen(&self) {
        if let Some(handle) = &self.0 {
            handle.tell(Command::Reopen);
        }
    }
}

impl Handle {
    fn tell(&self, command: Command) -> bool {
        let is_sent = self.commands.send(command).is_ok();
        self.writer.unpark();
        is_sent
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.tell(Command::Stop);
    }
}

impl Shared {
    /// Whether the caller, who has just pushed a line, has to wake the writer. Of several callers
    /// one is told so.
    fn should_wake(&self) -> bool {
        // Pairs with the fence in `Writer::sleep`: either this sees that the writer sleeps, or the
        // writer sees the line.
        fence(SeqCst);
        let state = self.state.load(SeqCst);
        let is_due = match state {
            AWAKE => false,
            LINGERING => self.queue.len() >= self.high_water,
            _ => true,
        };
        is_due && self.state.compare_exchange(state, AWAKE, SeqCst, SeqCst).is_ok()
    }
}

struct Writer {
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    sink: Box<dyn Sink>,
    linger: Duration,
    batch: Vec<u8>,
    /// The last write failed; said once, not for every batch.
    is_failing: bool,
}

impl Writer {
    fn run(mut self) {
        while self.obey() {
            if self.drain() {
                self.linger();
            } else {
                self.sleep();
            }
        }
    }

    /// Carries out what was asked for; returns whether to go on.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Flush(done) => {
                    self.drain();
                    // Whoever asked may have stopped waiting.
                    let _ = done.try_send(());
                }
                Command::Reopen => {
                    self.drain();
                    if let Err(error) = self.sink.reopen() {
                        tracing::warn!("access log: the old file stays in use: {error}");
                    }
                }
                Command::Stop => {
                    self.drain();
                    return false;
                }
            }
        }
        true
    }

    /// Writes what waits, at most one queue full; returns whether there was anything.
    fn drain(&mut self) -> bool {
        let (mut taken, mut in_batch) = (0, 0);
        while taken < self.shared.queue.capacity() {
            let Some(line) = self.shared.queue.pop() else { break };
            taken += 1;
            in_batch += 1;
            self.batch.extend_from_slice(&line);
            if self.batch.len() >= BATCH {
                self.write_batch(std::mem::take(&mut in_batch));
            }
        }
        if in_batch > 0 {
            self.write_batch(in_batch);
        }
        taken > 0
    }

    fn write_batch(&mut self, lines: u64) {
        let result = self.sink.write(&self.batch);
        self.batch.clear();
        if let Err(error) = &result {
            self.shared.dropped.add(lines);
            if !self.is_failing {
                tracing::warn!("access log: lines are lost: {error}");
            }
        }
        self.is_failing = result.is_err();
    }

    fn linger(&self) {
        self.shared.state.store(LINGERING, SeqCst);
        if self.shared.queue.len() < self.shared.high_water {
            park_timeout(self.linger);
        }
        self.shared.state.store(AWAKE, SeqCst);
    }

    /// A command that comes in between is not missed: its sender unparks this thread afterwards,
    /// and then the park returns at once.
    fn sleep(&self) {
        self.shared.state.store(ASLEEP, SeqCst);
        fence(SeqCst);
        if self.shared.queue.is_empty() {
            park();
        }
        self.shared.state.store(AWAKE, SeqCst);
    }
}

/// Where batches of whole lines go.
trait Sink: Send {
    fn write(&mut self, batch: &[u8]) -> io::Result<()>;
    fn reopen(&mut self) -> io::Result<()>;
}

enum Target {
    Stdout,
    Stderr,
    File { path: PathBuf, file: File },
}

impl Target {
    fn open(path: &LogPath) -> io::Result<Self> {
        Ok(match path {
            LogPath::Stdout => Self::Stdout,
            LogPath::Stderr => Self::Stderr,
            LogPath::File(path) => Self::File { path: path.clone(), file: append_to(path)? },
        })
    }

    fn is_terminal(&self) -> bool {
        match self {
            Self::Stdout => io::stdout().is_terminal(),
            Self::Stderr => io::stderr().is_terminal(),
            Self::File { file, .. } => file.is_terminal(),
        }
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Sink for Target {
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(batch)?;
                out.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(batch),
            Self::File { file, .. } => file.write_all(batch),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout | Self::Stderr => {}
            Self::File { path, file } => *file = append_to(path)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::RecvTimeoutError;
    use std::time::Instant;

    use outrigger_config::validated::LogField;

    use super::*;

    /// Long enough for a busy machine; never waited for in full unless something is broken.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Passes every batch on; waits for leave before each if there is a gate.
    struct Pipe {
        batches: Sender<String>,
        gate: Option<Receiver<()>>,
        result: fn() -> io::Result<()>,
    }

    impl Sink for Pipe {
        fn write(&mut self, batch: &[u8]) -> io::Result<()> {
            let _ = self.batches.send(String::from_utf8(batch.to_vec()).expect("UTF-8"));
            if let Some(gate) = &self.gate {
                let _ = gate.recv();
            }
            (self.result)()
        }

        fn reopen(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Rig {
        log: AccessLog,
        batches: Receiver<String>,
        dropped: Arc<Counter>,
    }

    fn rig(tuning: Tuning, gate: Option<Receiver<()>>, result: fn() -> io::Result<()>) -> Rig {
        let (sender, batches) = channel();
        let sink = Pipe { batches: sender, gate, result };
        let dropped = Arc::new(Counter::default());
        let layout = Layout::json(&[LogField::RequestId]);
        let log = AccessLog::spawn(layout, Box::new(sink), Arc::clone(&dropped), tuning);
        Rig { log: log.expect("a thread"), batches, dropped }
    }

    fn say(log: &AccessLog, id: &str) {
        log.write(&Record { request_id: id, ..Record::default() });
    }

    fn line(id: &str) -> String {
        format!("{{\"request_id\":\"{id}\"}}\n")
    }

    const QUICK: Tuning = Tuning { capacity: 64, high_water: 16, linger: Duration::from_millis(1) };
    const PATIENT: Tuning =
        Tuning { capacity: 64, high_water: 16, linger: Duration::from_secs(3600) };

    #[test]
    fn a_sleeping_writer_is_woken_by_every_first_line() {
        let rig = rig(QUICK, None, || Ok(()));
        for round in 0..500 {
            let id = round.to_string();
            say(&rig.log, &id);
            let batch = rig.batches.recv_timeout(PATIENCE);
            assert_eq!(batch, Ok(line(&id)), "round {round}");
            // Vary where the writer is when the next line comes.
            let until = Instant::now() + Duration::from_micros(round * 7);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        }
    }

    #[test]
    fn a_lingering_writer_is_woken_by_a_long_queue() {
        let rig = rig(PATIENT, None, || Ok(()));
        say(&rig.log, "first");
        assert_eq!(rig.batches.recv_timeout(PATIENCE), Ok(line("first")));
        // The writer is on its way to linger; whenever it arrives, sixteen lines must wake it.
        let ids: Vec<String> = (0..16).map(|index| index.to_string()).collect();
        ids.iter().for_each(|id| say(&rig.log, id));
        let mut got = String::new();
        while got.matches('\n').count() < ids.len() {
            got += &rig.batches.recv_timeout(PATIENCE).expect("in time");
        }
        assert_eq!(got, ids.iter().map(|id| line(id)).collect::<String>());
    }

    #[test]
    fn overload_drops_the_newest_lines_and_counts_them() {
        let (leave, gate) = channel();
        let rig = rig(PATIENT, Some(gate), || Ok(()));
        say(&rig.log, "stuck");
        assert_eq!(rig.batches.recv_timeout(PATIENCE), Ok(line("stuck")));
        // Now the writer is inside its write and takes nothing.
        let ids: Vec<String> = (0..100).map(|index| index.to_string()).collect();
        ids.iter().for_each(|id| say(&rig.log, id));
        assert_eq!(rig.dropped.get(), 100 - 64);
        assert!(!rig.log.flush(Duration::from_millis(10)), "cannot be flushed while stuck");
        drop(leave);
        assert!(rig.log.flush(PATIENCE));
        let rest: String = rig.batches.try_iter().collect();
        assert_eq!(rest, ids[..64].iter().map(|id| line(id)).collect::<String>());
    }

    #[test]
    fn nothing_is_lost_or_torn_on_flush() {
        let tuning = Tuning { capacity: 100_000, ..PATIENT };
        let rig = rig(tuning, None, || Ok(()));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let log = rig.log.clone();
                scope.spawn(move || {
                    (0..5000).for_each(|index| say(&log, &format!("{thread}-{index}")));
                });
            }
        });
        assert!(rig.log.flush(PATIENCE));
        let got: String = rig.batches.try_iter().collect();
        let mut lines: Vec<&str> = got.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!((lines.len(), rig.dropped.get()), (20_000, 0));
        assert!(lines.iter().all(|line| line.starts_with("{\"") && line.ends_with("\"}")));
    }

    #[test]
    fn what_is_left_is_written_when_the_last_handle_goes() {
        let rig = rig(PATIENT, None, || Ok(()));
        say(&rig.log, "a");
        say(&rig.log, "b");
        drop(rig.log);
        let mut got = String::new();
        let end = loop {
            match rig.batches.recv_timeout(PATIENCE) {
                Ok(batch) => got += &batch,
                Err(end) => break end,
            }
        };
        assert_eq!((got, end), (line("a") + &line("b"), RecvTimeoutError::Disconnected));
    }

    #[test]
    fn lines_that_cannot_be_written_count_as_dropped() {
        let rig = rig(QUICK, None, || Err(io::ErrorKind::StorageFull.into()));
        (0..3).for_each(|_| say(&rig.log, "x"));
        assert!(rig.log.flush(PATIENCE));
        assert_eq!(rig.dropped.get(), 3);
    }

    #[test]
    fn a_log_that_is_off_takes_everything_and_writes_nothing() {
        let settings =
            Settings { format: None, path: LogPath::Stdout, fields: LogField::ALL.to_vec() };
        let log = AccessLog::start(&settings, Arc::default()).expect("nothing to open");
        say(&log, "x");
        log.reopen();
        assert!(!log.is_on() && log.flush(Duration::ZERO));
    }

    /// A file name of its own for one test; removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("outrigger-{}-{name}.log", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn to_file(path: &Scratch) -> Settings {
        let path = LogPath::File(path.0.clone());
        Settings { format: Some(LogFormat::Auto), path, fields: vec![LogField::RequestId] }
    }

    #[test]
    fn a_file_can_be_rotated() {
        let (current, old) = (Scratch::new("current"), Scratch::new("old"));
        let log = AccessLog::start(&to_file(&current), Arc::default()).expect("opens");
        say(&log, "1");
        assert!(log.flush(PATIENCE));
        std::fs::rename(&current.0, &old.0).expect("renames");
        say(&log, "2");
        log.reopen();
        assert!(log.flush(PATIENCE));
        say(&log, "3");
        assert!(log.flush(PATIENCE));
        let read = |path: &Scratch| std::fs::read_to_string(&path.0).expect("reads");
        assert_eq!(read(&old), line("1") + &line("2"));
        assert_eq!(read(&current), line("3"));
        drop(log);
        let again = AccessLog::start(&to_file(&current), Arc::default()).expect("opens");
        say(&again, "4");
        assert!(again.flush(PATIENCE));
        assert_eq!(read(&current), line("3") + &line("4"), "appends");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_at_the_start() {
        let inside_a_file = Scratch::new("file");
        std::fs::write(&inside_a_file.0, "").expect("writes");
        let below = Scratch(inside_a_file.0.join("below"));
        assert!(AccessLog::start(&to_file(&below), Arc::default()).is_err());
    }

    /// Prints what a line costs the request; run with `--nocapture` in a build with optimisation.
    #[test]
    fn time_of_a_line() {
        let written = Arc::new(Mutex::new(0));
        struct Null(Arc<Mutex<usize>>);
        impl Sink for Null {
            fn write(&mut self, batch: &[u8]) -> io::Result<()> {
                *self.0.lock().expect("not poisoned") += batch.len();
                Ok(())
            }
            fn reopen(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let dropped = Arc::new(Counter::default());
        let sink = Box::new(Null(Arc::clone(&written)));
        let layout = Layout::json(LogField::ALL);
        let log = AccessLog::spawn(layout, sink, Arc::clone(&dropped), TUNING).expect("a thread");
        let (mut spent, rounds) = (Duration::ZERO, 100);
        for _ in 0..rounds {
            let start = Instant::now();
            (0..1000).for_each(|_| log.write(&line::tests::sample()));
            spent += start.elapsed();
            assert!(log.flush(PATIENCE));
        }
        let total = *written.lock().expect("not poisoned");
        assert_eq!(dropped.get(), 0);
        println!("a line of {} bytes: {:?}", total / 1000 / rounds as usize, spent / 1000 / rounds);
    }
}
