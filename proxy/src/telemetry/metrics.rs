//! Every metric of the proxy, declared once.
//!
//! Why: names, help and labels are an interface that dashboards are built on, so they stand
//! together in one table; and the hot path must not look anything up, so whoever handles requests
//! holds a handle ([`ArmMetrics`], [`EndpointMetrics`], …) whose fields are plain atomics.
//!
//! What it decides: a series exists as long as its handle is in the map here, and is written out by
//! walking the maps at a scrape. Forgetting an endpoint therefore removes all its series at once,
//! and a request that still holds the old handle can do no harm. Each map holds at most
//! [`MAX_HANDLES`] label sets; whatever comes after shares one handle whose labels all say `other`.
//!
//! What it leaves out: the text formats (`exposition`) and metrics of other modules, which can add
//! collectors to [`Metrics::registry`].

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_config::validated::{RateKey, RetryReason};
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::instruments::{Bounds, Counter, Gauge, Histogram, Level, LocalHistogram};
use crate::outcome::Outcome;
use crate::outlier::Reason as EjectionReason;

/// Label sets per map before `other` takes over.
pub const MAX_HANDLES: usize = 1000;

/// The label value that stands for everything beyond [`MAX_HANDLES`].
pub const OTHER: &str = "other";

/// The label value for "none": the arm of a request that matched no route, say.
pub const NONE: &str = "-";

/// From a redirect to a long generation: 1 ms to 10 minutes.
const DURATION: Bounds = Bounds::micros(&[
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
]);

/// From a cached answer to a long prompt in a queue: 0.5 ms to 2 minutes.
const FIRST_BYTE: Bounds = Bounds::micros(&[
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    200_000,
    350_000,
    500_000,
    750_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
]);

/// From a moment to as long as an answer may be kept: 1 s to a week.
const AGE: Bounds = Bounds::micros(&[
    1_000_000,
    10_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    3_600_000_000,
    14_400_000_000,
    43_200_000_000,
    86_400_000_000,
    259_200_000_000,
    604_800_000_000,
]);

/// Dense where people read along (10 to 150 ms a token): 0.1 ms to one minute.
const CHUNK_GAP: Bounds = Bounds::micros(&[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 15_000, 20_000, 30_000, 40_000, 60_000, 80_000,
    100_000, 150_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
    60_000_000,
]);

/// What the kernel sees: from a read at once to a loop that is blocked. 10 µs to one minute.
const APP: Bounds = Bounds::micros(&[
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
]);

/// One line of the table below.
struct Declaration {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
}

/// Declares `Id`, one variant per metric, and `TABLE`, in the same order.
macro_rules! declare {
    ($($id:ident $kind:ident $name:literal [$($label:literal)*] $help:literal;)+) => {
        #[derive(Clone, Copy)]
        enum Id { $($id),+ }

        const TABLE: &[Declaration] = &[$(Declaration {
            name: concat!("outrigger_", $name),
            help: $help,
            kind: MetricType::$kind,
            labels: &[$($label),*],
        }),+];
    };
}

declare! {
    BuildInfo GAUGE "build_info" ["version"]
        "Always 1; the label says which version runs.";
    Requests COUNTER "requests_total" ["route" "arm" "outcome" "code"]
        "Requests that ended, by how they ended and the status the client got.";
    RequestDuration HISTOGRAM "request_duration_seconds" ["route" "arm"]
        "Time from the request head to the last byte of the answer.";
    FirstByte HISTOGRAM "first_byte_seconds" ["route" "arm"]
        "Time from the request head to the first byte of the answer.";
    ChunkGap HISTOGRAM "chunk_gap_seconds" ["route" "arm"]
        "Time between two events of a streamed answer.";
    DeadlineSeconds HISTOGRAM "deadline_seconds" ["route" "arm" "deadline"]
        "Deadlines that were set, where they are learned.";
    Deadlines COUNTER "deadlines_total" ["route" "arm" "deadline" "basis"]
        "Deadlines that were set, where they are learned, by what they rest on.";
    Explored COUNTER "deadlines_explored_total" ["route" "arm" "deadline" "result"]
        "Requests that had the ceiling for a deadline, by whether they were in time for what was learned.";
    LoadLevel GAUGE "load_level" ["route"]
        "The load level in force, counted from 1; 0 below the first.";
    ClientBudgets COUNTER "client_budgets_total" ["route" "result"]
        "Requests whose client said how long it waits.";
    InFlight GAUGE "requests_in_flight" ["route"]
        "Requests that have begun and not ended.";
    AwaitingFirstByte GAUGE "requests_awaiting_first_byte" ["route"]
        "Requests sent to an endpoint that has not begun to answer.";
    Tokens COUNTER "tokens_total" ["route" "arm" "direction"]
        "Tokens as told by the model server, else counted events; in = prompt, out = answer.";
    RequestBytes COUNTER "request_bytes_total" ["route" "arm"]
        "Bytes of request bodies.";
    ResponseBytes COUNTER "response_bytes_total" ["route" "arm"]
        "Bytes of response bodies.";
    Retries COUNTER "retries_total" ["route" "reason"]
        "Attempts after the first one, by what had ended the one before.";
    RetriesDenied COUNTER "retries_denied_total" ["route" "reason"]
        "Attempts that the policy allowed but something forbade.";
    AdmissionLimit GAUGE "admission_limit" ["scope" "name"]
        "Requests that may be in flight at once now, of a route or a backend; 0 = no limit.";
    AdmissionInFlight GAUGE "admission_in_flight" ["scope" "name"]
        "Requests that were let in and have not ended.";
    AdmissionWaiting GAUGE "admission_waiting" ["scope" "name"]
        "Requests that wait for a place.";
    AdmissionWait HISTOGRAM "admission_wait_seconds" ["scope" "name"]
        "Time that requests waited which had to, whatever came of it.";
    AdmissionRejected COUNTER "admission_rejected_total" ["scope" "name" "reason"]
        "Requests that were turned away because there was no place.";
    RateDecisions COUNTER "rate_limit_decisions_total" ["route" "per" "result"]
        "Requests of routes with rates, by what each rule said.";
    Hedges COUNTER "hedges_total" ["route" "result"]
        "Second attempts at another endpoint while the first had not begun to answer, by what became of them.";
    HedgesDenied COUNTER "hedges_denied_total" ["route" "reason"]
        "Hedges that were due but something forbade.";
    CompressedIn COUNTER "compression_input_bytes_total" ["route"]
        "Bytes of response bodies before they were compressed here.";
    CompressedOut COUNTER "compression_output_bytes_total" ["route"]
        "Bytes of the same bodies after.";
    EndpointRequests COUNTER "endpoint_requests_total" ["backend" "endpoint" "outcome"]
        "Attempts that ended at an endpoint, by how they ended.";
    EndpointInFlight GAUGE "endpoint_in_flight" ["backend" "endpoint"]
        "Attempts at an endpoint until the last byte of the answer.";
    EndpointFirstByte HISTOGRAM "endpoint_first_byte_seconds" ["backend" "endpoint"]
        "Time from sending an attempt to the first byte of its answer.";
    EndpointReady GAUGE "endpoint_ready" ["backend" "endpoint"]
        "1 when an endpoint passes its health checks, else 0.";
    EndpointEjected GAUGE "endpoint_ejected" ["backend" "endpoint"]
        "1 while an endpoint is ejected for failing real requests, else 0.";
    EndpointEjections COUNTER "endpoint_ejections_total" ["backend" "endpoint" "reason"]
        "How often an endpoint was ejected.";
    EndpointRacesLost COUNTER "endpoint_races_lost_total" ["backend" "endpoint"]
        "Attempts given up because another one of the same request began first; in no other count of the endpoint.";
    HealthChecks COUNTER "health_checks_total" ["backend" "endpoint" "result"]
        "Health checks made.";
    EndpointReported GAUGE "endpoint_reported_load" ["backend" "endpoint" "signal"]
        "What an endpoint last said of itself: requests waiting and running, share of the cache in use.";
    WarmUps COUNTER "warm_ups_total" ["backend" "endpoint" "result"]
        "Warm-ups run to their end, or given up.";
    Scrapes COUNTER "load_scrapes_total" ["backend" "endpoint" "result"]
        "Times that an engine's metrics were read for its load.";
    AgentChecks COUNTER "agent_checks_total" ["backend" "endpoint" "result"]
        "Times that an endpoint's agent was asked.";
    Sent COUNTER "attempts_total" ["backend" "nearness"]
        "Attempts by where they went: to the own pod, near, or to another zone.";
    Mirrored COUNTER "mirrored_requests_total" ["route" "mirror" "result"]
        "Copies of requests, by whether the status was that of the original.";
    MirrorFirstByte HISTOGRAM "mirror_first_byte_seconds" ["route" "mirror" "answer"]
        "Time to the first byte of answers that were compared, of the copy and of its original.";
    Batches COUNTER "batches_total" ["route"]
        "Calls that served several requests at once.";
    BatchedRequests COUNTER "batched_requests_total" ["route" "result"]
        "Requests of routes with micro-batching, by how they travelled.";
    AnswersServed COUNTER "answers_served_total" ["route" "kind" "reason"]
        "Requests answered from store; fallback = where there would have been an error.";
    AnswersMissed COUNTER "answers_missed_total" ["route" "reason"]
        "Requests for which the store had no answer, or might not be asked.";
    AnswerAge HISTOGRAM "answer_age_seconds" ["route"]
        "Age of the answers that were served from store.";
    AnswersRecorded COUNTER "answers_recorded_total" ["route" "result"]
        "Answers of endpoints that might have been stored, by what became of them.";
    AnswersShared COUNTER "answers_shared_total" ["route" "result"]
        "Requests that found the same one under way.";
    AnswersRefreshed COUNTER "answers_refreshed_total" ["route" "result"]
        "Stale answers that were served while a new one should be fetched.";
    AnswersBytes GAUGE "answers_bytes" []
        "Bytes of the answers stored in memory.";
    AnswersEntries GAUGE "answers_entries" []
        "Answers stored in memory.";
    AnswersEvicted COUNTER "answers_evicted_total" ["reason"]
        "Answers that left memory, or did not get in.";
    AnswersDistrusted COUNTER "answers_distrusted_total" ["reason"]
        "Stored answers that were not believed.";
    AnswersWarmUp COUNTER "answers_warm_up_requests_total" ["result"]
        "Requests of the file of the warm-up.";
    CanaryRolledBack GAUGE "canary_rolled_back" ["route" "arm"]
        "1 when the guard has taken the arm out, else 0.";
    CanaryWeight GAUGE "canary_weight_percent" ["route" "arm"]
        "Share of the traffic that the guarded arm gets now.";
    CanaryVerdicts COUNTER "canary_verdicts_total" ["route" "arm" "verdict"]
        "What the guard decided.";
    Connections COUNTER "connections_total" ["listener"]
        "Client connections accepted.";
    ConnectionsOpen GAUGE "connections_open" ["listener"]
        "Client connections open now.";
    ConnectionsRefused COUNTER "connections_refused_total" ["listener"]
        "Client connections closed at once because there were too many.";
    UpstreamConnections COUNTER "upstream_connections_total" ["backend" "result"]
        "How attempts came by a connection.";
    CircuitOpen GAUGE "backend_circuit_open" ["backend"]
        "1 while the breaker of a backend is open or half open, else 0.";
    CircuitChanges COUNTER "backend_circuit_changes_total" ["backend" "to"]
        "How often the breaker of a backend opened, let a probe through, and closed.";
    Discovery COUNTER "discovery_resolutions_total" ["backend" "result"]
        "Look-ups of endpoint names.";
    ConfigReloads COUNTER "config_reloads_total" ["result"]
        "Attempts to load a changed configuration.";
    ConfigSuccess GAUGE "config_last_reload_success" []
        "1 if the last attempt to load the configuration succeeded, else 0.";
    ConfigTimestamp GAUGE "config_last_reload_timestamp_seconds" []
        "When the configuration was last loaded, or tried to be, in Unix time.";
    Draining GAUGE "draining" []
        "1 while the proxy is about to stop, else 0.";
    ProbeRunning GAUGE "probe_running" ["probe"]
        "1 while a probe runs, else 0; `outrigger doctor` says why.";
    ProbeLost COUNTER "probe_lost_total" ["what"]
        "What a probe had no room for: bursts in the kernel, connections to follow, requests to join.";
    AppSocketWait HISTOGRAM "app_socket_wait_seconds" ["backend" "endpoint"]
        "Time that requests lay in the application's socket before it read them, as the kernel saw it.";
    AppFirstByte HISTOGRAM "app_first_byte_seconds" ["backend" "endpoint"]
        "Time from the application's first read of a request to its first write, as the kernel saw it.";
    AppAnswer HISTOGRAM "app_answer_seconds" ["backend" "endpoint"]
        "Time from the application's first write of an answer to its last, as the kernel saw it.";
    AppTimelines COUNTER "app_timelines_total" ["backend" "endpoint" "result"]
        "Requests that an endpoint had, by how much of them the kernel saw.";
    AccessLogDropped COUNTER "access_log_dropped_total" []
        "Access-log lines lost because they could not be written fast enough, or at all.";
}

