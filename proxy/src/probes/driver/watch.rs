//! Looks at what the programs have left in their maps, and gives it to metrics, log and whoever asks.
//!
//! The kernel wakes nobody. Single calls are fetched often enough that their ring does not fill; calls under way are looked
//! at four times a second, counts once, and which devices there are every ten seconds.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_config::validated as config;
use outrigger_probes::{Call, DriverLoss, Flight, Histogram, What};

use super::{
    Loaded,
    devices::Devices,
    recent::Recent,
    series::{Series, labels},
    stuck::{News, Standing, Stuck},
    xid,
};
use crate::{probes::kernel::monotonic, telemetry::metrics::DriverMetrics};

/// Between two looks at calls under way.
const LOOK: Duration = Duration::from_millis(250);

/// Between two looks into a ring that fills fast.
const ROUND: Duration = Duration::from_millis(20);

/// So many calls within one [`LOOK`] are fast: an eighth of the ring.
const FAST: usize = 3_000;

/// Between two readings of what was counted.
const COUNT: Duration = Duration::from_secs(1);

/// Between two looks for devices.
const SEARCH: Duration = Duration::from_secs(10);

/// Entries that are read of a map that changes meanwhile: twice what it can hold.
const ENTRIES_MOST: usize = 8192;

/// The user's end of the programs.
pub(super) struct Watcher {
    loaded: Loaded,
    devices: Devices,
    /// What the kernel was told to look for.
    places: BTreeMap<(u64, u64), u64>,
    recent: Recent,
    stuck: Stuck,
    standing: Standing,
    series: Series,
    /// The kernel's log, as long as it can be read.
    log: Option<File>,
    metrics: Arc<DriverMetrics>,
    looked: Option<Instant>,
    counted: Option<Instant>,
    searched: Instant,
}

impl Watcher {
    pub(super) fn new(
        loaded: Loaded,
        settings: &config::Driver,
        metrics: Arc<DriverMetrics>,
    ) -> Self {
        let log = xid::open().inspect_err(|error| {
            tracing::info!("Xid errors of NVIDIA's driver are not seen, for the kernel's log cannot be read: {error}");
        });
        let mut watcher = Watcher {
            loaded,
            devices: Devices::new(&settings.devices),
            places: BTreeMap::new(),
            recent: Recent::default(),
            stuck: Stuck::new(settings.stuck_after),
            standing: Standing::default(),
            series: Series::default(),
            log: log.ok(),
            metrics,
            looked: None,
            counted: None,
            searched: Instant::now(),
        };
        watcher.search();
        watcher
    }

    /// Which devices are there, in words.
    pub(super) fn found(&self) -> String {
        self.devices.found()
    }

    pub(super) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// For how long the oldest call has been under way, if that is so long that it is stuck.
    pub(super) fn stuck(&self) -> Option<Duration> {
        (self.standing.stuck > 0).then_some(self.standing.oldest)
    }

    pub(super) fn describe(&self, what: u64) -> [String; 2] {
        labels(&self.devices, what)
    }

    /// Does what is due, and says for how long nothing will be.
    pub(super) fn pass(&mut self) -> Duration {
        let now = Instant::now();
        let is_due = |last: Option<Instant>, pause| last.is_none_or(|last| now - last >= pause);
        if is_due(Some(self.searched), SEARCH) {
            self.searched = now;
            self.search();
        }
        // Before the ring: what is not under way any more is in it.
        let flights = is_due(self.looked, LOOK).then(|| self.flights());
        let fetched = self.drain();
        if let Some(flights) = flights {
            self.looked = Some(now);
            self.look(&flights);
        }
        if is_due(self.counted, COUNT) {
            self.counted = Some(now);
            self.count();
            self.listen();
            self.loaded.programs.write_down();
        }
        if fetched > FAST { ROUND } else { LOOK }
    }

