//! A record that outlives its request, for a line that is written when the kernel's part of its timeline is known.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::Record;
use crate::{outcome::Outcome, probes::Timeline};

/// What a [`Record`] says, without what it borrows.
#[derive(Debug)]
pub struct Kept {
    time: SystemTime,
    request_id: Box<str>,
    trace_id: Box<str>,
    client: Option<IpAddr>,
    method: Box<str>,
    host: Box<[u8]>,
    path: Box<[u8]>,
    route: Box<str>,
    arm: Box<str>,
    endpoint: Box<str>,
    model: Box<str>,
    protocol: Box<str>,
    status: u16,
    outcome: Outcome,
    duration: Duration,
    first_byte: Option<Duration>,
    deadline: Option<Duration>,
    upstream_connect: Option<Duration>,
    queued: Option<Duration>,
    attempts: u32,
    hedge: Box<str>,
    bytes_in: u64,
    bytes_out: u64,
    chunks: u64,
    tokens_in: Option<u64>,
    tokens_out: Option<u64>,
    user_agent: Box<[u8]>,
}

impl Kept {
    /// All that the record says.
    #[must_use]
    pub fn of(record: &Record<'_>) -> Self {
        Kept {
            time: record.time,
            request_id: record.request_id.into(),
            trace_id: record.trace_id.into(),
            client: record.client,
            method: record.method.into(),
            host: record.host.into(),
            path: record.path.into(),
            route: record.route.into(),
            arm: record.arm.into(),
            endpoint: record.endpoint.into(),
            model: record.model.into(),
            protocol: record.protocol.into(),
            status: record.status,
            outcome: record.outcome,
            duration: record.duration,
            first_byte: record.first_byte,
            deadline: record.deadline,
            upstream_connect: record.upstream_connect,
            queued: record.queued,
            attempts: record.attempts,
            hedge: record.hedge.into(),
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            chunks: record.chunks,
            tokens_in: record.tokens_in,
            tokens_out: record.tokens_out,
            user_agent: record.user_agent.into(),
        }
    }

    /// The record again, with what the kernel saw.
    #[must_use]
    pub fn with(&self, app: Option<Timeline>) -> Record<'_> {
        Record {
            time: self.time,
            request_id: &self.request_id,
            trace_id: &self.trace_id,
            client: self.client,
            method: &self.method,
            host: &self.host,
            path: &self.path,
            route: &self.route,
            arm: &self.arm,
            endpoint: &self.endpoint,
            model: &self.model,
            protocol: &self.protocol,
            status: self.status,
            outcome: self.outcome,
            duration: self.duration,
            first_byte: self.first_byte,
            deadline: self.deadline,
            upstream_connect: self.upstream_connect,
            queued: self.queued,
            attempts: self.attempts,
            hedge: &self.hedge,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            chunks: self.chunks,
            tokens_in: self.tokens_in,
            tokens_out: self.tokens_out,
            user_agent: &self.user_agent,
            app,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::tests::sample;
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        let record = sample();
        assert_eq!(format!("{:?}", Kept::of(&record).with(record.app)), format!("{record:?}"));
    }
}
