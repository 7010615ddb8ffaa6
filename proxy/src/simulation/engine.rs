//! A modelled endpoint: so many slots, a time for each token of a prompt and each piece of an answer, and faults.
//!
//! It speaks HTTP/1.1 over a pipe, so that what breaks between it and the proxy breaks as it does on a network. Work is
//! done at a speed that a fault changes in the middle; a request whose connection is closed frees its slot at once.

use std::{future::pending, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::{Notify, Semaphore},
    time::{Instant, sleep},
};

use super::world::World;
use crate::chance;

/// How an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    /// As it should.
    Well,
    /// So many times slower.
    Slow(f64),
    /// It accepts everything and works on nothing.
    Hung,
    /// Nobody listens, and what was open is closed.
    Crashed,
    /// Whoever connects hears nothing.
    Dark,
    /// It answers with this status at once.
    Says(u16),
    /// It breaks off in the middle of its answers.
    Breaks,
}

/// What requests cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prices {
    /// Before any first byte.
    pub(crate) base: Duration,
    /// For each byte of the prompt.
    pub(crate) byte: Duration,
    /// For each piece of the answer.
    pub(crate) piece: Duration,
    /// To connect.
    pub(crate) connect: Duration,
}

/// One endpoint.
pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    index: usize,
    prices: Prices,
    slots: Semaphore,
    mode: Mutex<Mode>,
    /// Wakes in the order in which was waited, so that a seed is one course of events.
    changed: Notify,
    world: Arc<World>,
}

/// What a request asks for.
pub(crate) struct Asked {
    pub(crate) id: usize,
    prompt: usize,
    pieces: u32,
    streams: bool,
}

impl Engine {
    pub(crate) fn new(index: usize, slots: usize, prices: Prices, world: &Arc<World>) -> Arc<Self> {
        let address = SocketAddr::from(([10, 0, 0, index as u8 + 1], 8000));
        let (slots, mode, changed) = (Semaphore::new(slots), Mutex::new(Mode::Well), Notify::new());
        Arc::new(Engine { address, index, prices, slots, mode, changed, world: Arc::clone(world) })
    }

    pub(crate) fn become_(&self, mode: Mode) {
        *self.mode.lock() = mode;
        self.changed.notify_waiters();
    }

    pub(crate) fn mode(&self) -> Mode {
        *self.mode.lock()
    }

    pub(crate) async fn accept(self: Arc<Self>) -> io::Result<DuplexStream> {
        sleep(self.prices.connect).await;
        match self.mode() {
            Mode::Crashed => return Err(io::ErrorKind::ConnectionRefused.into()),
            Mode::Dark => pending::<()>().await,
            _ => {}
        }
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(self.until_crash(far));
        Ok(near)
    }

    async fn until_crash(self: Arc<Self>, stream: DuplexStream) {
        let crash = async {
            loop {
                let changed = self.changed.notified();
                if self.mode() == Mode::Crashed {
                    return;
                }
                changed.await;
            }
        };
        select(pin!(self.converse(stream)), pin!(crash)).await;
    }

    async fn converse(&self, stream: DuplexStream) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut read = Vec::new();
        while let Some(asked) = next_request(&mut reader, &mut read).await {
            let attempt = self.world.attempt_begins(asked.id, self.index);
            let answered = {
                let answer = pin!(self.answer(&asked, attempt.number, &mut writer));
                // Nobody sends a second request before the first has been answered: this is the end.
                match select(answer, pin!(reader.read_u8())).await {
                    Either::Left((answered, _)) => answered,
                    Either::Right(_) => return,
                }
            };
            if !matches!(answered, Ok(true)) {
                return;
            }
        }
    }

    /// Whether the connection can carry another request.
    async fn answer(
        &self,
        asked: &Asked,
        attempt: usize,
        writer: &mut WriteHalf<DuplexStream>,
    ) -> io::Result<bool> {
        if let Mode::Says(status) = self.mode() {
            sleep(Duration::from_millis(2)).await;
            let head = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
            writer.write_all(head.as_bytes()).await?;
            return Ok(true);
        }
        // Closed with the engine only, which outlives its connections.
        let _slot = self.slots.acquire().await.map_err(io::Error::other)?;
        let varies = chance::rng().random_range(0.8..1.25);
        let prompt = self.prices.base + self.prices.byte * asked.prompt as u32;
        self.work(prompt.mul_f64(varies)).await;
        if asked.streams {
            self.stream(asked, attempt, writer).await
        } else {
            self.whole(asked, attempt, writer).await
        }
    }

    async fn stream(
        &self,
        asked: &Asked,
        attempt: usize,
        writer: &mut WriteHalf<DuplexStream>,
    ) -> io::Result<bool> {
        const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                            transfer-encoding: chunked\r\n\r\n";
        let mut text = HEAD.to_owned();
        for piece in 0..asked.pieces {
            if piece > 0 {
                self.work(self.prices.piece).await;
            }
            if piece > 0 && self.mode() == Mode::Breaks {
                return Ok(false);
            }
            let event = format!("data: {attempt}\n\n");
            text += &format!("{:x}\r\n{event}\r\n", event.len());
            writer.write_all(text.as_bytes()).await?;
            self.world.spoke(attempt);
            text.clear();
        }
        writer.write_all(b"0\r\n\r\n").await?;
        Ok(true)
    }

    async fn whole(
        &self,
        asked: &Asked,
        attempt: usize,
        writer: &mut WriteHalf<DuplexStream>,
    ) -> io::Result<bool> {
        self.work(self.prices.piece * asked.pieces).await;
        let body = format!("data: {attempt}\n\n").repeat(asked.pieces as usize);
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        if self.mode() == Mode::Breaks {
            writer.write_all(head.as_bytes()).await?;
            return Ok(false);
        }
        writer.write_all((head + &body).as_bytes()).await?;
        self.world.spoke(attempt);
        Ok(true)
    }

    /// Works for as long as this takes when all is well.
    async fn work(&self, time: Duration) {
        let mut left = time.as_secs_f64();
        while left > 0.0 {
            let changed = self.changed.notified();
            let speed = match self.mode() {
                Mode::Slow(times) => 1.0 / times,
                Mode::Hung => 0.0,
                _ => 1.0,
            };
            let began = Instant::now();
            let rest = (speed > 0.0).then(|| Duration::from_secs_f64(left / speed));
            let done = async {
                match rest {
                    Some(rest) => sleep(rest).await,
                    None => pending().await,
                }
            };
            match select(pin!(done), pin!(changed)).await {
                Either::Left(_) => return,
                Either::Right(_) => left -= began.elapsed().as_secs_f64() * speed,
            }
        }
    }
}

/// The next request on the connection; `None` when it is closed.
async fn next_request(reader: &mut ReadHalf<DuplexStream>, read: &mut Vec<u8>) -> Option<Asked> {
    loop {
        if let Some(end) = memchr::memmem::find(read, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            let prompt = number(&head, "content-length: ")?;
            if read.len() >= end + 4 + prompt {
                let body = String::from_utf8_lossy(&read[end + 4..end + 4 + prompt]);
                let streams = body.contains("\"stream\":true");
                read.drain(..end + 4 + prompt);
                let id = number(&head, "x-request-id: ")?;
                let pieces = number(&head, "x-pieces: ")? as u32;
                return Some(Asked { id, prompt, pieces, streams });
            }
        }
        if reader.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
}

fn number(head: &str, name: &str) -> Option<usize> {
    let at = head.find(name)? + name.len();
    head[at..].lines().next()?.trim().parse().ok()
}
