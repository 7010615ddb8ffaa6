//! A server that answers every connection as a test wants: metrics pages and agents that no engine would have.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use outrigger_tests::harness::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a connection gets.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    /// These bytes, and then the end.
    This(Vec<u8>),
    /// These bytes, and nothing more for ever.
    AndHold(Vec<u8>),
    /// These bytes once, and then the others again and again for ever.
    AndOn(Vec<u8>, Vec<u8>),
}

/// What the connection gets that is the n-th, from 1.
type Script = Box<dyn FnMut(u64) -> Say + Send>;

/// A listening server; dropping it closes its port and its connections.
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Script>>,
    asked: watch::Sender<u64>,
    task: JoinHandle<()>,
}

/// The second address of this machine that stubs and simulators are put on.
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A whole HTTP answer with this page.
pub(crate) fn page(body: &str) -> Say {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\n";
    Say::This(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

/// An HTTP answer without a page.
pub(crate) fn status(code: u16) -> Say {
    Say::This(format!("HTTP/1.1 {code} No\r\ncontent-length: 0\r\n\r\n").into_bytes())
}

/// A line of an agent.
pub(crate) fn line(text: &str) -> Say {
    Say::This(format!("{text}\n").into_bytes())
}

impl Stub {
    /// A server that speaks first.
    pub(crate) async fn agent(at: SocketAddr, say: Say) -> Self {
        let listener = bind(at).await.expect("an address to listen at");
        Self::run(listener, false, say)
    }

    /// Two servers on one port, one beside each of two addresses. Those that listen wait for an HTTP request before they
    /// answer; others speak first.
    pub(crate) async fn pair(listens: bool, first: Say, second: Say) -> (Self, Self) {
        within("a port that is free at both addresses", async {
            loop {
                let here = bind(any_port(Ipv4Addr::LOCALHOST)).await.expect("a free port");
                let port = here.local_addr().expect("a port").port();
                if let Ok(there) = bind((ELSEWHERE, port).into()).await {
                    return (Self::run(here, listens, first), Self::run(there, listens, second));
                }
            }
        })
        .await
    }

    fn run(listener: TcpListener, listens: bool, say: Say) -> Self {
        let address = listener.local_addr().expect("a bound socket has an address");
        let script: Script = Box::new(move |_| say.clone());
        let (script, asked) = (Arc::new(Mutex::new(script)), watch::Sender::new(0));
        let task = tokio::spawn(serve(listener, listens, Arc::clone(&script), asked.clone()));
        Self { address, script, asked, task }
    }

    /// Says this from now on.
    pub(crate) fn say(&self, say: Say) {
        self.script(move |_| say.clone());
    }

    /// Says what `script` says from now on.
    pub(crate) fn script(&self, script: impl FnMut(u64) -> Say + Send + 'static) {
        *self.script.lock().expect("no script panics") = Box::new(script);
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> u64 {
        *self.asked.borrow()
    }

    /// Waits until it has been asked `more` times from now on, so that `more - 1` of the answers have been taken.
    pub(crate) async fn asked_again(&self, more: u64) {
        let (mut asked, wanted) = (self.asked.subscribe(), self.asked() + more);
        let reached = within("a stub to be asked", asked.wait_for(|asked| *asked >= wanted)).await;
        assert!(reached.is_ok());
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Any free port of an address.
pub(crate) fn any_port(ip: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(ip.into(), 0)
}

async fn bind(at: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(at).await
}

async fn serve(
    listener: TcpListener,
    listens: bool,
    script: Arc<Mutex<Script>>,
    asked: watch::Sender<u64>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                asked.send_modify(|asked| *asked += 1);
                let nth = *asked.borrow();
                let say = script.lock().expect("no script panics")(nth);
                connections.spawn(answer(stream, listens, say));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Whatever the peer does with it: it may have heard enough and be gone.
async fn answer(mut stream: TcpStream, listens: bool, say: Say) -> std::io::Result<()> {
    let mut request = Vec::new();
    while listens && !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    match say {
        Say::This(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
        }
        Say::AndHold(bytes) => stream.write_all(&bytes).await?,
        Say::AndOn(bytes, more) => {
            stream.write_all(&bytes).await?;
            loop {
                stream.write_all(&more).await?;
            }
        }
    }
    // Until the peer closes, or this server ends.
    while stream.read_buf(&mut request).await? > 0 {
        request.clear();
    }
    Ok(())
}