    /// Fetches the calls that were waited for, and says how many.
    pub(super) fn drain(&mut self) -> usize {
        let mut fetched = 0;
        while let Some(bytes) = self.loaded.calls.next() {
            if let Some(call) = Call::from_bytes(&bytes) {
                self.recent.add(call);
            }
            fetched += 1;
        }
        self.recent.forget(monotonic());
        fetched
    }

    /// Tells the kernel what to look for.
    fn search(&mut self) {
        let places = self.devices.look();
        for (&(device, inode), name) in &places {
            if self.places.get(&(device, inode)) == Some(name) {
                continue;
            }
            if let Err(error) = self.loaded.devices.insert([device, inode], name, 0) {
                tracing::warn!("a GPU device cannot be watched: {error}");
            }
        }
        for &(device, inode) in self.places.keys().filter(|place| !places.contains_key(place)) {
            // It is gone, whatever the kernel says to it.
            let _ = self.loaded.devices.remove(&[device, inode]);
        }
        if !self.places.is_empty() && self.places != places {
            tracing::info!("GPU devices that are watched: {}", self.devices.found());
        }
        self.places = places;
    }

    fn flights(&self) -> BTreeMap<u64, Flight> {
        let all = self.loaded.flights.iter().take(ENTRIES_MOST).filter_map(Result::ok);
        all.map(|(task, words)| (task, Flight::from_words(words))).collect()
    }

    fn look(&mut self, flights: &BTreeMap<u64, Flight>) {
        let devices = &self.devices;
        let waits = |what: u64| {
            let What { device, command } = What::from_word(what);
            devices.name(device).1.waits(command)
        };
        let now = monotonic();
        let (standing, news) = self.stuck.look(now, flights, waits);
        self.standing = standing;
        for news in news {
            self.tell(news, now);
        }
        let Standing { in_flight, oldest, stuck } = standing;
        self.metrics.standing(in_flight, oldest, stuck);
    }

    fn tell(&self, news: News, now: u64) {
        let ((task, start), what) = match news {
            News::Stuck(caller, what, _) | News::Returned(caller, what) => (caller, what),
        };
        let [device, command] = self.describe(what);
        let (pid, tid) = (task >> 32, task & 0xffff_ffff);
        match news {
            News::Stuck(_, _, age) => {
                let seconds = age.as_secs_f64();
                tracing::warn!(
                    pid,
                    tid,
                    device,
                    command,
                    seconds,
                    "a call into the GPU driver does not return"
                );
            }
            News::Returned(..) => {
                // One that the ring had no room for returned between two looks.
                let end = self.recent.find(task, start).map_or(now, |call| call.end);
                let seconds = Duration::from_nanos(end.saturating_sub(start)).as_secs_f64();
                tracing::warn!(
                    pid,
                    tid,
                    device,
                    command,
                    seconds,
                    "a call into the GPU driver that was stuck has returned"
                );
            }
        }
    }

    /// Tells what the driver has reported in the kernel's log.
    fn listen(&mut self) {
        let Some(log) = &mut self.log else { return };
        let Ok(found) = xid::read(log) else {
            self.log = None;
            return;
        };
        for xid::Xid { number, gpu, text } in found {
            tracing::warn!(xid = number, gpu, "the GPU's driver reports an error: {text}");
            self.metrics.xid(number);
        }
    }

    fn count(&mut self) {
        let all = self.loaded.counts.iter().take(ENTRIES_MOST).filter_map(Result::ok);
        // Of a map that changes meanwhile an entry may come twice.
        let counts: BTreeMap<u64, Histogram> = all
            .map(|(what, processors)| {
                let mut sum = Histogram::default();
                processors.iter().for_each(|words| sum.merge(&Histogram::from_words(words)));
                (what, sum)
            })
            .collect();
        self.metrics.calls(self.series.fold(&self.devices, counts));
        let lost = DriverLoss::ALL.map(|what| {
            let counts = self.loaded.lost.get(&(what as u32), 0);
            counts.map_or(0, |counts| counts.iter().sum())
        });
        self.metrics.lost(lost);
    }
}
