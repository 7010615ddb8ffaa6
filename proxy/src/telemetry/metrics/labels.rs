//! The values that labels can have, each a closed set, so that a series is found by its index.

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
    /// What came of a look into Redis.
    RedisLookup {
        /// A good answer.
        Hit "hit",
        /// Nothing.
        Miss "miss",
        /// An answer that was purged.
        Purged "purged",
        /// Something that is not believed: another version, a wrong checksum, no answer at all.
        Distrusted "distrusted",
        /// Nothing in time.
        Timeout "timeout",
        /// A failure instead of an answer.
        Error "error",
        /// It was not asked: too many were asking.
        Busy "busy",
        /// It was not asked: it is left alone.
        Down "down",
    }
}

label_values! {
    /// What became of an answer that was to be stored in Redis.
    RedisWrite {
        /// It is there.
        Stored "stored",
        /// There was no room to wait in, or its time was over before its turn came.
        Dropped "dropped",
        /// It was longer than is kept there.
        TooLong "too_long",
        /// Redis did not take it, or not in time.
        Failed "failed",
    }
}

label_values! {
    /// What went wrong between here and Redis.
    RedisFailure {
        /// No connection could be made.
        Connect "connect",
        /// It denied us: a wrong password, or a user who may not do that.
        Denied "denied",
        /// It took too long.
        Timeout "timeout",
        /// It is loading, or a part of the cluster is down.
        Unready "unready",
        /// The connection broke.
        Lost "lost",
        /// It answered with another error: it is full, say, or a replica.
        Refused "refused",
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
    /// A family of programs in the kernel.
    ProbeName {
        /// Follows requests through the application's sockets.
        Requests "requests",
        /// Asks about the sockets of endpoints.
        Sockets "sockets",
        /// Times calls into the GPU's driver.
        Driver "driver",
        /// Times calls of the GPU's user-space driver.
        Cuda "cuda",
        /// Times waits for fences, and jobs in the DRM scheduler.
        Fences "fences",
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

label_values! {
    /// What became of a span.
    SpanResult {
        /// The collector has it.
        Exported "exported",
        /// The collector has the message with it, and did not take this one.
        Rejected "rejected",
        /// The collector could not be reached, or did not take the message.
        Failed "failed",
        /// There were too many to be sent.
        Dropped "dropped",
    }
}
