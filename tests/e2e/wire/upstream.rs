//! An endpoint whose every byte the test writes: for what no server would send, and for seeing the very bytes that the
//! proxy sends.

use outrigger_tests::harness::{Proxy, Raw, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A listening endpoint.
pub(crate) struct Upstream(TcpListener);

/// A connection that the proxy made to it.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Upstream {
    /// Listens on a free port.
    pub(crate) async fn bind() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a port is free"))
    }

    /// A proxy that sends everything here.
    pub(crate) async fn behind_proxy() -> (Self, Proxy) {
        let upstream = Self::bind().await;
        let proxy = super::proxy_to(&upstream.endpoint(), "").await;
        (upstream, proxy)
    }

    /// Its address.
    pub(crate) fn endpoint(&self) -> String {
        self.0.local_addr().expect("a listener has an address").to_string()
    }

    /// Waits for the next connection of the proxy.
    pub(crate) async fn accept(&self) -> Connection {
        let accepted = within("a connection of the proxy", self.0.accept()).await;
        let (stream, _) = accepted.expect("a listener accepts");
        stream.set_nodelay(true).expect("a fresh socket takes options");
        Connection { stream, buffer: Vec::new() }
    }

    /// Waits for a connection and for the head of the request on it.
    pub(crate) async fn request(&self) -> (Connection, String) {
        let mut connection = self.accept().await;
        let head = connection.until("\r\n\r\n").await;
        (connection, head)
    }
}

impl Connection {
    /// Reads up to and with `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        loop {
            let end = end.as_bytes();
            if let Some(at) = self.buffer.windows(end.len()).position(|part| part == end) {
                let text = self.buffer.drain(..at + end.len()).collect();
                return String::from_utf8(text).expect("the test sent text");
            }
            assert!(self.fill().await, "the proxy closed after {:?}", self.text());
        }
    }

    /// Sends these bytes.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = within("sending to the proxy", self.stream.write_all(bytes.as_ref())).await;
        sent.expect("the proxy reads what is sent");
    }

    /// Sends these bytes and then FIN.
    pub(crate) async fn finish(&mut self, bytes: impl AsRef<[u8]>) {
        self.send(bytes).await;
        self.stream.shutdown().await.expect("an open socket can be half-closed");
    }

    /// Ends the connection by RST.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().expect("an open socket takes options");
    }

    /// Waits until the proxy has closed its side, and gives what came before that.
    pub(crate) async fn rest(&mut self) -> String {
        String::from_utf8(self.rest_bytes().await).expect("the test sent text")
    }

    /// The same for what is no text.
    pub(crate) async fn rest_bytes(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.buffer)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// False at the end, whether by FIN or by RST.
    async fn fill(&mut self) -> bool {
        let read = within("bytes of the proxy", self.stream.read_buf(&mut self.buffer)).await;
        matches!(read, Ok(1..))
    }
}

/// Sends a GET through a proxy to an endpoint that answers with exactly `answer` and FIN; the client is handed back to
/// read what became of it.
pub(crate) async fn get_answered_with(answer: &str) -> (Raw, Proxy) {
    let (upstream, proxy) = Upstream::behind_proxy().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let (mut connection, _) = upstream.request().await;
    connection.finish(answer).await;
    (raw, proxy)
}
