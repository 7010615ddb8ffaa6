//! What a request survives: endpoints that refuse, reset, stall, say that they are busy, come and go.

mod chaos;
mod ejection;
mod health;
mod membership;
mod peers;
mod retries;