/// Declares a closed list of label values.
macro_rules! label_values {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident $value:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The label value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }
        }
    };
}

label_values! {
    /// Why an attempt that the retry policy allows was not made.
    RetryDenied {
        /// The retry budget was spent.
        Budget "budget",
        /// All attempts were used.
        Attempts "attempts",
        /// The request body was longer than the buffer.
        Buffer "buffer",
        /// The breaker of the backend is open.
        CircuitOpen "circuit_open",
        /// No endpoint was left to try.
        NoEndpoint "no_endpoint",
    }
}

label_values! {
    /// What a limit or a queue stands in front of.
    Scope {
        /// A route.
        Route "route",
        /// A backend.
        Backend "backend",
    }
}

label_values! {
    /// Why a request was turned away because there was no place.
    Rejection {
        /// There is no queue to wait in.
        Overloaded "overloaded",
        /// As many waited as may.
        QueueFull "queue_full",
        /// It waited for as long as it may.
        QueueTimeout "queue_timeout",
        /// It would not have made it, stood in a queue that does not get shorter, or was pushed out.
        Shed "shed",
    }
}

label_values! {
    /// What a rule about rates said.
    RateDecision {
        /// It may.
        Allowed "allowed",
        /// There were too many requests.
        Requests "requests",
        /// They had too many tokens.
        Tokens "tokens",
    }
}

label_values! {
    /// What became of a hedge.
    HedgeResult {
        /// It began first and was passed on.
        Won "won",
        /// Another attempt of the request began first, and this one was given up.
        Lost "lost",
        /// It failed, or said that another endpoint should do it.
        Failed "failed",
        /// The request ended without it: its client left, or it took too long as a whole.
        GivenUp "given_up",
    }
}

label_values! {
    /// What a deadline is for.
    DeadlineKind {
        /// To connect.
        Connect "connect",
        /// To the first byte.
        FirstByte "first_byte",
        /// Between two pieces.
        Gap "gap",
    }
}

label_values! {
    /// Why a hedge that was due was not made.
    HedgeDenied {
        /// The share of the requests that may be hedged was spent.
        Share "share",
        /// The retry budget was spent.
        Budget "budget",
        /// All attempts were used.
        Attempts "attempts",
        /// The request body was longer than the buffer.
        Buffer "buffer",
        /// Every endpoint that serves had been tried.
        NoEndpoint "no_endpoint",
    }
}

label_values! {
    /// What a deadline rests on.
    DeadlineBasis {
        /// It was learned.
        Learned "learned",
        /// Too little is known: it is the ceiling.
        Unknown "unknown",
        /// It is the ceiling, to see what lies beyond.
        Explored "explored",
    }
}

label_values! {
    /// What the breaker of a backend became.
    CircuitState {
        /// Requests fail at once.
        Open "open",
        /// One request tries whether the backend is back.
        HalfOpen "half_open",
        /// Requests pass.
        Closed "closed",
    }
}

label_values! {
    /// How it went for a request that had the ceiling for a deadline.
    ExploredResult {
        /// It was in time for what was learned.
        InTime "in_time",
        /// It was served, but would have been cut off.
        Late "late",
        /// It was cut off all the same.
        Never "never",
    }
}

label_values! {
    /// What became of the time that a client gave.
    ClientBudget {
        /// It bounds the request.
        Obeyed "obeyed",
        /// It could not be read.
        Odd "odd",
        /// It was over before anything was sent.
        Exhausted "exhausted",
    }
}

label_values! {
    /// How near an endpoint is.
    Nearness {
        /// In the own pod.
        Local "local",
        /// Not known to be in another zone.
        Near "near",
        /// In another zone.
        Far "far",
    }
}

label_values! {
    /// What an endpoint says of its load.
    LoadSignal {
        /// Requests that wait inside it.
        Waiting "waiting",
        /// Requests that it works on.
        Running "running",
        /// The share of its key-value cache that is in use, 0 to 1.
        KvUsage "kv_usage",
    }
}

label_values! {
    /// What became of a copy of a request.
    MirrorResult {
        /// Its status was that of the original.
        Same "same",
        /// It was another one.
        Different "different",
        /// There was no complete answer.
        Failed "failed",
        /// It was not sent: there were too many already.
        TooMany "too_many",
        /// It was not sent: its body was too long, or not complete.
        TooLong "too_long",
    }
}

label_values! {
    /// How a request of a route with micro-batching travelled.
    Batched {
        /// With others.
        Together "together",
        /// By itself: nobody else came.
        Alone "alone",
        /// By itself, after a batch that gave no answer for it.
        SentAgain "sent_again",
        /// In a batch that was given up, since all of its clients had left.
        GivenUp "given_up",
        /// By itself: it can not share a call.
        NotPossible "not_possible",
    }
}

label_values! {
    /// As what an answer was served from store.
    Served {
        /// It was fresh.
        Fresh "fresh",
        /// It was stale, within what the client or the route allows.
        Stale "stale",
        /// It stood in for an error.
        Fallback "fallback",
    }
}

