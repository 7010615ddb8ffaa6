//! The table of all metrics: names, labels, help, and where histograms have their bounds.

use super::*;

/// From a redirect to a long generation: 1 ms to 10 minutes.
pub(super) const DURATION: Bounds = Bounds::micros(&[
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
pub(super) const FIRST_BYTE: Bounds = Bounds::micros(&[
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
pub(super) const AGE: Bounds = Bounds::micros(&[
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
pub(super) const CHUNK_GAP: Bounds = Bounds::micros(&[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 15_000, 20_000, 30_000, 40_000, 60_000, 80_000,
    100_000, 150_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
    60_000_000,
]);

/// From a socket of the file system to the longest that may be waited for: 0.1 ms to 1 s.
pub(super) const STORE: Bounds = Bounds::micros(&[
    100, 200, 350, 500, 750, 1_000, 2_000, 3_500, 5_000, 7_500, 10_000, 15_000, 20_000, 35_000,
    50_000, 100_000, 200_000, 500_000, 1_000_000,
]);

/// What the kernel sees: from a read at once to a loop that is blocked. 10 µs to one minute.
pub(super) const APP: Bounds = Bounds::micros(&[
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
]);

/// One line of the table below.
pub(super) struct Declaration {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricType,
    pub(super) labels: &'static [&'static str],
}

/// Declares `Id`, one variant per metric, and `TABLE`, in the same order.
macro_rules! declare {
    ($($id:ident $kind:ident $name:literal [$($label:literal)*] $help:literal;)+) => {
        #[derive(Clone, Copy)]
        pub(super) enum Id { $($id),+ }

        pub(super) const TABLE: &[Declaration] = &[$(Declaration {
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
    UpstreamConnect HISTOGRAM "upstream_connect_seconds" ["backend" "endpoint"]
        "Time that new connections took to be made, with the handshake of HTTP/2 where it is spoken.";
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
    RedisUp GAUGE "redis_up" []
        "1 while the Redis of stored answers is asked, 0 while it is left alone.";
    RedisLookupTime HISTOGRAM "redis_lookup_seconds" []
        "How long requests waited for a stored answer from Redis, or for nothing.";
    RedisLookups COUNTER "redis_lookups_total" ["result"]
        "Looks for a stored answer in Redis, by what came of them.";
    RedisWrites COUNTER "redis_writes_total" ["result"]
        "Answers to be stored in Redis, by what became of them.";
    RedisQueue GAUGE "redis_queue_length" []
        "Answers that wait to be stored in Redis.";
    RedisFailures COUNTER "redis_failures_total" ["kind"]
        "What went wrong between here and Redis.";
    RedisBytes COUNTER "redis_bytes_total" ["direction"]
        "Bytes of stored answers, compressed as they are in Redis; in = read, out = written.";
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
        "What a probe had no room for: bursts in the kernel, connections to follow, requests to join, calls into the driver or of its library, waits for fences, jobs; rounds without an answer.";
    UpstreamRtt GAUGE "upstream_tcp_rtt_seconds" ["backend" "endpoint"]
        "Smoothed round-trip time of the connections to an endpoint now, their mean.";
    UpstreamMinRtt GAUGE "upstream_tcp_min_rtt_seconds" ["backend" "endpoint"]
        "The shortest round trip of late among the connections to an endpoint.";
    UpstreamRetransmits COUNTER "upstream_tcp_retransmits_total" ["backend" "endpoint"]
        "Segments sent again to an endpoint, but for the last second of each connection.";
    UpstreamUnacked GAUGE "upstream_unacked_bytes" ["backend" "endpoint"]
        "Bytes written to an endpoint that its kernel has not acknowledged.";
    AppUnreadBytes GAUGE "app_unread_bytes" ["backend" "endpoint"]
        "Bytes that reached the application's sockets and were not read, once a second.";
    AppUnreadConnections GAUGE "app_unread_connections" ["backend" "endpoint"]
        "Connections with bytes that the application has not read, once a second.";
    AppUnreadFor GAUGE "app_unread_seconds" ["backend" "endpoint"]
        "How long at least the oldest byte that the application has not read lies in its socket, to the second.";
    AppAcceptQueue GAUGE "app_accept_queue" ["backend" "endpoint"]
        "Connections that wait for the application to accept them, whoever's they are.";
    AppAcceptLimit GAUGE "app_accept_queue_limit" ["backend" "endpoint"]
        "How many connections may wait; the kernel turns away when there is one more.";
    AcceptOverflows COUNTER "app_accept_overflows_total" []
        "Connections that a listener of the network namespace had no room for, whoever's it is.";
    AcceptDrops COUNTER "app_accept_drops_total" []
        "Connections that a listener of the network namespace turned away, for want of room or for another reason.";
    AppCpu COUNTER "app_cpu_seconds_total" ["backend" "endpoint"]
        "Time that the threads of the application's processes ran.";
    AppRunnable COUNTER "app_runnable_seconds_total" ["backend" "endpoint"]
        "Time that the threads of the application's processes were ready to run and had no processor.";
    AppWire HISTOGRAM "app_wire_seconds" ["backend" "endpoint"]
        "Time from the proxy beginning to send a request to its first segment at the application's socket, as the kernel saw it.";
    AppSocketWait HISTOGRAM "app_socket_wait_seconds" ["backend" "endpoint"]
        "Time that requests lay in the application's socket before it read them, as the kernel saw it.";
    AppFirstByte HISTOGRAM "app_first_byte_seconds" ["backend" "endpoint"]
        "Time from the application's first read of a request to its first write, as the kernel saw it.";
    AppAnswer HISTOGRAM "app_answer_seconds" ["backend" "endpoint"]
        "Time from the application's first write of an answer to its last, as the kernel saw it.";
    AppWriteGap HISTOGRAM "app_write_gap_seconds" ["backend" "endpoint"]
        "Time between two writes in a row of one answer by the application, as the kernel saw it: the pace of a stream where it begins.";
    AppLimit GAUGE "app_pick_up_limit" ["backend" "endpoint"]
        "How many requests an endpoint may have at once, because others waited in its socket; 0 for any number.";
    AppGpuWait HISTOGRAM "app_gpu_wait_seconds" ["backend" "endpoint" "method" "attribution"]
        "How much of each request's time somebody in the pod waited for the GPU: exact where it was the only one in flight, else shared by all who were.";
    AppTimelines COUNTER "app_timelines_total" ["backend" "endpoint" "result"]
        "Requests that an endpoint had, by how much of them the kernel saw.";
    DriverCalls HISTOGRAM "gpu_driver_call_seconds" ["device" "command"]
        "Time that calls into the GPU's driver took, as the kernel saw it.";
    DriverInFlight GAUGE "gpu_driver_calls_in_flight" []
        "Calls into the GPU's driver that have not returned.";
    DriverOldest GAUGE "gpu_driver_oldest_call_seconds" []
        "How long the oldest call into the GPU's driver has been under way, but for those that wait by design; else 0.";
    DriverStuck GAUGE "gpu_driver_stuck_calls" []
        "Calls into the GPU's driver that have been under way for longer than `probes.driver.stuck_after`.";
    Xid COUNTER "gpu_xid_total" ["xid"]
        "Errors that NVIDIA's driver reported in the kernel's log, of any GPU of the machine.";
    FenceWait HISTOGRAM "gpu_fence_wait_seconds" []
        "Time that processes waited in the kernel for fences of a GPU, as it saw it.";
    JobQueued HISTOGRAM "gpu_job_queued_seconds" ["ring"]
        "Time from a job being handed to the DRM scheduler to the hardware being given it, as the kernel saw it.";
    JobRun HISTOGRAM "gpu_job_run_seconds" ["ring"]
        "Time from the hardware being given a job to its being done, as the kernel saw it.";
    GpuApiCall HISTOGRAM "gpu_api_call_seconds" ["api" "function"]
        "How long calls of the GPU's user-space driver took, all variants of a function together.";
    GpuApiBytes COUNTER "gpu_api_bytes_total" ["function"]
        "Bytes that calls of the GPU's user-space driver copied or allocated, where an argument tells.";
    GpuApiFailed COUNTER "gpu_api_failed_total" ["function"]
        "Calls of the GPU's user-space driver that did not return success.";
    GpuApiLaunches COUNTER "gpu_api_launches_total" ["function"]
        "Calls of functions that are counted only: kernel launches.";
    GpuApiRefused GAUGE "gpu_api_refused" ["function"]
        "1 for a function of which a variant is not timed, for the kernel would have to single-step it.";
    GpuApiProcesses GAUGE "gpu_api_processes" []
        "Processes whose calls of the GPU's user-space driver are timed.";
    GpuApiOldestCall GAUGE "gpu_api_oldest_call_seconds" []
        "How long the oldest call that has not returned has been under way; 0 when there is none.";
    TraceSpans COUNTER "trace_spans_total" ["result"]
        "Spans of requests that were traced, by what became of them: exported, rejected by the collector, failed to get there, dropped for want of room.";
    AccessLogDropped COUNTER "access_log_dropped_total" []
        "Access-log lines lost because they could not be written fast enough, or at all.";
}

impl Declaration {
    pub(super) fn describe(&self) -> Desc {
        let labels = self.labels.iter().map(|&label| label.to_owned()).collect();
        Desc::new(self.name.to_owned(), self.help.to_owned(), labels, HashMap::new())
            .expect("the names in the table are valid, which a test checks")
    }

    pub(super) fn family(&self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family
    }
}
