//! Accepting, serving and ending connections.
//!
//! hyper serves the good path. A handler that wants something hyper would never do sends an [`Order`]; the connection
//! task carries it out on the socket itself, which it shares with hyper. Ending a connection means dropping hyper's half
//! (and with it the handlers) and finishing the socket here.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::context::Context;
use super::line::{Line, Order, Wire, close_write};
use super::routes;

/// How long a connection that was finished early goes on reading what the peer still sends: closing a socket with
/// unread bytes would turn the FIN into a RST.
const LINGER: Duration = Duration::from_secs(2);

/// A port that stays ours while nothing listens on it.
pub(crate) struct Port {
    address: SocketAddr,
    /// Bound, never listening: keeps the port from everyone else between two listeners.
    _reserve: TcpSocket,
}

impl Port {
    pub(crate) fn reserve(address: SocketAddr) -> io::Result<Self> {
        let reserve = bound(address)?;
        Ok(Self { address: reserve.local_addr()?, _reserve: reserve })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn listen(&self) -> io::Result<TcpListener> {
        bound(self.address)?.listen(4096)
    }
}

fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Serves the port for ever; while the simulator refuses, nobody listens on it.
pub(crate) async fn serve_port(port: Port, first: TcpListener, context: Arc<Context>) -> io::Error {
    let mut listening = context.listening();
    let mut connections = JoinSet::new();
    let mut listener = Some(first);
    loop {
        let wanted = *listening.borrow_and_update();
        if wanted != listener.is_some() {
            listener = match wanted.then(|| port.listen()).transpose() {
                Ok(listener) => listener,
                Err(error) => return error,
            };
            context.listener_is(wanted);
        }
        tokio::select! {
            accepted = accept(listener.as_ref()) => if let Ok((stream, _)) = accepted {
                connections.spawn(serve(stream, Arc::clone(&context), true));
            },
            _ = listening.changed() => {}
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves the control address for ever, whatever the faults.
pub(crate) async fn serve_control(listener: TcpListener, context: Arc<Context>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(serve(stream, Arc::clone(&context), false));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Counts an open connection.
struct Open(Arc<Context>);

impl Open {
    fn new(context: &Arc<Context>) -> Self {
        context.connected();
        Self(Arc::clone(context))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.disconnected();
    }
}

async fn serve(stream: TcpStream, context: Arc<Context>, refusable: bool) {
    let _open = refusable.then(|| Open::new(&context));
    // A socket that dies here is noticed by the first read.
    let _ = stream.set_nodelay(true);
    let stream = Arc::new(stream);
    let (line, mut orders) = Line::new();
    // From the very beginning: a client may hang everything up as soon as it has an answer.
    let hang_ups = context.hang_ups();
    let ending = {
        let hyper = pin!(serve_http(&stream, &line, &context));
        let closing = pin!(closing(&context, line.busy(), hang_ups, refusable));
        conduct(&stream, &mut orders, hyper, closing).await
    };
    if let Some(order) = ending {
        finish(stream, order).await;
    }
}

async fn serve_http(stream: &Arc<TcpStream>, line: &Arc<Line>, context: &Arc<Context>) {
    let wire = TokioIo::new(Wire::new(Arc::clone(stream), Arc::clone(line)));
    let service = service_fn(|request| {
        let (context, line) = (Arc::clone(context), Arc::clone(line));
        async move { Ok::<_, Infallible>(routes::answer(context, line, request).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().max_buf_size(1 << 20);
    server.http2().max_header_list_size(1 << 20).initial_stream_window_size(1 << 20);
    // How a connection failed is for the client to tell.
    let _ = server.serve_connection_with_upgrades(wire, service).await;
}

/// Resolves when this connection is to be closed although nobody asked on it.
async fn closing(
    context: &Context,
    mut busy: watch::Receiver<usize>,
    mut hang_ups: watch::Receiver<u64>,
    refusable: bool,
) {
    let mut listening = context.listening();
    let refused = async {
        loop {
            // Neither sender goes away before this connection.
            let _ = listening.wait_for(|listening| !listening).await;
            let _ = busy.wait_for(|busy| *busy == 0).await;
            if !*listening.borrow() {
                return;
            }
        }
    };
    tokio::select! {
        () = refused, if refusable => {}
        _ = hang_ups.changed(), if refusable => {}
        else => std::future::pending().await,
    }
}

/// Drives hyper and carries out orders until one of them, or the peer, ends the connection.
async fn conduct(
    stream: &TcpStream,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    mut hyper: std::pin::Pin<&mut impl Future<Output = ()>>,
    mut closing: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> Option<Order> {
    loop {
        tokio::select! {
            biased;
            Some(order) = orders.recv() => match order {
                Order::Inject(bytes, done) => {
                    write_all(stream, &bytes).await;
                    // The handler may be gone with its request.
                    let _ = done.send(());
                }
                ending @ (Order::Reset | Order::Finish(_)) => return Some(ending),
            },
            () = &mut hyper => return None,
            () = &mut closing => return Some(Order::Finish(Bytes::new())),
        }
    }
}

async fn finish(stream: Arc<TcpStream>, order: Order) {
    match order {
        Order::Reset => {
            // If the socket is gone already, there is nobody left to reset.
            let _ = stream.set_zero_linger();
        }
        Order::Finish(bytes) | Order::Inject(bytes, _) => {
            write_all(&stream, &bytes).await;
            let _ = close_write(&stream);
            let _ = tokio::time::timeout(LINGER, drain(&stream)).await;
        }
    }
}

/// Writes everything, or as much as the peer takes.
async fn write_all(stream: &TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() && stream.writable().await.is_ok() {
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Reads until the peer closes.
async fn drain(stream: &TcpStream) {
    let mut scratch = vec![0; 64 * 1024];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut scratch) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
