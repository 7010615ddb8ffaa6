//! A modelled client: asks once, listens to the answer, and may leave early.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Method;
use tokio::time::Sleep;

use super::world::World;
use crate::{
    chance, clock,
    deadline::Watchdog,
    gateway::{self, Cut},
    proxy::Proxy,
    relay::Upload,
    request::{Peer, Request},
    wire::{BodyLength, Downstream, Fields, Frame, RequestHead, ResponseHead, audience::Audience},
};

/// What one client asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) at: Duration,
    pub(crate) class: usize,
    pub(crate) prompt: usize,
    pub(crate) pieces: u32,
    pub(crate) streams: bool,
    /// How long it says that it waits.
    pub(crate) budget: Option<Duration>,
    /// When it leaves, after it has asked.
    pub(crate) leaves: Option<Duration>,
}

pub(crate) const CLASSES: [&str; 3] = ["interactive", "normal", "batch"];

/// Asks and stays to the end, as the request's own task does in the proxy.
pub(crate) async fn ask(proxy: Arc<Proxy>, world: Arc<World>, id: usize, wish: Wish) {
    let snapshot = proxy.snapshot.load_full();
    let peer = Arc::new(Peer { client_ip: "10.1.0.1".to_owned() });
    let body = body(&wish);
    let mut request = Request::new(snapshot, peer, head(id, &wish, body.len()), &mut chance::rng());
    request.upload = Upload::given(body);
    world.arrives(id, &wish);
    let leaves = wish.leaves.map(|after| Box::pin(tokio::time::sleep(after)));
    let listener = Listener { world: Arc::clone(&world), id, leaves };
    let mut client = Downstream::own(Box::new(listener));
    let (mut watchdog, mut cut) = (Watchdog::new(), Cut::watch(&proxy));
    let outcome = gateway::serve(&proxy, &mut request, &mut client, &mut watchdog, &mut cut).await;
    world.ends(id, outcome, &request, clock::now());
}

fn head(id: usize, wish: &Wish, length: usize) -> RequestHead {
    let mut fields = Fields::new();
    fields.append("host", "fleet");
    fields.append("content-type", "application/json");
    fields.append("content-length", length.to_string());
    fields.append("x-request-id", id.to_string());
    fields.append("x-pieces", wish.pieces.to_string());
    fields.append("x-priority", CLASSES[wish.class]);
    if let Some(budget) = wish.budget {
        fields.append("x-request-timeout-ms", budget.as_millis().to_string());
    }
    let mut head = RequestHead::for_target(Method::POST, fields, "/v1/completions", 11);
    head.body = BodyLength::Exact(length as u64);
    head
}

fn body(wish: &Wish) -> Bytes {
    let ends =
        format!("{{\"max_tokens\":{},\"stream\":{},\"prompt\":\"", wish.pieces, wish.streams);
    let filling = wish.prompt.saturating_sub(ends.len() + 2);
    (ends + &"x".repeat(filling) + "\"}").into()
}

/// The client's ears.
struct Listener {
    world: Arc<World>,
    id: usize,
    leaves: Option<Pin<Box<Sleep>>>,
}

impl Audience for Listener {
    fn head(&mut self, head: &ResponseHead) {
        self.world.heard_head(self.id, head.status);
    }

    fn frame(&mut self, frame: Frame) {
        match frame {
            Frame::Data(data) => self.world.heard(self.id, &data),
            Frame::Trailers(_) => {}
            Frame::End => self.world.heard_end(self.id),
        }
    }

    fn queued(&self) -> usize {
        0
    }

    fn poll_taken(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.leaves {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