label_values! {
    /// Why an answer was served from store.
    ServedFor {
        /// The route prefers stored answers.
        Preferred "preferred",
        /// The client asked for one.
        Asked "asked",
        /// The load is too high for anything else.
        Load "load",
        /// A deadline had passed.
        Deadline "deadline",
        /// No endpoint was ready.
        NoEndpoint "no_endpoint",
        /// No endpoint could be connected to.
        Connect "connect",
        /// The endpoint broke the connection.
        Reset "reset",
        /// Too many requests were here.
        Shed "shed",
        /// The endpoint failed.
        ServerError "server_error",
    }
}

label_values! {
    /// Why a request was not answered from store.
    Missed {
        /// There was no answer.
        Absent "absent",
        /// There was one, too old for what it should have served for.
        Stale "stale",
        /// The client did not want a stored one.
        Refused "refused",
        /// It would not get the same answer again.
        NotDeterministic "not_deterministic",
        /// Its body is too long.
        TooLong "too_long",
        /// It is of a sort that is not stored: a method, a part, a condition, a body without one meaning.
        NotStorable "not_storable",
    }
}

label_values! {
    /// What became of an endpoint's answer that might have been stored.
    Recorded {
        /// It was stored.
        Stored "stored",
        /// Others in memory are asked for more often.
        NotAdmitted "not_admitted",
        /// It was not complete.
        Incomplete "incomplete",
        /// It is longer than the route allows.
        TooLong "too_long",
        /// The status was not 200.
        Status "status",
        /// The endpoint forbids it.
        Forbidden "forbidden",
        /// It depends on more of the request than is compared.
        Varies "varies",
        /// It is compressed, or otherwise of a kind that is not stored.
        Kind "kind",
    }
}

label_values! {
    /// What became of a request that found the same one under way.
    SharedCall {
        /// It got that one's answer.
        Joined "joined",
        /// It went its own way: that answer is not for others.
        Apart "apart",
        /// It was cut: it took what came too slowly.
        TooSlow "too_slow",
    }
}

label_values! {
    /// Whether a stale answer was refreshed.
    Refreshed {
        /// A call was made.
        Begun "begun",
        /// One was under way, or too many were.
        Busy "busy",
    }
}

label_values! {
    /// Why an answer left memory, or did not get in.
    Evicted {
        /// Others needed the room.
        Room "room",
        /// It was purged.
        Purged "purged",
        /// Others are asked for more often.
        NotAdmitted "not_admitted",
    }
}

label_values! {
    /// Why a stored answer was not believed.
    Distrusted {
        /// Another version of the program wrote it.
        Version "version",
        /// Its bytes were changed.
        Checksum "checksum",
        /// It does not follow the layout.
        Layout "layout",
        /// It is the answer to another request.
        Collision "collision",
    }
}

label_values! {
    /// What became of a request of the warm-up.
    WarmedUp {
        /// It was answered.
        Answered "answered",
        /// It was not.
        Failed "failed",
        /// The line of the file is no request.
        Skipped "skipped",
    }
}

label_values! {
    /// What the guard of a canary decided.
    CanaryVerdict {
        /// More errors: taken out.
        Errors "rolled_back_errors",
        /// A slower first byte: taken out.
        FirstByte "rolled_back_first_byte",
        /// Longer gaps: taken out.
        Gap "rolled_back_gap",
        /// More of the traffic.
        Stepped "stepped",
    }
}

label_values! {
    /// How much the kernel saw of a request.
    TimelineResult {
        /// Every step.
        Complete "complete",
        /// Some steps.
        Partial "partial",
        /// Nothing.
        Missing "missing",
        /// The response broke off, and no more steps were to be expected.
        BrokenOff "broken_off",
        /// Its connection is not followed: it carries several requests at once, or there were too many connections.
        Unattributed "unattributed",
    }
}

label_values! {
    /// How a health check, a name look-up or a reload ended.
    Verdict {
        /// As it should.
        Success "success",
        /// Otherwise.
        Failure "failure",
    }
}

label_values! {
    /// How an attempt came by its connection.
    UpstreamConnection {
        /// A new one was opened.
        Opened "opened",
        /// An idle one was used again.
        Reused "reused",
        /// None could be opened.
        Failed "failed",
        /// None could be opened in time.
        Timeout "timeout",
    }
}

/// The metrics of one proxy. Clones are the same metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    inner: Arc<Inner>,
}

struct Inner {
    version: String,
    process: ProcessMetrics,
    routes: Handles<1, RouteMetrics>,
    gates: Handles<2, GateMetrics>,
    rates: Handles<2, RateMetrics>,
    arms: Handles<2, ArmMetrics>,
    deadlines: Handles<2, DeadlineMetrics>,
    levels: Handles<1, LevelMetrics>,
    endpoints: Handles<2, EndpointMetrics>,
    backends: Handles<1, BackendMetrics>,
    listeners: Handles<1, ListenerMetrics>,
    mirrors: Handles<2, MirrorMetrics>,
    canaries: Handles<2, CanaryMetrics>,
    batches: Handles<1, BatchMetrics>,
    answers: Handles<1, AnswerMetrics>,
    store: Arc<StoreMetrics>,
    follow: Arc<FollowMetrics>,
    apps: Handles<2, AppMetrics>,
}

impl Metrics {
    /// A new set in a registry of its own; nothing is global, so two proxies can live in a test.
    #[must_use]
    pub fn new(version: &str) -> Self {
        let inner = Arc::new(Inner {
            version: version.to_owned(),
            process: ProcessMetrics::default(),
            routes: Handles::default(),
            gates: Handles::default(),
            rates: Handles::default(),
            arms: Handles::default(),
            deadlines: Handles::default(),
            levels: Handles::default(),
            endpoints: Handles::default(),
            backends: Handles::default(),
            listeners: Handles::default(),
            mirrors: Handles::default(),
            canaries: Handles::default(),
            batches: Handles::default(),
            answers: Handles::default(),
            store: Arc::default(),
            follow: Arc::default(),
            apps: Handles::default(),
        });
        let registry = Registry::new();
        let descriptions = TABLE.iter().map(Declaration::describe).collect();
        let collector = Walker { inner: Arc::clone(&inner), descriptions };
        registry
            .register(Box::new(collector))
            .expect("an empty registry takes a table without repeated names, which a test checks");
        Self { registry, inner }
    }

    /// Where other modules add their collectors.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything, sorted by name and labels, for `exposition`.
    #[must_use]
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// What concerns the process as a whole.
    #[must_use]
    pub fn process(&self) -> &ProcessMetrics {
        &self.inner.process
    }

    /// The handle of a route; [`NONE`] for requests that matched none.
    #[must_use]
    pub fn route(&self, route: &str) -> Arc<RouteMetrics> {
        self.inner.routes.get([route], |_| RouteMetrics::default())
    }

    /// The handle of what stands in front of a route or a backend.
    #[must_use]
    pub fn gate(&self, scope: Scope, name: &str) -> Arc<GateMetrics> {
        self.inner.gates.get([scope.as_str(), name], |_| GateMetrics::default())
    }

    /// Removes the series of what stands there no longer.
    pub fn forget_gate(&self, scope: Scope, name: &str) {
        self.inner.gates.forget([scope.as_str(), name]);
    }

    /// The handle of a route's rules of one kind.
    #[must_use]
    pub fn rates(&self, route: &str, per: RateKey) -> Arc<RateMetrics> {
        self.inner.rates.get([route, per.name()], |_| RateMetrics::default())
    }

    /// The handle of an arm of a route; [`NONE`] where a request had none.
    #[must_use]
    pub fn arm(&self, route: &str, arm: &str) -> Arc<ArmMetrics> {
        self.inner.arms.get([route, arm], |[route, _]| ArmMetrics::new(self.route(route)))
    }

    /// The handle of the deadlines that an arm of a route learns.
    #[must_use]
    pub fn deadlines(&self, route: &str, arm: &str) -> Arc<DeadlineMetrics> {
        self.inner.deadlines.get([route, arm], |_| DeadlineMetrics::default())
    }

    /// The handle of the load levels of a route.
    #[must_use]
    pub fn levels(&self, route: &str) -> Arc<LevelMetrics> {
        self.inner.levels.get([route], |_| LevelMetrics::default())
    }

    /// Removes the series of a route that has no load levels any more.
    pub fn forget_levels(&self, route: &str) {
        self.inner.levels.forget([route]);
    }

    /// The handle of an endpoint.
    #[must_use]
    pub fn endpoint(&self, backend: &str, endpoint: &str) -> Arc<EndpointMetrics> {
        self.inner.endpoints.get([backend, endpoint], |_| EndpointMetrics::default())
    }

    /// Removes all series of an endpoint that is gone for good. Whoever still holds its handle may
    /// use it without effect.
    pub fn forget_endpoint(&self, backend: &str, endpoint: &str) {
        self.inner.endpoints.forget([backend, endpoint]);
        self.inner.apps.forget([backend, endpoint]);
    }

    /// The handle of a backend.
    #[must_use]
    pub fn backend(&self, backend: &str) -> Arc<BackendMetrics> {
        self.inner.backends.get([backend], |_| BackendMetrics::default())
    }

    /// The handle of the mirror of a route, by the name of the backend that gets the copies.
    #[must_use]
    pub fn mirror(&self, route: &str, mirror: &str) -> Arc<MirrorMetrics> {
        self.inner.mirrors.get([route, mirror], |_| MirrorMetrics::default())
    }

