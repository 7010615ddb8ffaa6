//! The demo's clients: a few people who chat, each reading a streamed answer to its end before asking again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail};

use super::http::Connection;

/// Closed loops: so many chats are open at any time, never more.
pub(crate) const CLIENTS: u64 = 6;

/// What the clients have seen, and when they stop.
#[derive(Default)]
pub(crate) struct Tally {
    begun: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    last_failure: Mutex<Option<String>>,
    stop: AtomicBool,
}

impl Tally {
    /// Ends every client after the chat it is in; what fails from here on is not counted.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Takes the number of the next chat, unless there is none left.
    fn next(&self, limit: Option<u64>) -> Option<u64> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        (!self.stopped() && limit.is_none_or(|limit| number < limit)).then_some(number)
    }

    fn record(&self, result: Result<()>) {
        match result {
            Ok(()) => drop(self.completed.fetch_add(1, Ordering::Relaxed)),
            Err(_) if self.stopped() => {}
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(format!("{error:#}"));
            }
        }
    }
}

/// Starts the clients. `ended` is called by each when it has nothing left to do.
pub(crate) fn start(
    proxy: SocketAddr,
    limit: Option<u64>,
    ended: impl Fn() + Clone + Send + 'static,
) -> Arc<Tally> {
    let tally = Arc::new(Tally::default());
    for _ in 0..CLIENTS {
        let (tally, ended) = (Arc::clone(&tally), ended.clone());
        thread::spawn(move || {
            client(proxy, limit, &tally);
            ended();
        });
    }
    tally
}

fn client(proxy: SocketAddr, limit: Option<u64>, tally: &Tally) {
    let mut kept = None;
    while let Some(number) = tally.next(limit) {
        let result = chat(&mut kept, proxy, number);
        if result.is_err() {
            kept = None;
        }
        tally.record(result);
    }
}

/// One streamed chat, on the connection that was kept from the last one if there is any.
fn chat(kept: &mut Option<Connection>, proxy: SocketAddr, number: u64) -> Result<()> {
    let connection = match kept {
        Some(connection) => connection,
        None => kept.insert(Connection::open(proxy)?),
    };
    let response = connection.exchange("POST", "/v1/chat/completions", &question(number))?;
    if response.status != 200 {
        bail!("status {}: {}", response.status, response.body.trim());
    }
    if !response.body.contains("data: [DONE]") {
        bail!("the stream ended without [DONE]");
    }
    Ok(())
}

/// Chats differ in the length of what is asked and of what is answered, as chats do.
fn question(number: u64) -> String {
    let context = "And then? ".repeat((number % 7 * 20) as usize);
    let tokens = 24 + number * 37 % 73;
    format!(
        r#"{{"model":"demo","stream":true,"stream_options":{{"include_usage":true}},"max_tokens":{tokens},"messages":[{{"role":"user","content":"Tell me about outriggers. {context}"}}]}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_is_json_that_asks_for_a_stream() {
        for number in 0..100 {
            let question: serde_json::Value = serde_json::from_str(&question(number)).unwrap();
            assert_eq!(question["stream"], true);
            assert!((24..97).contains(&question["max_tokens"].as_u64().unwrap()));
        }
    }

    #[test]
    fn a_limit_is_kept_and_failures_after_the_end_do_not_count() {
        let tally = Tally::default();
        assert_eq!([(); 3].map(|()| tally.next(Some(2))), [Some(0), Some(1), None]);
        tally.record(Err(anyhow::anyhow!("cut")));
        tally.record(Ok(()));
        tally.stop();
        tally.record(Err(anyhow::anyhow!("we cut it ourselves")));
        assert_eq!((tally.completed(), tally.failed()), (1, 1));
        assert_eq!(tally.last_failure().as_deref(), Some("cut"));
        assert_eq!(tally.next(None), None);
    }
}
