//! What endpoints say of their own load, in the words in which they say it.
//!
//! Why it exists: balancing knows exactly what went through this proxy and nothing of what others
//! send to the same engine, of the engine's queue, or of its key-value cache. Engines tell that in
//! three ways, and each is read here: a metrics page ([`engine`]), fields of an answer ([`orca`],
//! which are also written here), and the line of an agent beside the engine ([`agent`]).
//!
//! What it decides: what a text says, and whether it says anything. What is missing, not a number,
//! or out of range is unknown, never zero: an endpoint that can not be read must not look idle.
//! What it leaves out: fetching, clocks, and what follows from a value (see
//! [`balance`](crate::balance)).

pub mod agent;
pub mod engine;
pub mod orca;

/// A decimal number that can be a load: finite and not negative.
fn load(text: &[u8]) -> Option<f64> {
    let number: f64 = str::from_utf8(text).ok()?.parse().ok()?;
    is_load(number).then_some(number)
}

/// Whether a number can be a load: it is finite and not negative.
fn is_load(number: f64) -> bool {
    number.is_finite() && number >= 0.0
}
