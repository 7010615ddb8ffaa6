//! The way to the endpoints: a dialled address is a pipe to a modelled engine instead of a socket.

use std::{
    cell::RefCell, collections::HashMap, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc,
};

use pingora_core::protocols::Stream;

use super::engine::Engine;

thread_local! {
    static ENGINES: RefCell<HashMap<SocketAddr, Arc<Engine>>> = RefCell::default();
}

type Dialling = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

/// These are who can be dialled on this thread from now on.
pub(crate) fn consists_of(engines: &[Arc<Engine>]) {
    let by_address = engines.iter().map(|engine| (engine.address, Arc::clone(engine)));
    ENGINES.with_borrow_mut(|known| *known = by_address.collect());
}

/// A connection to the engine at this address, if there is one.
pub(crate) fn dial(address: SocketAddr) -> Option<Dialling> {
    let engine = ENGINES.with_borrow(|known| known.get(&address).cloned())?;
    Some(Box::pin(async move { engine.accept().await.map(|pipe| Box::new(pipe) as Stream) }))
}