    /// The handle of the guarded arm of a route.
    #[must_use]
    pub fn canary(&self, route: &str, arm: &str) -> Arc<CanaryMetrics> {
        self.inner.canaries.get([route, arm], |_| CanaryMetrics::default())
    }

    /// Removes the series of an arm that is not guarded any more.
    pub fn forget_canary(&self, route: &str, arm: &str) {
        self.inner.canaries.forget([route, arm]);
    }

    /// The handle of the micro-batching of a route.
    #[must_use]
    pub fn batches(&self, route: &str) -> Arc<BatchMetrics> {
        self.inner.batches.get([route], |_| BatchMetrics::default())
    }

    /// The handle of the stored answers of a route.
    #[must_use]
    pub fn answers(&self, route: &str) -> Arc<AnswerMetrics> {
        self.inner.answers.get([route], |_| AnswerMetrics::default())
    }

    /// What concerns all stored answers.
    #[must_use]
    pub fn store(&self) -> Arc<StoreMetrics> {
        Arc::clone(&self.inner.store)
    }

    /// What concerns the probe that follows requests.
    #[must_use]
    pub fn follow(&self) -> Arc<FollowMetrics> {
        Arc::clone(&self.inner.follow)
    }

    /// The handle of what the kernel sees of an endpoint.
    #[must_use]
    pub fn app(&self, backend: &str, endpoint: &str) -> Arc<AppMetrics> {
        self.inner.apps.get([backend, endpoint], |_| AppMetrics::default())
    }

    /// The handle of a listener, by its address as configured.
    #[must_use]
    pub fn listener(&self, listener: &str) -> Arc<ListenerMetrics> {
        self.inner.listeners.get([listener], |_| ListenerMetrics::default())
    }
}

/// What concerns the process as a whole.
#[derive(Debug, Default)]
pub struct ProcessMetrics {
    reloads: [Counter; Verdict::ALL.len()],
    reload_success: Gauge,
    reload_timestamp: Gauge,
    /// 1 while draining.
    pub draining: Gauge,
    /// Lost lines of the access log; shared with its writer.
    pub access_log_dropped: Arc<Counter>,
}

impl ProcessMetrics {
    /// The configuration the proxy starts with was loaded.
    pub fn config_loaded(&self, at: SystemTime) {
        self.set_config(Verdict::Success, at);
    }

    /// A reload was tried.
    pub fn config_reloaded(&self, verdict: Verdict, at: SystemTime) {
        self.reloads[verdict as usize].inc();
        self.set_config(verdict, at);
    }

    fn set_config(&self, verdict: Verdict, at: SystemTime) {
        self.reload_success.set(i64::from(verdict == Verdict::Success));
        let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.reload_timestamp.set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    }

    fn write(&self, page: &mut Page) {
        page.by_value(Id::ConfigReloads, &[], Verdict::ALL, Verdict::as_str, &self.reloads);
        page.gauge(Id::ConfigSuccess, &[], &self.reload_success);
        page.gauge(Id::ConfigTimestamp, &[], &self.reload_timestamp);
        page.gauge(Id::Draining, &[], &self.draining);
        page.counter(Id::AccessLogDropped, &[], self.access_log_dropped.get());
    }
}

/// What is counted per route.
#[derive(Debug, Default)]
pub struct RouteMetrics {
    /// Requests that have begun and not ended.
    pub in_flight: Gauge,
    /// Requests sent to an endpoint that has not begun to answer.
    pub awaiting_first_byte: Gauge,
    /// Bytes of response bodies before they were compressed here.
    pub compressed_in: Counter,
    /// Bytes of the same bodies after.
    pub compressed_out: Counter,
    retries: [Counter; RetryReason::ALL.len()],
    retries_denied: [Counter; RetryDenied::ALL.len()],
    hedges: [Counter; HedgeResult::ALL.len()],
    hedges_denied: [Counter; HedgeDenied::ALL.len()],
    budgets: [Counter; ClientBudget::ALL.len()],
}

impl RouteMetrics {
    /// Another attempt was made.
    pub fn retried(&self, reason: RetryReason) {
        self.retries[reason as usize].inc();
    }

    /// Another attempt was allowed by the policy but not made.
    pub fn retry_denied(&self, reason: RetryDenied) {
        self.retries_denied[reason as usize].inc();
    }

    /// A hedge ended so.
    pub fn hedged(&self, result: HedgeResult) {
        self.hedges[result as usize].inc();
    }

    /// A hedge was due but not made.
    pub fn hedge_denied(&self, reason: HedgeDenied) {
        self.hedges_denied[reason as usize].inc();
    }

    /// A client said how long it waits.
    pub fn budget(&self, result: ClientBudget) {
        self.budgets[result as usize].inc();
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::InFlight, labels, &self.in_flight);
        page.gauge(Id::AwaitingFirstByte, labels, &self.awaiting_first_byte);
        if self.compressed_in.get() > 0 {
            page.counter(Id::CompressedIn, labels, self.compressed_in.get());
            page.counter(Id::CompressedOut, labels, self.compressed_out.get());
        }
        page.by_value(Id::Retries, labels, &RetryReason::ALL, RetryReason::name, &self.retries);
        let denied = &self.retries_denied;
        page.by_value(Id::RetriesDenied, labels, RetryDenied::ALL, RetryDenied::as_str, denied);
        let (hedges, denied) = (&self.hedges, &self.hedges_denied);
        // Nothing is due where nothing is configured: no series that never move.
        if hedges.iter().chain(denied).any(|count| count.get() > 0) {
            page.by_value(Id::Hedges, labels, HedgeResult::ALL, HedgeResult::as_str, hedges);
            page.by_value(Id::HedgesDenied, labels, HedgeDenied::ALL, HedgeDenied::as_str, denied);
        }
        if self.budgets.iter().any(|count| count.get() > 0) {
            let (all, name) = (ClientBudget::ALL, ClientBudget::as_str);
            page.by_value(Id::ClientBudgets, labels, all, name, &self.budgets);
        }
    }
}

/// What is told of a limit and its queue.
#[derive(Debug)]
pub struct GateMetrics {
    /// How many may be in flight; 0 = no limit.
    pub limit: Gauge,
    /// How many are.
    pub in_flight: Gauge,
    /// How many wait.
    pub waiting: Gauge,
    /// How long they waited who had to.
    pub wait: Histogram,
    rejected: [Counter; Rejection::ALL.len()],
}

impl Default for GateMetrics {
    fn default() -> Self {
        Self {
            limit: Gauge::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            wait: Histogram::new(FIRST_BYTE),
            rejected: Default::default(),
        }
    }
}

impl GateMetrics {
    /// Somebody was turned away.
    pub fn rejected(&self, why: Rejection) {
        self.rejected[why as usize].inc();
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::AdmissionLimit, labels, &self.limit);
        page.gauge(Id::AdmissionInFlight, labels, &self.in_flight);
        page.gauge(Id::AdmissionWaiting, labels, &self.waiting);
        page.histogram(Id::AdmissionWait, labels, &self.wait);
        let (all, name) = (Rejection::ALL, Rejection::as_str);
        page.by_value(Id::AdmissionRejected, labels, all, name, &self.rejected);
    }
}

/// What is counted of a route's rules about rates.
#[derive(Debug, Default)]
pub struct RateMetrics {
    decisions: [Counter; RateDecision::ALL.len()],
}

impl RateMetrics {
    /// A rule said so.
    pub fn decided(&self, decision: RateDecision) {
        self.decisions[decision as usize].inc();
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        let (all, name) = (RateDecision::ALL, RateDecision::as_str);
        page.by_value(Id::RateDecisions, labels, all, name, &self.decisions);
    }
}

/// What is counted per arm of a route.
#[derive(Debug)]
pub struct ArmMetrics {
    /// The route that the arm belongs to.
    pub route: Arc<RouteMetrics>,
    /// From the request head to the last byte of the answer.
    pub duration: Histogram,
    /// From the request head to the first byte of the answer.
    pub first_byte: Histogram,
    chunk_gap: Arc<Histogram>,
    /// Bytes of request bodies.
    pub request_bytes: Counter,
    /// Bytes of response bodies.
    pub response_bytes: Counter,
    /// Prompt tokens. To be added once, at the end of a request: only then are they known.
    pub tokens_in: Counter,
    /// Answer tokens, likewise.
    pub tokens_out: Counter,
    requests: OutcomeTable,
}

impl ArmMetrics {
    fn new(route: Arc<RouteMetrics>) -> Self {
        Self {
            route,
            duration: Histogram::new(DURATION),
            first_byte: Histogram::new(FIRST_BYTE),
            chunk_gap: Arc::new(Histogram::new(CHUNK_GAP)),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
            tokens_in: Counter::default(),
            tokens_out: Counter::default(),
            requests: OutcomeTable::default(),
        }
    }

    /// A request ended so; `code` is the status the client got, or would have got.
    pub fn ended(&self, outcome: Outcome, code: u16) {
        self.requests.inc(outcome, code);
    }

