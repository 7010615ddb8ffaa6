//! Jobs of the DRM scheduler: its tracepoints, which a module of the kernel brings, the programs on them, and what those have
//! counted.
//!
//! Decides by which names the tracepoints go here, and where in their records the fields lie: by what tracefs says, never by
//! a version. Where one of them or a field is missing no job is timed at all.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues};
use outrigger_probes::{Histogram, Job, JobFact, JobKey, Ring, TaskFact};

use crate::{
    probes::kernel::{Format, Hook, Kernel, Obstacle, Programs, Way, format_of, monotonic},
    telemetry::metrics::OTHER,
};

/// The programs, as `cargo xtask ebpf` built them; empty in a build without.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/jobs.o"));

/// The group of the scheduler's tracepoints.
const GROUP: &str = "gpu_scheduler";

/// How jobs are seen. In each way the end comes first, so that of a job whose beginning is seen the end is to be seen, too.
type Ways = [&'static [Way]; 2];

/// By the names that the tracepoints have from Linux 6.17 on, and by those before.
const WAYS: Ways = [
    &[Way {
        told: "by the DRM scheduler's tracepoints",
        programs: &[
            ("done", Hook::Listed(GROUP, "drm_sched_job_done")),
            ("runs", Hook::Listed(GROUP, "drm_sched_job_run")),
            ("queued", Hook::Listed(GROUP, "drm_sched_job_queue")),
        ],
    }],
    &[Way {
        told: "by the DRM scheduler's tracepoints, as they were called before Linux 6.17",
        programs: &[
            ("done", Hook::Listed(GROUP, "drm_sched_process_job")),
            ("runs", Hook::Listed(GROUP, "drm_run_job")),
            ("queued", Hook::Listed(GROUP, "drm_sched_job")),
        ],
    }],
];

/// Jobs that are read of a map that changes meanwhile: twice what it can hold.
const JOBS_MOST: usize = 8192;

/// Rings that are read, likewise.
const RINGS_MOST: usize = 66;

/// After so long nothing more is expected of a job, in nanoseconds: ten minutes.
const PATIENCE: u64 = 600_000_000_000;

/// For how long jobs were queued, and ran, of one ring.
pub(super) type Times = [Histogram; 2];

type Counts = PerCpuHashMap<MapData, [u64; 4], [u64; Histogram::WORDS]>;

/// The programs in the kernel, and the maps that they share with us.
pub(super) struct Jobs {
    pub(super) told: &'static str,
    /// Holds the programs.
    programs: Programs,
    jobs: HashMap<MapData, [u64; JobKey::WORDS], [u64; Job::WORDS]>,
    /// In the order of [`Times`].
    counts: [Counts; 2],
    lost: PerCpuArray<MapData, u64>,
    /// Jobs of which nothing more was expected.
    forgotten: u64,
}

/// Loads the programs and lets them run.
///
/// # Errors
/// What stands in the way.
pub(super) fn load(kernel: &Kernel) -> Result<Jobs, Obstacle> {
    let (ways, facts) = found(kernel.task()?, |name| format_of(GROUP, name))?;
    let (mut programs, way) = Programs::hung(OBJECT, &facts, kernel, ways)?;
    let mut counts = |name| -> Result<Counts, Obstacle> {
        let mut counts: Counts = programs.map(name, PerCpuHashMap::try_from)?;
        counts.insert(Ring::OTHER.0, nothing()?, 0).map_err(refused)?;
        Ok(counts)
    };
    Ok(Jobs {
        told: way.told,
        counts: [counts("QUEUED")?, counts("RUN")?],
        jobs: programs.map("JOBS", HashMap::try_from)?,
        lost: programs.map("LOST", PerCpuArray::try_from)?,
        programs,
        forgotten: 0,
    })
}

/// Whether the kernel has the scheduler's tracepoints, by any names.
pub(super) fn are_there() -> bool {
    WAYS.into_iter().any(|ways| {
        matches!(formats(ways, |name| format_of(GROUP, name)), Ok(Ok(found)) if !found.is_empty())
    })
}

/// What a ring has before anything is counted.
fn nothing() -> Result<PerCpuValues<[u64; Histogram::WORDS]>, Obstacle> {
    let processors = aya::util::nr_cpus().map_err(|(_, error)| refused(error))?;
    PerCpuValues::try_from(vec![[0; Histogram::WORDS]; processors]).map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> Obstacle {
    Obstacle::Refused { why: error.to_string() }
}

/// By which names the tracepoints go, and what their programs have to be told.
///
/// # Errors
/// There are none by any names, or they lack a field.
fn found(
    task: [u32; TaskFact::COUNT],
    format: impl Fn(&str) -> Result<Option<Format>, Obstacle>,
) -> Result<(&'static [Way], [u32; JobFact::COUNT]), Obstacle> {
    let mut missing = Vec::new();
    for ways in WAYS {
        match formats(ways, &format)? {
            Ok(formats) => return Ok((ways, facts(task, &formats)?)),
            Err(hook) => missing.push(hook),
        }
    }
    Err(Obstacle::NoHook(missing))
}

/// A tracepoint by its name, and its records.
type Named = (&'static str, Format);

/// The records of the tracepoints of a way in the order of its programs, or the first that there is not.
fn formats(
    ways: &'static [Way],
    format: impl Fn(&str) -> Result<Option<Format>, Obstacle>,
) -> Result<Result<Vec<Named>, Hook>, Obstacle> {
    let mut formats = Vec::new();
    for (_, hook) in ways.iter().flat_map(|way| way.programs) {
        let Hook::Listed(_, name) = *hook else { continue };
        match format(name)? {
            Some(format) => formats.push((name, format)),
            None => return Ok(Err(*hook)),
        }
    }
    Ok(Ok(formats))
}

/// Where the fields lie, behind the facts of tasks. A fence goes by its context and number where all records have them, else
/// by its address.
fn facts(
    task: [u32; TaskFact::COUNT],
    formats: &[Named],
) -> Result<[u32; JobFact::COUNT], Obstacle> {
    let [done, runs, queued] = formats else { return Err(Obstacle::NoHook(Vec::new())) };
    let by_number = formats.iter().all(|(_, format)| format.offset(CONTEXT, 8).is_some());
    let mut facts = [0; JobFact::COUNT];
    facts[..TaskFact::COUNT].copy_from_slice(&task);
    let fences = [
        (queued, JobFact::QueuedFence, JobFact::QueuedSequence),
        (runs, JobFact::RunFence, JobFact::RunSequence),
        (done, JobFact::DoneFence, JobFact::DoneSequence),
    ];
    for (named, fence, sequence) in fences {
        if by_number {
            facts[fence as usize] = field(named, CONTEXT, 8)?;
            facts[sequence as usize] = field(named, "fence_seqno", 8)?;
        } else {
            facts[fence as usize] = field(named, "fence", 8)?;
        }
    }
    facts[JobFact::QueuedRing as usize] = field(queued, "name", 4)?;
    Ok(facts)
}

/// The context of a fence, in the records that have it.
const CONTEXT: &str = "fence_context";

fn field((tracepoint, format): &Named, name: &str, size: u32) -> Result<u32, Obstacle> {
    let missing = || Obstacle::NoField { field: format!("{tracepoint}.{name}") };
    format.offset(name, size).ok_or_else(missing)
}

impl Jobs {
    /// How long jobs were queued and ran since it runs, by the name of the ring.
    pub(super) fn times(&self) -> BTreeMap<String, Times> {
        let mut times = BTreeMap::<String, Times>::new();
        for (at, counts) in self.counts.iter().enumerate() {
            // Of a map that changes meanwhile an entry may come twice.
            let rings: BTreeMap<_, _> =
                counts.iter().take(RINGS_MOST).filter_map(Result::ok).collect();
            for (ring, processors) in rings {
                let own = &mut times.entry(label(Ring(ring))).or_default()[at];
                processors.iter().for_each(|words| own.merge(&Histogram::from_words(words)));
            }
        }
        times.retain(|_, [queued, run]| queued.count > 0 || run.count > 0);
        times
    }

    /// Jobs that are not timed: too many were under way, or nothing more was heard of them.
    pub(super) fn lost(&self) -> u64 {
        let unseen: u64 = self.lost.get(&0, 0).map_or(0, |counts| counts.iter().sum());
        unseen + self.forgotten
    }

    /// Forgets jobs that were handed in long ago: of those that the kernel gave up it says nothing.
    pub(super) fn forget(&mut self) {
        let now = monotonic();
        let all = self.jobs.iter().take(JOBS_MOST).filter_map(Result::ok);
        let old: Vec<_> = all
            .filter(|(_, words)| is_old(&Job::from_words(*words), now))
            .map(|(key, _)| key)
            .collect();
        for key in old {
            // The kernel may have been faster.
            self.forgotten += u64::from(self.jobs.remove(&key).is_ok());
        }
    }

    /// Writes down what the programs have said since.
    pub(super) fn write_down(&mut self) {
        self.programs.write_down();
    }
}

fn is_old(job: &Job, now: u64) -> bool {
    now.saturating_sub(job.queued) > PATIENCE
}

/// What a ring is called in metrics.
fn label(ring: Ring) -> String {
    let bytes: Vec<u8> = ring.bytes().collect();
    if bytes.is_empty() {
        return OTHER.to_owned();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: [u32; TaskFact::COUNT] = [11, 12, 13, 14, 15];

    /// Names, offsets and sizes.
    type Fields = &'static [(&'static str, u32, u32)];

    /// Fields with their offsets and sizes, as tracefs would list them.
    fn format(fields: Fields) -> Format {
        let line = |(name, offset, size): &(&str, u32, u32)| {
            format!("\tfield:u64 {name};\toffset:{offset};\tsize:{size};\tsigned:0;\n")
        };
        Format::parse(&fields.iter().map(line).collect::<String>())
    }

    const OLD: Fields = &[("entity", 8, 8), ("fence", 16, 8), ("name", 24, 4), ("id", 32, 8)];
    const NEW: Fields = &[
        ("name", 8, 4),
        ("dev", 20, 4),
        ("fence_context", 24, 8),
        ("fence_seqno", 32, 8),
        ("client_id", 40, 8),
    ];

    fn found_in(
        tracepoints: &[(&str, Fields)],
    ) -> Result<(&'static [Way], [u32; JobFact::COUNT]), Obstacle> {
        found(TASK, |name| {
            let found = tracepoints.iter().find(|(other, _)| *other == name);
            Ok(found.map(|(_, fields)| format(fields)))
        })
    }

    fn behind_the_task(facts: [u32; JobFact::COUNT]) -> Vec<u32> {
        assert_eq!(facts[..TASK.len()], TASK);
        facts[TASK.len()..].to_vec()
    }

    #[test]
    fn fences_of_older_kernels_go_by_their_address() {
        let done: Fields = &[("fence", 8, 8)];
        let (ways, facts) = found_in(&[
            ("drm_sched_job", OLD),
            ("drm_run_job", OLD),
            ("drm_sched_process_job", done),
        ])
        .expect("all are there");
        assert!(ways[0].told.contains("before Linux 6.17"), "{ways:?}");
        assert_eq!(behind_the_task(facts), [16, 0, 24, 16, 0, 8, 0]);
    }

    #[test]
    fn fences_of_newer_kernels_go_by_context_and_number() {
        let done: Fields = &[("fence_context", 8, 8), ("fence_seqno", 16, 8)];
        let (ways, facts) = found_in(&[
            ("drm_sched_job_queue", NEW),
            ("drm_sched_job_run", NEW),
            ("drm_sched_job_done", done),
        ])
        .expect("all are there");
        assert!(!ways[0].told.contains("before"), "{ways:?}");
        assert_eq!(behind_the_task(facts), [24, 32, 8, 24, 32, 8, 16]);
    }

    #[test]
    fn between_the_two_old_names_may_have_new_fields() {
        let done: Fields = &[("fence_context", 8, 8), ("fence_seqno", 16, 8)];
        let all = [("drm_sched_job", NEW), ("drm_run_job", NEW), ("drm_sched_process_job", done)];
        let (_, facts) = found_in(&all).expect("all are there");
        assert_eq!(behind_the_task(facts), [24, 32, 8, 24, 32, 8, 16]);
        let mixed: Fields = &[("fence", 8, 8)];
        let all = [("drm_sched_job", NEW), ("drm_run_job", NEW), ("drm_sched_process_job", mixed)];
        let obstacle = found_in(&all).expect_err("no number that all records have");
        assert_eq!(obstacle, Obstacle::NoField { field: "drm_sched_job.fence".to_owned() });
    }

    #[test]
    fn what_is_missing_is_named() {
        let hooks = ["drm_sched_job_done", "drm_sched_process_job"];
        let missing = Obstacle::NoHook(hooks.map(|name| Hook::Listed(GROUP, name)).to_vec());
        assert_eq!(found_in(&[]).expect_err("nothing is there"), missing);
        let short: Fields = &[("fence", 16, 8), ("name", 24, 8)];
        let all = [("drm_sched_job", short), ("drm_run_job", OLD), ("drm_sched_process_job", OLD)];
        let obstacle = found_in(&all).expect_err("a name is somewhere else in the record");
        assert_eq!(obstacle, Obstacle::NoField { field: "drm_sched_job.name".to_owned() });
        let unreadable = Obstacle::NoTracefs(std::io::ErrorKind::PermissionDenied);
        let told = found(TASK, |_| Err(unreadable.clone())).expect_err("nothing can be read");
        assert_eq!(told, unreadable);
    }

    #[test]
    fn a_ring_without_a_name_is_among_the_others() {
        assert_eq!(label(Ring::OTHER), OTHER);
        let mut ring = Ring::OTHER;
        ring.0[0] = u64::from_ne_bytes(*b"gfx_0.0\0");
        assert_eq!(label(ring), "gfx_0.0");
        ring.0[0] = u64::from_ne_bytes(*b"a\xff\0bcdef");
        assert_eq!(label(ring), "a\u{fffd}");
    }

    #[test]
    fn a_job_is_old_after_ten_minutes() {
        let job = Job::new(1000, Ring::OTHER);
        assert!(!is_old(&job, 1000 + PATIENCE));
        assert!(is_old(&job, 1001 + PATIENCE));
        assert!(!is_old(&job, 0), "handed in after the look at the clock");
    }
}
