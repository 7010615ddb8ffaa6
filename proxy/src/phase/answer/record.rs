//! An answer of an endpoint on its way to the store.

use bytes::Bytes;

use crate::{
    answers::{
        Recording,
        policy::{self, Unfit},
        recording::{Beginning, Useless},
        store::unix_now,
    },
    clock,
    outcome::Outcome,
    request::Request,
    snapshot::Route,
    stream::Kind,
    telemetry::metrics::Recorded,
    wire::ResponseHead,
};

/// The response of an endpoint begins, and is held to be stored if it may be.
pub fn record(request: &mut Request, route: &Route, head: &ResponseHead) {
    let Some(shelf) = &route.answers else { return };
    if request.asked.as_ref().is_none_or(|asked| asked.wish.no_store) {
        return;
    }
    match policy::terms(head.status, &head.fields, &shelf.settings) {
        Err(unfit) => shelf.metrics.recorded(unfit.into()),
        Ok(terms) => {
            let kind = Kind::of(head.fields.get("content-type"), None);
            let beginning = Beginning { status: head.status, terms, kind, at: unix_now() };
            let limit = shelf.settings.max_answer;
            let recording = Recording::begin(beginning, &head.fields, limit, clock::now());
            request.recording = Some(Box::new(recording));
        }
    }
}

/// The same for a response that is here as a whole.
pub fn record_whole(request: &mut Request, route: &Route, head: &ResponseHead, body: &Bytes) {
    record(request, route, head);
    if let Some(recording) = &mut request.recording {
        recording.data(body, clock::now());
        recording.end();
    }
}

/// Stores what was recorded of a request that has ended so.
pub fn store(request: &mut Request, route: &Route, outcome: Outcome) {
    let (Some(recording), Some(asked)) = (request.recording.take(), request.asked.take()) else {
        return;
    };
    let Some(shelf) = &route.answers else { return };
    let answer = match outcome {
        Outcome::Ok => recording.finish(asked.proof, asked.tags),
        _ => Err(Useless::Incomplete),
    };
    let result = match answer {
        Err(Useless::Incomplete) => Recorded::Incomplete,
        Err(Useless::TooLong) => Recorded::TooLong,
        Err(Useless::Trailers) => Recorded::Kind,
        Ok(answer) => {
            let keep = policy::keep(&answer.terms, &shelf.settings);
            match shelf.store.put(asked.key, &answer, keep) {
                true => Recorded::Stored,
                false => Recorded::NotAdmitted,
            }
        }
    };
    shelf.metrics.recorded(result);
}

impl From<Unfit> for Recorded {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Status => Recorded::Status,
            Unfit::Forbidden => Recorded::Forbidden,
            Unfit::Varies => Recorded::Varies,
            Unfit::Kind => Recorded::Kind,
        }
    }
}