    /// Where one request counts the gaps between its events; adds them up here by itself.
    #[must_use]
    pub fn gaps(&self) -> LocalHistogram {
        LocalHistogram::new(Arc::clone(&self.chunk_gap))
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        page.histogram(Id::RequestDuration, labels, &self.duration);
        page.histogram(Id::FirstByte, labels, &self.first_byte);
        page.histogram(Id::ChunkGap, labels, &self.chunk_gap);
        page.counter(Id::RequestBytes, labels, self.request_bytes.get());
        page.counter(Id::ResponseBytes, labels, self.response_bytes.get());
        let directions = [("in", &self.tokens_in), ("out", &self.tokens_out)];
        for (direction, tokens) in directions {
            page.counter(Id::Tokens, &[labels, &[direction]].concat(), tokens.get());
        }
        self.requests.for_each(|outcome, code, count| {
            let labels = [labels, &[outcome.as_str(), code]].concat();
            page.counter(Id::Requests, &labels, count);
        });
    }
}

/// What is told of the deadlines that an arm of a route learns.
#[derive(Debug)]
pub struct DeadlineMetrics {
    seconds: [Histogram; DeadlineKind::ALL.len()],
    set: [[Counter; DeadlineBasis::ALL.len()]; DeadlineKind::ALL.len()],
    explored: [[Counter; ExploredResult::ALL.len()]; DeadlineKind::ALL.len()],
}

impl Default for DeadlineMetrics {
    fn default() -> Self {
        Self {
            seconds: std::array::from_fn(|_| Histogram::new(FIRST_BYTE)),
            set: Default::default(),
            explored: Default::default(),
        }
    }
}

impl DeadlineMetrics {
    /// A deadline was set.
    pub fn set(&self, kind: DeadlineKind, basis: DeadlineBasis, deadline: Duration) {
        self.seconds[kind as usize].observe(deadline);
        self.set[kind as usize][basis as usize].inc();
    }

    /// So it went for a request that had the ceiling for a deadline.
    pub fn explored(&self, kind: DeadlineKind, result: ExploredResult) {
        self.explored[kind as usize][result as usize].inc();
    }

    /// Of those that had the ceiling and were served, the share that would have been cut off; `None` before the first.
    #[must_use]
    pub fn late_share(&self, kind: DeadlineKind) -> Option<f64> {
        let [in_time, late] = [ExploredResult::InTime, ExploredResult::Late]
            .map(|result| as_float(self.explored[kind as usize][result as usize].get()));
        (in_time + late > 0.0).then(|| late / (in_time + late))
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        for kind in DeadlineKind::ALL {
            let (index, labels) = (*kind as usize, [labels, &[kind.as_str()]].concat());
            // What is not learned has no series.
            if self.set[index].iter().all(|count| count.get() == 0) {
                continue;
            }
            page.histogram(Id::DeadlineSeconds, &labels, &self.seconds[index]);
            let (all, name) = (DeadlineBasis::ALL, DeadlineBasis::as_str);
            page.by_value(Id::Deadlines, &labels, all, name, &self.set[index]);
            let (all, name) = (ExploredResult::ALL, ExploredResult::as_str);
            page.by_value(Id::Explored, &labels, all, name, &self.explored[index]);
        }
    }
}

/// What is told of the load levels of a route.
#[derive(Debug, Default)]
pub struct LevelMetrics {
    /// The level in force, from 1; 0 below the first.
    pub level: Gauge,
}

impl LevelMetrics {
    fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::LoadLevel, labels, &self.level);
    }
}

/// What is counted per endpoint.
#[derive(Debug)]
pub struct EndpointMetrics {
    /// Attempts until the last byte of the answer.
    pub in_flight: Gauge,
    /// From sending an attempt to the first byte of its answer.
    pub first_byte: Histogram,
    /// 1 when ready.
    pub ready: Gauge,
    /// 1 while ejected.
    pub ejected: Gauge,
    requests: [Counter; Outcome::ALL.len()],
    ejections: [Counter; EjectionReason::ALL.len()],
    /// Attempts given up because another one of the same request began first.
    pub races_lost: Counter,
    checks: [Counter; Verdict::ALL.len()],
    /// What it last said of its queue, its batch and its cache, in the order of [`LoadSignal::ALL`].
    pub reported: [Level; LoadSignal::ALL.len()],
    warm_ups: [Counter; Verdict::ALL.len()],
    scrapes: [Counter; Verdict::ALL.len()],
    agent_checks: [Counter; Verdict::ALL.len()],
}

impl Default for EndpointMetrics {
    fn default() -> Self {
        Self {
            in_flight: Gauge::default(),
            first_byte: Histogram::new(FIRST_BYTE),
            ready: Gauge::default(),
            ejected: Gauge::default(),
            requests: std::array::from_fn(|_| Counter::default()),
            ejections: Default::default(),
            races_lost: Counter::default(),
            checks: Default::default(),
            reported: Default::default(),
            warm_ups: Default::default(),
            scrapes: Default::default(),
            agent_checks: Default::default(),
        }
    }
}

impl EndpointMetrics {
    /// An attempt ended so.
    pub fn ended(&self, outcome: Outcome) {
        self.requests[outcome.index()].inc();
    }

    /// The endpoint was ejected.
    pub fn ejection(&self, reason: EjectionReason) {
        self.ejections[reason as usize].inc();
    }

    /// A health check was made.
    pub fn checked(&self, verdict: Verdict) {
        self.checks[verdict as usize].inc();
    }

    /// A warm-up ended.
    pub fn warmed_up(&self, verdict: Verdict) {
        self.warm_ups[verdict as usize].inc();
    }

    /// The engine's metrics were read.
    pub fn scraped(&self, verdict: Verdict) {
        self.scrapes[verdict as usize].inc();
    }

    /// The agent was asked.
    pub fn agent_asked(&self, verdict: Verdict) {
        self.agent_checks[verdict as usize].inc();
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::EndpointInFlight, labels, &self.in_flight);
        page.histogram(Id::EndpointFirstByte, labels, &self.first_byte);
        page.gauge(Id::EndpointReady, labels, &self.ready);
        page.gauge(Id::EndpointEjected, labels, &self.ejected);
        let (reasons, reason) = (EjectionReason::ALL, EjectionReason::as_str);
        page.by_value(Id::EndpointEjections, labels, reasons, reason, &self.ejections);
        if self.races_lost.get() > 0 {
            page.counter(Id::EndpointRacesLost, labels, self.races_lost.get());
        }
        for (signal, level) in LoadSignal::ALL.iter().zip(&self.reported) {
            if let Some(value) = level.get() {
                page.level(Id::EndpointReported, &[labels, &[signal.as_str()]].concat(), value);
            }
        }
        let asked = [
            (Id::HealthChecks, &self.checks),
            (Id::WarmUps, &self.warm_ups),
            (Id::Scrapes, &self.scrapes),
            (Id::AgentChecks, &self.agent_checks),
        ];
        for (id, counts) in asked {
            // Nobody is asked where nothing is configured: no series that never move.
            if counts.iter().any(|count| count.get() > 0) || matches!(id, Id::HealthChecks) {
                page.by_value(id, labels, Verdict::ALL, Verdict::as_str, counts);
            }
        }
        for (outcome, count) in Outcome::ALL.iter().zip(&self.requests) {
            if count.get() > 0 {
                let labels = [labels, &[outcome.as_str()]].concat();
                page.counter(Id::EndpointRequests, &labels, count.get());
            }
        }
    }
}

/// What is counted per backend.
#[derive(Debug, Default)]
pub struct BackendMetrics {
    connections: [Counter; UpstreamConnection::ALL.len()],
    resolutions: [Counter; Verdict::ALL.len()],
    sent: [Counter; Nearness::ALL.len()],
    /// 1 while the breaker is open or half open; nothing where there is none.
    pub circuit_open: Level,
    circuit: [Counter; CircuitState::ALL.len()],
}

impl BackendMetrics {
    /// The breaker is in this state now.
    pub fn circuit_became(&self, state: CircuitState) {
        self.circuit[state as usize].inc();
    }

    /// An attempt went to an endpoint so near.
    pub fn sent(&self, nearness: Nearness) {
        self.sent[nearness as usize].inc();
    }

    /// An attempt came by its connection so.
    pub fn connection(&self, how: UpstreamConnection) {
        self.connections[how as usize].inc();
    }

    /// A name was looked up.
    pub fn resolved(&self, verdict: Verdict) {
        self.resolutions[verdict as usize].inc();
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        let (all, name) = (UpstreamConnection::ALL, UpstreamConnection::as_str);
        page.by_value(Id::UpstreamConnections, labels, all, name, &self.connections);
        page.by_value(Id::Discovery, labels, Verdict::ALL, Verdict::as_str, &self.resolutions);
        page.by_value(Id::Sent, labels, Nearness::ALL, Nearness::as_str, &self.sent);
        if let Some(open) = self.circuit_open.get() {
            page.level(Id::CircuitOpen, labels, open);
            let (all, name) = (CircuitState::ALL, CircuitState::as_str);
            page.by_value(Id::CircuitChanges, labels, all, name, &self.circuit);
        }
    }
}

/// What is counted per mirror of a route.
#[derive(Debug)]
pub struct MirrorMetrics {
    results: [Counter; MirrorResult::ALL.len()],
    copies: Histogram,
    originals: Histogram,
}

