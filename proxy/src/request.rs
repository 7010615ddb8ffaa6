//! One request: what is known of it from its head to its last byte.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_config::validated::BudgetField;
use rand::{Rng, RngExt};

use crate::{
    admission::Admitted,
    answers::Recording,
    clock,
    endpoint::Endpoint,
    learning::Learning,
    outcome::Outcome,
    phase::{answer::Asked, batch::Solo, bound::Allowed},
    probes::Span,
    relay::{Packer, Progress, Upload},
    signal::orca::Format,
    snapshot::{Route, Snapshot, auto_error_format},
    telemetry::{
        metrics::{ArmMetrics, HedgeResult},
        trace::Trace,
    },
    upstream::Backend,
    wire::{BodyLength, RequestHead, fields::tokens},
};

/// What a connection tells about each of its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The client's address as text.
    pub client_ip: String,
}

impl Peer {
    /// A connection from `client`.
    pub fn new(client: SocketAddr) -> Self {
        let client_ip = match client.ip() {
            IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
            ip @ IpAddr::V4(_) => ip,
        };
        Peer { client_ip: client_ip.to_string() }
    }
}

/// A request on its way.
pub struct Request {
    /// The configuration that applies to it, to the end.
    pub snapshot: Arc<Snapshot>,
    /// Where it came from.
    pub peer: Arc<Peer>,
    /// Its head; what is sent on once it has been routed.
    pub head: RequestHead,
    /// The head as it came, for the log, taken when it is rewritten.
    pub original_target: Option<String>,
    /// Its body.
    pub upload: Upload,
    /// Its response, as far as it has come.
    pub progress: Progress,
    /// The route that took it.
    pub route: Option<Arc<Route>>,
    /// The backend of the arm it was given.
    pub arm: Option<Arc<Backend>>,
    /// A tester picked the arm.
    pub arm_forced: bool,
    /// The head tells the endpoint where it came from: the last of the chain is our own word.
    pub origin_told: bool,
    /// What its arm has learned, where the route learns its deadlines.
    pub learning: Option<Arc<Learning>>,
    /// How long it may take.
    pub allowed: Allowed,
    /// The series it counts in: of its arm, its route, or of no route.
    pub metrics: Arc<ArmMetrics>,
    /// The `model` it asks for.
    pub model: Option<String>,
    /// The format in which the client asks for a load report.
    pub report_asked: Option<Format>,
    /// What encodes its response, once that has broken off.
    pub packer: Option<Packer>,
    /// The places it holds, and what it was charged.
    pub admitted: Admitted,
    /// It could have shared a call and goes by itself.
    pub solo: Option<Solo>,
    /// Under what its answer is stored, if it may be.
    pub asked: Option<Box<Asked>>,
    /// Its response, held to be stored.
    pub recording: Option<Box<Recording>>,
    /// What happens to it, where it is traced.
    pub trace: Option<Box<Trace>>,
    /// The id it came with, or ours.
    pub id: String,
    /// When its head was here.
    pub start: Instant,
    /// What happened so far.
    pub trail: Trail,
}

/// What the attempts left behind.
#[derive(Default)]
pub struct Trail {
    /// How many attempts were made.
    pub attempts: u32,
    /// How many of them failed by the fault of their endpoint and were followed by another.
    pub faults: u32,
    /// How many attempts were hedges.
    pub hedges: u32,
    /// What became of the last hedge.
    pub hedge: Option<HedgeResult>,
    /// Endpoints that were tried, in order.
    pub tried: Vec<SocketAddr>,
    /// The last of them: where the response came from, if one came.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Which bytes of its connection to it the request was, where the kernel tells what became of them.
    pub followed: Option<Span>,
    /// How long it waited for places; `None` when it did not have to.
    pub queued: Option<Duration>,
    /// How long the last connection took to make; `None` when it was used again.
    pub connect: Option<Duration>,
    /// How long the first byte of the last attempt is waited for.
    pub first_byte_limit: Option<Duration>,
    /// How long the pieces of its response may be apart.
    pub gap_limit: Option<Duration>,
    /// The status that was sent.
    pub status: Option<u16>,
    /// How it would have ended, had no stored answer stood in.
    pub averted: Option<Outcome>,
    /// Its response is that of a call which others listen to as well.
    pub shares_call: bool,
}

/// A request that ends without the response of an endpoint.
#[derive(Debug)]
pub struct Failure {
    /// How it ended.
    pub outcome: Outcome,
    /// What happened, for the client and the log.
    pub detail: String,
    /// When to try again, where that is known.
    pub retry: Option<Retry>,
}

/// When a client should try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After so long.
    After(Duration),
    /// Not at all: it would end the same way.
    Never,
}

impl Failure {
    /// A failure and what happened.
    pub fn new(outcome: Outcome, detail: impl Into<String>) -> Self {
        Failure { outcome, detail: detail.into(), retry: None }
    }

