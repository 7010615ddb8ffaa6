//! The thread that reads what the kernel tells, and gives it to metrics and the access log.
//!
//! Nobody wakes it for a burst or a request: it looks every 20 ms while requests wait for their timelines, and sleeps when
//! none does.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::park_timeout,
    time::Duration,
};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use outrigger_probes::{Burst, Write};

use super::{
    Loaded, Programs,
    fold::{Fold, Span},
    follow::{Ended, Note, Registry, Shared},
    gaps::{Gaps, Numbers},
    timeline::Timeline,
    writes::Writes,
};
use crate::probes::overlap::{Crowd, Waits};
use crate::telemetry::{
    access_log::AccessLog,
    metrics::{FollowMetrics, TimelineResult},
};

/// Between two rounds.
const ROUND: Duration = Duration::from_millis(20);

/// Requests that have not ended fill the ring too (WebSockets, uploads that are answered early): it is emptied this often.
const REST: Duration = Duration::from_secs(1);

/// Rounds that are waited for the last timelines when the proxy ends.
const LAST_ROUNDS: u32 = 3;

pub(super) struct Reader {
    shared: Arc<Shared>,
    bursts: RingBuf<MapData>,
    told_writes: RingBuf<MapData>,
    writes: Writes,
    /// Of bursts, of writes.
    dropped: PerCpuArray<MapData, u64>,
    dropped_before: [u64; 2],
    gaps: Gaps,
    numbers: Arc<Numbers>,
    /// Dropping them takes them out of the kernel.
    programs: Programs,
    fold: Fold<Ended>,
    /// Who waits for the GPU, where a probe looks at that.
    waits: Option<Waits>,
    crowd: Crowd,
    metrics: Arc<FollowMetrics>,
    log: AccessLog,
    stop: Arc<AtomicBool>,
}