impl Default for MirrorMetrics {
    fn default() -> Self {
        Self {
            results: Default::default(),
            copies: Histogram::new(FIRST_BYTE),
            originals: Histogram::new(FIRST_BYTE),
        }
    }
}

impl MirrorMetrics {
    /// A copy ended so.
    pub fn ended(&self, result: MirrorResult) {
        self.results[result as usize].inc();
    }

    /// So long the first byte of the original took, if it had one, and that of the copy.
    pub fn compare(&self, original: Option<Duration>, copy: Duration) {
        self.copies.observe(copy);
        if let Some(original) = original {
            self.originals.observe(original);
        }
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        let (all, name) = (MirrorResult::ALL, MirrorResult::as_str);
        page.by_value(Id::Mirrored, labels, all, name, &self.results);
        for (answer, times) in [("copy", &self.copies), ("original", &self.originals)] {
            page.histogram(Id::MirrorFirstByte, &[labels, &[answer]].concat(), times);
        }
    }
}

/// What is counted of the micro-batching of a route.
#[derive(Debug, Default)]
pub struct BatchMetrics {
    /// Calls that served several requests.
    pub batches: Counter,
    requests: [Counter; Batched::ALL.len()],
}

impl BatchMetrics {
    /// So many requests travelled so.
    pub fn counted(&self, how: Batched, requests: u64) {
        self.requests[how as usize].add(requests);
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        page.counter(Id::Batches, labels, self.batches.get());
        let (all, name) = (Batched::ALL, Batched::as_str);
        page.by_value(Id::BatchedRequests, labels, all, name, &self.requests);
    }
}

/// What is counted of the stored answers of a route.
#[derive(Debug)]
pub struct AnswerMetrics {
    /// How old they were.
    pub age: Histogram,
    served: [[Counter; ServedFor::ALL.len()]; Served::ALL.len()],
    missed: [Counter; Missed::ALL.len()],
    recorded: [Counter; Recorded::ALL.len()],
    shared: [Counter; SharedCall::ALL.len()],
    refreshed: [Counter; Refreshed::ALL.len()],
}

impl Default for AnswerMetrics {
    fn default() -> Self {
        Self {
            age: Histogram::new(AGE),
            served: Default::default(),
            missed: Default::default(),
            recorded: Default::default(),
            shared: Default::default(),
            refreshed: Default::default(),
        }
    }
}

impl AnswerMetrics {
    /// An answer was served from store.
    pub fn served(&self, kind: Served, reason: ServedFor, age: Duration) {
        self.served[kind as usize][reason as usize].inc();
        self.age.observe(age);
    }

    /// A request was not answered from store.
    pub fn missed(&self, reason: Missed) {
        self.missed[reason as usize].inc();
    }

    /// So something became of an answer of an endpoint.
    pub fn recorded(&self, result: Recorded) {
        self.recorded[result as usize].inc();
    }

    /// A request found the same one under way.
    pub fn shared(&self, result: SharedCall) {
        self.shared[result as usize].inc();
    }

    /// A stale answer was served that should be refreshed.
    pub fn refreshed(&self, result: Refreshed) {
        self.refreshed[result as usize].inc();
    }

    /// Answers served from store, and requests that might have been and were not.
    #[must_use]
    pub fn hits_and_misses(&self) -> (u64, u64) {
        let hits = self.served.iter().flatten().map(Counter::get).sum();
        let missed =
            [Missed::Absent, Missed::Stale].map(|reason| self.missed[reason as usize].get());
        (hits, missed.iter().sum())
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        for (kind, by_reason) in Served::ALL.iter().zip(&self.served) {
            for (reason, count) in ServedFor::ALL.iter().zip(by_reason) {
                // Most pairs mean nothing.
                if count.get() > 0 {
                    let labels = [labels, &[kind.as_str(), reason.as_str()]].concat();
                    page.counter(Id::AnswersServed, &labels, count.get());
                }
            }
        }
        page.by_value(Id::AnswersMissed, labels, Missed::ALL, Missed::as_str, &self.missed);
        page.histogram(Id::AnswerAge, labels, &self.age);
        let (all, name) = (Recorded::ALL, Recorded::as_str);
        page.by_value(Id::AnswersRecorded, labels, all, name, &self.recorded);
        let (all, name) = (SharedCall::ALL, SharedCall::as_str);
        page.by_value(Id::AnswersShared, labels, all, name, &self.shared);
        let (all, name) = (Refreshed::ALL, Refreshed::as_str);
        page.by_value(Id::AnswersRefreshed, labels, all, name, &self.refreshed);
    }
}

/// What is counted of all stored answers together.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    /// Bytes in memory.
    pub bytes: Gauge,
    /// Answers in memory.
    pub entries: Gauge,
    evicted: [Counter; Evicted::ALL.len()],
    distrusted: [Counter; Distrusted::ALL.len()],
    warmed_up: [Counter; WarmedUp::ALL.len()],
}

impl StoreMetrics {
    /// So many answers left memory, or did not get in.
    pub fn evicted(&self, reason: Evicted, answers: u64) {
        self.evicted[reason as usize].add(answers);
    }

    /// A stored answer was not believed.
    pub fn distrusted(&self, reason: Distrusted) {
        self.distrusted[reason as usize].inc();
    }

    /// A request of the warm-up ended.
    pub fn warmed_up(&self, result: WarmedUp) {
        self.warmed_up[result as usize].inc();
    }

    fn write(&self, page: &mut Page) {
        page.gauge(Id::AnswersBytes, &[], &self.bytes);
        page.gauge(Id::AnswersEntries, &[], &self.entries);
        page.by_value(Id::AnswersEvicted, &[], Evicted::ALL, Evicted::as_str, &self.evicted);
        let (all, name) = (Distrusted::ALL, Distrusted::as_str);
        page.by_value(Id::AnswersDistrusted, &[], all, name, &self.distrusted);
        if self.warmed_up.iter().any(|count| count.get() > 0) {
            let (all, name) = (WarmedUp::ALL, WarmedUp::as_str);
            page.by_value(Id::AnswersWarmUp, &[], all, name, &self.warmed_up);
        }
    }
}

/// What is told of a guarded arm.
#[derive(Debug, Default)]
pub struct CanaryMetrics {
    /// 1 when it was taken out.
    pub rolled_back: Gauge,
    /// Percent of the traffic that it gets now.
    pub weight: Gauge,
    verdicts: [Counter; CanaryVerdict::ALL.len()],
}

impl CanaryMetrics {
    /// The guard decided.
    pub fn decided(&self, verdict: CanaryVerdict) {
        self.verdicts[verdict as usize].inc();
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        page.gauge(Id::CanaryRolledBack, labels, &self.rolled_back);
        page.gauge(Id::CanaryWeight, labels, &self.weight);
        let (all, name) = (CanaryVerdict::ALL, CanaryVerdict::as_str);
        page.by_value(Id::CanaryVerdicts, labels, all, name, &self.verdicts);
    }
}

/// What is told of the probe that follows requests.
#[derive(Debug, Default)]
pub struct FollowMetrics {
    /// 1 while it runs.
    pub running: Gauge,
    /// Bursts that the kernel had no room for.
    pub bursts_dropped: Counter,
    /// Connections that could not be registered.
    pub unregistered: Counter,
    /// Requests that could not be joined, because the reader was too slow.
    pub notes_dropped: Counter,
}

impl FollowMetrics {
    fn write(&self, page: &mut Page) {
        page.gauge(Id::ProbeRunning, &["requests"], &self.running);
        let lost = [
            ("bursts", &self.bursts_dropped),
            ("connections", &self.unregistered),
            ("requests", &self.notes_dropped),
        ];
        for (what, count) in lost.into_iter().filter(|_| self.running.get() > 0) {
            page.counter(Id::ProbeLost, &[what], count.get());
        }
    }
}

/// What the kernel sees of an endpoint.
#[derive(Debug)]
pub struct AppMetrics {
    /// From the socket's first byte to the application's first read.
    pub socket_wait: Histogram,
    /// From there to its first write.
    pub first_byte: Histogram,
    /// From there to its last write.
    pub answer: Histogram,
    timelines: [Counter; TimelineResult::ALL.len()],
}

impl Default for AppMetrics {
    fn default() -> Self {
        Self {
            socket_wait: Histogram::new(APP),
            first_byte: Histogram::new(APP),
            answer: Histogram::new(APP),
            timelines: Default::default(),
        }
    }
}

impl AppMetrics {
    /// So much was seen of a request.
    pub fn timeline(&self, result: TimelineResult) {
        self.timelines[result as usize].inc();
    }

    fn write(&self, labels: &[&str], page: &mut Page) {
        page.histogram(Id::AppSocketWait, labels, &self.socket_wait);
        page.histogram(Id::AppFirstByte, labels, &self.first_byte);
        page.histogram(Id::AppAnswer, labels, &self.answer);
        let (all, name) = (TimelineResult::ALL, TimelineResult::as_str);
        page.by_value(Id::AppTimelines, labels, all, name, &self.timelines);
    }
}

/// What is counted per listener.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections open now.
    pub open: Gauge,
    /// Connections closed at once because there were too many.
    pub refused: Counter,
}

