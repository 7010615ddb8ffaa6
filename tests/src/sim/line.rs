//! One accepted socket as hyper sees it, with the handles by which a fault reaches round hyper.
//!
//! [`Wire`] is the socket that hyper reads and writes. [`Line`] is what a request handler holds: it cannot touch the
//! socket, but it can order the connection to put bytes on it or to end it in a given way, make it trickle, wait until
//! what was written has left, and ask for the request head exactly as it came.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context as Cx, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::AsRawFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Sleep;

use super::context::lock;

/// The longest head that is kept as it came.
const HEAD_LIMIT: usize = 256 * 1024;

/// What a handler wants done with the socket itself.
#[derive(Debug)]
pub(crate) enum Order {
    /// Write these bytes now and go on; told when done.
    Inject(Bytes, oneshot::Sender<()>),
    /// RST.
    Reset,
    /// These bytes, then FIN.
    Finish(Bytes),
}

/// The handler's end of a connection.
pub(crate) struct Line {
    orders: mpsc::UnboundedSender<Order>,
    /// Pause after each byte in µs; 0 = write normally.
    trickle: AtomicU64,
    written: watch::Sender<u64>,
    /// Requests in progress on this connection.
    busy: watch::Sender<usize>,
    tap: Mutex<Tap>,
}

/// The head of the request being read, as it came.
#[derive(Default)]
struct Tap {
    bytes: Vec<u8>,
    complete: bool,
}

impl Line {
    pub(crate) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Order>) {
        let (orders, receiver) = mpsc::unbounded_channel();
        let line = Self {
            orders,
            trickle: AtomicU64::new(0),
            written: watch::Sender::new(0),
            busy: watch::Sender::new(0),
            tap: Mutex::default(),
        };
        (Arc::new(line), receiver)
    }

    /// Orders an ending. The caller then waits for ever: the connection is dropped under it.
    pub(crate) fn end(&self, order: Order) {
        // A connection that is gone already needs no ending.
        let _ = self.orders.send(order);
    }

    /// Puts raw bytes on the wire between what hyper writes.
    pub(crate) async fn inject(&self, bytes: impl Into<Bytes>) {
        let (done, wait) = oneshot::channel();
        self.end(Order::Inject(bytes.into(), done));
        // An error means that the connection ended meanwhile; the caller is about to be dropped.
        let _ = wait.await;
    }

    /// How many requests are in progress.
    pub(crate) fn busy(&self) -> watch::Receiver<usize> {
        self.busy.subscribe()
    }

    /// Writes byte by byte, `pause` apart, until the next request begins.
    pub(crate) fn trickle(&self, pause: Duration) {
        let micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.trickle.store(micros.max(1), Relaxed);
    }

    /// Bytes given to the kernel so far.
    pub(crate) fn written(&self) -> u64 {
        *self.written.borrow()
    }

    /// Resolves when more than `before` bytes have been given to the kernel.
    pub(crate) fn written_beyond(&self, before: u64) -> impl Future<Output = ()> + Send + 'static {
        let mut written = self.written.subscribe();
        async move {
            // An error means that the connection is gone, and so is whoever waits.
            let _ = written.wait_for(|bytes| *bytes > before).await;
        }
    }

    /// The head of the latest request as it came on the wire; none on h2 or when it came with the one before.
    pub(crate) fn take_head(&self) -> Option<String> {
        let tap = lock(&self.tap);
        let head = tap.complete.then(|| String::from_utf8_lossy(&tap.bytes).into_owned());
        head.filter(|head| !head.starts_with("PRI * HTTP/2.0"))
    }

    /// A request has begun. What slowed the one before down is over.
    pub(crate) fn request_began(&self) {
        if *self.busy.borrow() == 0 {
            self.trickle.store(0, Relaxed);
        }
        self.busy.send_modify(|busy| *busy += 1);
    }

    /// A request is over: the next bytes belong to the next head.
    pub(crate) fn request_ended(&self) {
        *lock(&self.tap) = Tap::default();
        self.busy.send_modify(|busy| *busy -= 1);
    }

    fn saw(&self, bytes: &[u8]) {
        let mut tap = lock(&self.tap);
        if tap.complete || tap.bytes.len() > HEAD_LIMIT {
            return;
        }
        let from = tap.bytes.len().saturating_sub(3);
        tap.bytes.extend_from_slice(bytes);
        if let Some(end) = tap.bytes[from..].windows(4).position(|four| four == b"\r\n\r\n") {
            tap.bytes.truncate(from + end + 4);
            tap.complete = true;
        }
    }
}

/// The socket, as hyper drives it.
pub(crate) struct Wire {
    stream: Arc<TcpStream>,
    line: Arc<Line>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    pub(crate) fn new(stream: Arc<TcpStream>, line: Arc<Line>) -> Self {
        Self { stream, line, pause: None }
    }

    fn write(
        &self,
        cx: &mut Cx<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    self.line.written.send_modify(|written| *written += count as u64);
                    return Poll::Ready(Ok(count));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn write_byte(&mut self, cx: &mut Cx<'_>, byte: &[u8], gap: u64) -> Poll<io::Result<usize>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let count = ready!(self.write(cx, |stream| stream.try_write(byte)))?;
        self.pause = Some(Box::pin(tokio::time::sleep(Duration::from_micros(gap))));
        Poll::Ready(Ok(count))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    let start = buf.filled().len();
                    buf.advance(count);
                    self.line.saw(&buf.filled()[start..]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Cx<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.line.trickle.load(Relaxed) {
            0 => this.write(cx, |stream| stream.try_write(buf)),
            gap => this.write_byte(cx, &buf[..buf.len().min(1)], gap),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.line.trickle.load(Relaxed) > 0 {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[][..], |buf| buf));
        }
        self.write(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Cx<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Cx<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(close_write(&self.stream))
    }
}

/// Sends FIN and keeps reading possible.
pub(crate) fn close_write(stream: &TcpStream) -> io::Result<()> {
    match shutdown(stream.as_raw_fd(), Shutdown::Write) {
        // The peer was faster.
        Ok(()) | Err(nix::errno::Errno::ENOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