impl Reader {
    pub(super) fn new(
        loaded: Loaded,
        metrics: Arc<FollowMetrics>,
        log: AccessLog,
        waits: Option<Waits>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let Loaded { way: _, programs, connections, ports, bursts, writes, dropped, gaps } = loaded;
        let shared = Arc::new(Shared::new(
            Registry { connections, ports, known: HashSet::new() },
            Arc::clone(&metrics),
            waits.is_some(),
        ));
        let numbers = Arc::new(Numbers::default());
        Reader {
            shared,
            bursts,
            dropped,
            told_writes: writes,
            writes: Writes::default(),
            dropped_before: [0; 2],
            gaps: Gaps::new(gaps, Arc::clone(&numbers)),
            numbers,
            programs,
            // Who else was in flight is known a round later.
            fold: Fold::new(waits.is_none()),
            waits,
            crowd: Crowd::default(),
            metrics,
            log,
            stop,
        }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn numbers(&self) -> Arc<Numbers> {
        Arc::clone(&self.numbers)
    }

    pub(super) fn run(mut self) {
        // Set once: here.
        let _ = self.shared.reader.set(std::thread::current());
        while !self.stop.load(SeqCst) {
            self.round();
            if self.fold.is_idle() {
                self.sleep();
            } else {
                park_timeout(ROUND);
            }
        }
        for _ in 0..LAST_ROUNDS {
            self.round();
            park_timeout(ROUND);
        }
        // No line of the access log is lost for want of a timeline.
        self.fold.hurry();
        self.round();
        self.round();
    }

    fn sleep(&self) {
        self.shared.asleep.store(true, SeqCst);
        // Whoever has pushed a note before it saw that has not woken us.
        if self.shared.notes.is_empty() && !self.stop.load(SeqCst) {
            park_timeout(REST);
        }
        self.shared.asleep.store(false, SeqCst);
    }

    fn round(&mut self) {
        self.take_notes();
        self.join();
        while let Some((connection, key)) = self.fold.forget() {
            self.shared.dismiss(connection, key);
            self.writes.forget(connection);
        }
        self.gaps.look();
        self.programs.write_down();
        self.count_dropped();
    }

    fn count_dropped(&mut self) {
        let counters = [&self.metrics.bursts_dropped, &self.metrics.writes_dropped];
        for ((what, counter), before) in (0..).zip(counters).zip(&mut self.dropped_before) {
            let Ok(counts) = self.dropped.get(&what, 0) else { continue };
            let all: u64 = counts.iter().sum();
            counter.add(all - *before);
            *before = all;
        }
    }

    /// What ended before has been told by the kernel when the ring is read afterwards.
    fn take_notes(&mut self) {
        while let Some(note) = self.shared.notes.pop() {
            match note {
                Note::Began(at) => self.crowd.began(at),
                Note::Ceased(at) => self.crowd.ceased(at),
                Note::Opened(connection) => self.fold.opened(connection),
                Note::Closed(connection, key) => {
                    self.fold.closed(connection, key);
                }
                Note::Ended(span, ended) => {
                    if let Some(ended) = self.fold.ended(span, ended) {
                        deliver(ended, span, None, Vec::new(), &self.log);
                    }
                }
            }
        }
        if self.shared.in_flight.load(SeqCst) == 0 {
            self.crowd.nobody();
        }
    }

    /// Reads what the kernel told, and hands over the requests of which all is known.
    fn join(&mut self) {
        if let Some(waits) = &mut self.waits {
            waits.look();
        }
        while let Some(bytes) = self.told_writes.next() {
            let write = Write::from_bytes(&bytes);
            // Of a connection that is forgotten nobody would ever fetch them.
            let write = write.filter(|write| self.fold.knows(write.connection));
            if write.is_some_and(|write| !self.writes.heard(write)) {
                self.metrics.writes_dropped.inc();
            }
        }
        let kept = &mut self.writes;
        let (shared, log, waits, crowd) = (&self.shared, &self.log, &self.waits, &self.crowd);
        let mut done = |ended: Ended, span: Span, mut timeline: Option<Timeline>| {
            if let (Some(waits), Some(timeline)) = (waits, &mut timeline) {
                timeline.gpu = timeline.last_write.and_then(|end| waits.of(crowd, span.sent, end));
            }
            let writes = kept.take(&span, ended.trace.is_some());
            deliver(ended, span, timeline, writes, log);
        };
        while let Some(bytes) = self.bursts.next() {
            if let Some(burst) = Burst::from_bytes(&bytes) {
                self.fold.heard(burst, &mut done);
            }
        }
        self.fold.round(|key| shared.look_up(key), done);
    }
}

fn deliver(
    ended: Ended,
    span: Span,
    timeline: Option<Timeline>,
    writes: Vec<Write>,
    log: &AccessLog,
) {
    let metrics = &ended.app.metrics;
    metrics.timeline(match timeline {
        _ if !span.complete => TimelineResult::BrokenOff,
        Some(timeline) if timeline.is_complete() => TimelineResult::Complete,
        Some(_) => TimelineResult::Partial,
        None => TimelineResult::Missing,
    });
    if let Some(timeline) = &timeline {
        let steps = [
            (timeline.wire(), &metrics.wire),
            (timeline.socket_wait(), &metrics.socket_wait),
            (timeline.first_byte(), &metrics.first_byte),
            (timeline.answer(), &metrics.answer),
        ];
        for (took, histogram) in steps {
            if let Some(took) = took {
                histogram.observe_alone(took);
            }
        }
    }
    if let Some(timeline) = &timeline
        && let (Some(picked), Some(wait)) = (timeline.picked, timeline.socket_wait())
    {
        ended.app.waited(picked, wait);
    }
    if let Some(gpu) = timeline.and_then(|timeline| timeline.gpu) {
        metrics.gpu_wait(&gpu);
    }
    if let Some(line) = &ended.line {
        log.write(&line.with(timeline));
    }
    if let Some(trace) = ended.trace {
        trace.send(timeline, writes);
    }
}