impl ListenerMetrics {
    fn write(&self, labels: &[&str], page: &mut Page) {
        page.counter(Id::Connections, labels, self.accepted.get());
        page.gauge(Id::ConnectionsOpen, labels, &self.open);
        page.counter(Id::ConnectionsRefused, labels, self.refused.get());
    }
}

/// Handles by their label values. The lock is taken when configuration changes and at a scrape.
struct Handles<const N: usize, T>(Mutex<BTreeMap<[String; N], Arc<T>>>);

impl<const N: usize, T> Default for Handles<N, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<const N: usize, T> Handles<N, T> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<[String; N], Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle for these values, or the one for `other`. This is the only cap on label values.
    fn get(&self, labels: [&str; N], make: impl FnOnce([&str; N]) -> T) -> Arc<T> {
        let mut map = self.lock();
        let key = labels.map(str::to_owned);
        if let Some(handle) = map.get(&key) {
            return Arc::clone(handle);
        }
        let labels = if map.len() < MAX_HANDLES { labels } else { [OTHER; N] };
        let handle = map.entry(labels.map(str::to_owned)).or_insert_with(|| Arc::new(make(labels)));
        Arc::clone(handle)
    }

    fn forget(&self, labels: [&str; N]) {
        self.lock().remove(&labels.map(str::to_owned));
    }

    fn for_each(&self, mut write: impl FnMut(&T, &[&str])) {
        for (labels, handle) in self.lock().iter() {
            write(handle, &labels.each_ref().map(String::as_str));
        }
    }
}

/// Slots of an [`OutcomeTable`]: several times what one arm sees in its life.
const SLOTS: usize = 64;

/// Counts by outcome and status code, without a lock and without room for all 23 × 500 pairs: a
/// slot is claimed when its pair first occurs. A pair that finds no slot is counted under its
/// outcome with the code `other`, so an upstream that invents codes cannot make series without end.
struct OutcomeTable {
    slots: [Slot; SLOTS],
    beyond: [Counter; Outcome::ALL.len()],
}

#[derive(Default)]
struct Slot {
    /// 0 = free, else one more than the index of the outcome, times 65536, plus the code.
    key: AtomicU32,
    count: AtomicU64,
}

impl Default for OutcomeTable {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
            beyond: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl std::fmt::Debug for OutcomeTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = formatter.debug_map();
        self.for_each(|outcome, code, count| {
            map.entry(&(outcome, code), &count);
        });
        map.finish()
    }
}

impl OutcomeTable {
    fn inc(&self, outcome: Outcome, code: u16) {
        let key = OUTCOME_KEYS[outcome.index()] + u32::from(code);
        let start = usize::from(code) + outcome.index() * 7;
        for step in 0..SLOTS {
            let slot = &self.slots[(start + step) % SLOTS];
            let mut holder = slot.key.load(Relaxed);
            if holder == 0 {
                let claimed = slot.key.compare_exchange(0, key, Relaxed, Relaxed);
                holder = claimed.err().unwrap_or(key);
            }
            if holder == key {
                slot.count.fetch_add(1, Relaxed);
                return;
            }
        }
        self.beyond[outcome.index()].inc();
    }

    fn for_each(&self, mut write: impl FnMut(Outcome, &str, u64)) {
        let mut code = String::new();
        for slot in &self.slots {
            let (key, count) = (slot.key.load(Relaxed), slot.count.load(Relaxed));
            let Some(outcome) = Outcome::ALL.get((key >> 16).wrapping_sub(1) as usize) else {
                continue;
            };
            code.clear();
            // Writing to a string cannot fail.
            let _ = write!(code, "{}", key & 0xFFFF);
            write(*outcome, &code, count);
        }
        for (outcome, count) in Outcome::ALL.iter().zip(&self.beyond) {
            if count.get() > 0 {
                write(*outcome, OTHER, count.get());
            }
        }
    }
}

/// The part of a slot's key that stands for the outcome.
const OUTCOME_KEYS: [u32; Outcome::ALL.len()] = {
    let mut keys = [0; Outcome::ALL.len()];
    let (mut index, mut key) = (0, 1 << 16);
    while index < keys.len() {
        keys[index] = key;
        index += 1;
        key += 1 << 16;
    }
    keys
};

impl Declaration {
    fn describe(&self) -> Desc {
        let labels = self.labels.iter().map(|&label| label.to_owned()).collect();
        Desc::new(self.name.to_owned(), self.help.to_owned(), labels, HashMap::new())
            .expect("the names in the table are valid, which a test checks")
    }

    fn family(&self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family
    }
}

/// Writes all handles out when the registry asks.
struct Walker {
    inner: Arc<Inner>,
    descriptions: Vec<Desc>,
}

impl Collector for Walker {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut page = Page(TABLE.iter().map(Declaration::family).collect());
        page.constant(Id::BuildInfo, &[&self.inner.version]);
        self.inner.process.write(&mut page);
        self.inner.routes.for_each(|route, labels| route.write(labels, &mut page));
        self.inner.gates.for_each(|gate, labels| gate.write(labels, &mut page));
        self.inner.rates.for_each(|rates, labels| rates.write(labels, &mut page));
        self.inner.arms.for_each(|arm, labels| arm.write(labels, &mut page));
        self.inner.deadlines.for_each(|deadlines, labels| deadlines.write(labels, &mut page));
        self.inner.levels.for_each(|levels, labels| levels.write(labels, &mut page));
        self.inner.endpoints.for_each(|endpoint, labels| endpoint.write(labels, &mut page));
        self.inner.backends.for_each(|backend, labels| backend.write(labels, &mut page));
        self.inner.listeners.for_each(|listener, labels| listener.write(labels, &mut page));
        self.inner.mirrors.for_each(|mirror, labels| mirror.write(labels, &mut page));
        self.inner.canaries.for_each(|canary, labels| canary.write(labels, &mut page));
        self.inner.batches.for_each(|batches, labels| batches.write(labels, &mut page));
        self.inner.answers.for_each(|answers, labels| answers.write(labels, &mut page));
        self.inner.follow.write(&mut page);
        self.inner.apps.for_each(|app, labels| app.write(labels, &mut page));
        // Nothing is told of a store where no route has one.
        if !self.inner.answers.lock().is_empty() {
            self.inner.store.write(&mut page);
        }
        page.0
    }
}

/// The families being written, by `Id`.
struct Page(Vec<MetricFamily>);

impl Page {
    fn counter(&mut self, id: Id, labels: &[&str], value: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(as_float(value));
        self.add(id, labels, |metric| metric.set_counter(counter));
    }

    fn gauge(&mut self, id: Id, labels: &[&str], gauge: &Gauge) {
        let mut value = proto::Gauge::default();
        value.set_value(signed_as_float(gauge.get()));
        self.add(id, labels, |metric| metric.set_gauge(value));
    }

    fn level(&mut self, id: Id, labels: &[&str], level: f64) {
        let mut value = proto::Gauge::default();
        value.set_value(level);
        self.add(id, labels, |metric| metric.set_gauge(value));
    }

    /// A gauge that is always 1 and only there for its labels.
    fn constant(&mut self, id: Id, labels: &[&str]) {
        let one = Gauge::default();
        one.set(1);
        self.gauge(id, labels, &one);
    }