    /// The same, with what is known of another try.
    #[must_use]
    pub fn retry(self, retry: Retry) -> Self {
        Failure { retry: Some(retry), ..self }
    }
}

impl Request {
    /// A request whose head has just been read.
    pub fn new(
        snapshot: Arc<Snapshot>,
        peer: Arc<Peer>,
        head: RequestHead,
        rng: &mut impl Rng,
    ) -> Self {
        let limits = &snapshot.config.limits;
        let upload = Upload::new(
            head.body == BodyLength::Empty,
            head.expects_continue(),
            limits.body_bytes,
            limits.body_scan,
        );
        let id = request_id(&head, rng);
        let metrics = Arc::clone(&snapshot.unrouted);
        Request {
            snapshot,
            peer,
            head,
            original_target: None,
            upload,
            progress: Progress::new(),
            route: None,
            arm: None,
            arm_forced: false,
            origin_told: false,
            learning: None,
            allowed: Allowed::default(),
            metrics,
            model: None,
            report_asked: None,
            packer: None,
            admitted: Admitted::default(),
            solo: None,
            asked: None,
            recording: None,
            trace: None,
            id,
            start: clock::now(),
            trail: Trail::default(),
        }
    }

    /// The same request once more, with its whole body, made for several.
    pub fn again(&self) -> Self {
        let mut head = self.head.clone();
        // The answer is for clients that may read different codings.
        head.fields.remove("accept-encoding");
        head.fields.remove("expect");
        // What one client has time for bounds nobody else.
        BudgetField::ALL.iter().for_each(|field| head.fields.remove(field.name()));
        let start = clock::now();
        let own = |route: &Arc<Route>| self.allowed.of_our_own(route, start);
        let body = self.upload.whole();
        if !matches!(head.body, BodyLength::Empty) {
            head.body = BodyLength::Exact(body.len() as u64);
            head.fields.set("content-length", body.len().to_string());
        }
        Request {
            snapshot: Arc::clone(&self.snapshot),
            peer: Arc::clone(&self.peer),
            head,
            original_target: None,
            upload: Upload::given(body),
            progress: Progress::new(),
            route: self.route.clone(),
            arm: self.arm.clone(),
            arm_forced: self.arm_forced,
            origin_told: false,
            metrics: Arc::clone(&self.metrics),
            model: self.model.clone(),
            report_asked: None,
            packer: None,
            admitted: Admitted::default(),
            solo: None,
            asked: self.asked.clone(),
            recording: None,
            learning: self.learning.clone(),
            allowed: self.route.as_ref().map(own).unwrap_or_default(),
            trace: self.trace.as_ref().map(|trace| Box::new(trace.of_call())),
            id: self.id.clone(),
            start,
            trail: Trail::default(),
        }
    }

    /// Notes what happens to it, where it is traced.
    pub fn note(&mut self, note: impl FnOnce(&mut Trace)) {
        if let Some(trace) = &mut self.trace {
            note(trace);
        }
    }

    /// The path the client asked for.
    pub fn path(&self) -> &str {
        let target = self.original_target.as_deref().unwrap_or(self.head.target());
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// The shape of an error body for this request.
    pub fn error_format(&self) -> crate::outcome::ErrorFormat {
        match &self.route {
            Some(route) => route.error_format(self.path()),
            None => auto_error_format(self.path()),
        }
    }

    /// Whether it is a call of gRPC.
    pub fn is_grpc(&self) -> bool {
        let kind = self.head.fields.get("content-type").unwrap_or_default();
        kind.strip_prefix(b"application/grpc").is_some_and(|rest| !rest.starts_with(b"-web"))
    }

    /// Who asked, as far as the proxies in front are believed: each of them added whom it was asked by.
    pub fn client_ip(&self) -> Option<IpAddr> {
        let hops = self.snapshot.config.forwarding.trusted_hops;
        let own = usize::from(self.origin_told);
        let believed = || {
            let chain = || self.head.fields.get_all("x-forwarded-for").flat_map(tokens);
            let ip = chain().nth(chain().count().saturating_sub(hops + own))?;
            std::str::from_utf8(ip).ok()?.parse().ok()
        };
        let believed = if hops > 0 { believed() } else { None };
        believed.or_else(|| self.peer.client_ip.parse().ok())
    }
}

/// The client's id where it has a sensible one, else 128 random bits.
fn request_id(head: &RequestHead, rng: &mut impl Rng) -> String {
    let sensible =
        |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    match head.fields.get_str("x-request-id").filter(sensible) {
        Some(id) => id.to_owned(),
        None => hex128(rng.random()),
    }
}

/// 32 hexadecimal digits, without the detour through the formatter.
pub fn hex128(bits: u128) -> String {
    let nibble = |at: u32| char::from(b"0123456789abcdef"[(bits >> (124 - 4 * at)) as usize & 15]);
    (0..32).map(nibble).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_are_those_of_the_formatter() {
        for bits in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0011_2233_4455_6677] {
            assert_eq!(hex128(bits), format!("{bits:032x}"));
        }
    }
}