    fn histogram(&mut self, id: Id, labels: &[&str], histogram: &Histogram) {
        let view = histogram.view();
        let bucket = |(bound, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        let mut out = proto::Histogram::default();
        out.set_bucket(view.cumulative.into_iter().map(bucket).collect());
        out.set_sample_count(view.count);
        out.set_sample_sum(view.sum);
        self.add(id, labels, |metric| metric.set_histogram(out));
    }

    /// One counter per value of a closed list, which becomes the last label.
    fn by_value<T: Copy>(
        &mut self,
        id: Id,
        labels: &[&str],
        values: &[T],
        name: impl Fn(T) -> &'static str,
        counters: &[Counter],
    ) {
        for (value, counter) in values.iter().zip(counters) {
            self.counter(id, &[labels, &[name(*value)]].concat(), counter.get());
        }
    }

    fn add(&mut self, id: Id, values: &[&str], fill: impl FnOnce(&mut Metric)) {
        let names = TABLE[id as usize].labels;
        debug_assert_eq!(names.len(), values.len(), "{}", TABLE[id as usize].name);
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        let mut metric = Metric::from_label(names.iter().zip(values).map(pair).collect());
        fill(&mut metric);
        self.0[id as usize].mut_metric().push(metric);
    }
}

/// Exact up to 2^53; beyond that a rate is exact enough.
#[expect(clippy::cast_precision_loss, reason = "samples are floats by definition")]
fn as_float(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "samples are floats by definition")]
fn signed_as_float(value: i64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The samples of one metric as `(labels joined by a slash, value)`.
    fn samples(metrics: &Metrics, name: &str) -> Vec<(String, f64)> {
        let families = metrics.gather();
        let Some(family) = families.iter().find(|family| family.name() == name) else {
            return Vec::new();
        };
        let value = |metric: &Metric| match family.get_field_type() {
            MetricType::COUNTER => metric.get_counter().get_value(),
            MetricType::GAUGE => metric.get_gauge().get_value(),
            _ => metric.get_histogram().get_sample_sum(),
        };
        let labels = |metric: &Metric| {
            metric.get_label().iter().map(LabelPair::value).collect::<Vec<_>>().join("/")
        };
        family.get_metric().iter().map(|metric| (labels(metric), value(metric))).collect()
    }

    fn sample(metrics: &Metrics, name: &str, labels: &str) -> Option<f64> {
        let all = samples(metrics, name);
        all.into_iter().find(|(found, _)| found == labels).map(|(_, value)| value)
    }

    /// One handle of every sort, each used.
    fn busy() -> Metrics {
        let metrics = Metrics::new("1.2.3");
        let arm = metrics.arm("chat", "stable");
        arm.ended(Outcome::Ok, 200);
        arm.duration.observe(Duration::from_millis(1500));
        arm.route.retried(RetryReason::Connect);
        metrics.endpoint("stable", "127.0.0.1:1").ended(Outcome::ConnectFailed);
        metrics.backend("stable").connection(UpstreamConnection::Reused);
        metrics.backend("stable").circuit_open.set(0.0);
        metrics.listener("0.0.0.0:8800").accepted.inc();
        // What is not configured has no series.
        arm.route.compressed_in.add(3);
        arm.route.hedged(HedgeResult::Won);
        let endpoint = metrics.endpoint("stable", "127.0.0.1:1");
        endpoint.races_lost.inc();
        endpoint.warmed_up(Verdict::Success);
        endpoint.scraped(Verdict::Success);
        endpoint.agent_asked(Verdict::Success);
        endpoint.reported.iter().for_each(|level| level.set(0.5));
        metrics.mirror("chat", "shadow").ended(MirrorResult::Same);
        metrics.canary("chat", "canary").decided(CanaryVerdict::Stepped);
        metrics.batches("chat").batches.inc();
        let deadlines = metrics.deadlines("chat", "stable");
        deadlines.set(DeadlineKind::Gap, DeadlineBasis::Learned, Duration::from_secs(2));
        metrics.levels("chat").level.set(1);
        arm.route.budget(ClientBudget::Obeyed);
        let age = Duration::from_secs(60);
        metrics.answers("chat").served(Served::Fallback, ServedFor::Deadline, age);
        metrics.store().warmed_up(WarmedUp::Answered);
        metrics.gate(Scope::Route, "chat").rejected(Rejection::Shed);
        metrics.follow().running.set(1);
        metrics.app("stable", "127.0.0.1:1").timeline(TimelineResult::Complete);
        metrics.rates("chat", RateKey::Tenant).decided(RateDecision::Tokens);
        metrics
    }

    #[test]
    fn the_table_is_well_formed() {
        let names: HashSet<_> = TABLE.iter().map(|declaration| declaration.name).collect();
        assert_eq!(names.len(), TABLE.len(), "no name twice");
        for Declaration { name, help, kind, .. } in TABLE {
            assert_eq!(name.ends_with("_total"), *kind == MetricType::COUNTER, "{name}");
            assert!(help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn every_declared_metric_is_written_with_its_labels() {
        let families = busy().gather();
        for declaration in TABLE {
            let family = families.iter().find(|family| family.name() == declaration.name);
            let family = family.expect(declaration.name);
            assert_eq!(family.get_field_type(), declaration.kind, "{}", declaration.name);
            for metric in family.get_metric() {
                let labels: Vec<_> = metric.get_label().iter().map(LabelPair::name).collect();
                assert_eq!(labels, declaration.labels, "{}", declaration.name);
            }
        }
        assert_eq!(families.len(), TABLE.len(), "and no other");
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = busy();
        for (name, labels, value) in [
            ("outrigger_build_info", "1.2.3", 1.0),
            ("outrigger_requests_total", "chat/stable/ok/200", 1.0),
            ("outrigger_request_duration_seconds", "chat/stable", 1.5),
            ("outrigger_retries_total", "chat/connect", 1.0),
            ("outrigger_retries_total", "chat/server_error", 0.0),
            ("outrigger_endpoint_requests_total", "stable/127.0.0.1:1/connect_failed", 1.0),
            ("outrigger_upstream_connections_total", "stable/reused", 1.0),
            ("outrigger_connections_total", "0.0.0.0:8800", 1.0),
        ] {
            assert_eq!(sample(&metrics, name, labels), Some(value), "{name} {labels}");
        }
    }

    #[test]
    fn two_sets_do_not_share_anything() {
        let (one, two) = (busy(), Metrics::new("x"));
        assert_eq!(samples(&one, "outrigger_requests_total").len(), 1);
        assert_eq!(samples(&two, "outrigger_requests_total").len(), 0);
    }

    #[test]
    fn label_sets_that_look_alike_when_joined_stay_apart() {
        let metrics = Metrics::new("x");
        metrics.arm("ab", "c").ended(Outcome::Ok, 200);
        metrics.arm("a", "bc").ended(Outcome::Ok, 200);
        assert_eq!(samples(&metrics, "outrigger_requests_total").len(), 2);
    }

    #[test]
    fn a_handle_is_the_same_for_the_same_labels() {
        let metrics = Metrics::new("x");
        let arm = metrics.arm("r", "a");
        assert!(Arc::ptr_eq(&arm, &metrics.clone().arm("r", "a")));
        assert!(Arc::ptr_eq(&arm.route, &metrics.route("r")));
        assert!(!Arc::ptr_eq(&arm, &metrics.arm("r", "b")));
    }

    #[test]
    fn a_forgotten_endpoint_leaves_no_series_and_starts_afresh() {
        let metrics = Metrics::new("x");
        let old = metrics.endpoint("b", "1:1");
        let stays = metrics.endpoint("b", "2:2");
        old.in_flight.inc();
        stays.in_flight.inc();
        metrics.forget_endpoint("b", "1:1");
        old.ended(Outcome::Ok);
        old.ejection(EjectionReason::Failures);
        for family in metrics.gather() {
            for metric in family.get_metric() {
                assert!(metric.get_label().iter().all(|pair| pair.value() != "1:1"));
            }
        }
        assert_eq!(sample(&metrics, "outrigger_endpoint_in_flight", "b/2:2"), Some(1.0));
        assert_eq!(metrics.endpoint("b", "1:1").in_flight.get(), 0);
    }

    #[test]
    fn too_many_label_sets_share_one() {
        let metrics = Metrics::new("x");
        for index in 0..MAX_HANDLES + 50 {
            metrics.endpoint("b", &index.to_string()).ended(Outcome::Ok);
        }
        let name = "outrigger_endpoint_requests_total";
        assert_eq!(samples(&metrics, name).len(), MAX_HANDLES + 1);
        assert_eq!(sample(&metrics, name, "other/other/ok"), Some(50.0));
        metrics.endpoint("b", "7").ended(Outcome::Ok);
        assert_eq!(sample(&metrics, name, "b/7/ok"), Some(2.0), "known ones keep theirs");
    }

    #[test]
    fn outcomes_and_codes_are_counted_apart() {
        let table = OutcomeTable::default();
        table.inc(Outcome::Ok, 200);
        table.inc(Outcome::Ok, 200);
        table.inc(Outcome::Ok, 204);
        table.inc(Outcome::Internal, 200);
        let mut seen = Vec::new();
        table.for_each(|outcome, code, count| seen.push((outcome, code.to_owned(), count)));
        seen.sort();
        let ok = |code: &str, count| (Outcome::Ok, code.to_owned(), count);
        let internal = (Outcome::Internal, "200".to_owned(), 1);
        assert_eq!(seen, [ok("200", 2), ok("204", 1), internal]);
    }

    #[test]
    fn invented_codes_are_bounded_and_nothing_is_lost() {
        let table = OutcomeTable::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (100..600).for_each(|code| table.inc(Outcome::Ok, code)));
            }
        });
        let (mut series, mut total, mut codes) = (0, 0, HashSet::new());
        table.for_each(|_, code, count| {
            series += 1;
            total += count;
            codes.insert(code.to_owned());
        });
        assert_eq!((series, codes.len(), total), (SLOTS + 1, SLOTS + 1, 2000));
        assert!(codes.contains(OTHER));
    }

    #[test]
    fn a_failed_reload_is_told_until_one_succeeds() {
        let metrics = Metrics::new("x");
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let gauge = |name| sample(&metrics, name, "");
        metrics.process().config_loaded(at(10));
        assert_eq!(gauge("outrigger_config_last_reload_success"), Some(1.0));
        metrics.process().config_reloaded(Verdict::Failure, at(20));
        assert_eq!(gauge("outrigger_config_last_reload_success"), Some(0.0));
        assert_eq!(gauge("outrigger_config_last_reload_timestamp_seconds"), Some(20.0));
        let reloads = |result| sample(&metrics, "outrigger_config_reloads_total", result);
        assert_eq!((reloads("failure"), reloads("success")), (Some(1.0), Some(0.0)));
    }

    #[test]
    fn streamed_gaps_reach_their_arm() {
        let metrics = Metrics::new("x");
        let arm = metrics.arm("r", "a");
        let mut gaps = arm.gaps();
        gaps.observe(Duration::from_millis(30));
        gaps.observe(Duration::from_millis(20));
        drop(gaps);
        assert_eq!(sample(&metrics, "outrigger_chunk_gap_seconds", "r/a"), Some(0.05));
    }
}
