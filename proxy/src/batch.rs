//! Micro-batching: several small requests of one tenant travel upstream as one.
//!
//! Why: `/v1/embeddings` and `/v1/completions` take a list of prompts. A model server that runs one
//! call at a time serves a list of thirty-two in little more time than a list of one, and even one
//! that batches by itself saves a head, a parse and a scheduling step for each request. Clients
//! that ask one by one can have this without a change on either side.
//!
//! The way of a request, each step pure, with the time handed in:
//!
//! 1. [`Ask::parse`] says whether it can share a call at all, and gives the [`Key`] under which it
//!    meets others; the caller adds to the key what tells tenants and backends apart.
//! 2. [`Lobby::join`] lets it wait for mates, or not; one [`Gathering`] for each key decides.
//! 3. [`merge()`] makes one body of a batch, and a [`Plan`] of which output belongs to whom.
//! 4. [`split()`] makes one answer for each request of the upstream's answer, or says
//!    [`Verdict::RetryAlone`]: each request is then sent by itself, as if there were no batching.
//!
//! Nothing is guessed: an answer that does not fit the plan exactly is thrown away rather than
//! dealt out, so a request never sees the outputs of another one.
//!
//! Left out: sockets, timers and the HTTP of it all; streamed answers; chat, whose calls take one
//! conversation each. It is an option for each route, because it has a price: all requests of a
//! batch are answered when the slowest is done, which matters for completions of unequal length.
//! An engine that batches continuously gains little there.

mod compatible;
mod json;
mod key;
mod lobby;
mod merge;
mod split;
mod usage;
mod window;

pub use compatible::{Api, Ask, NotBatchable};
pub use key::{Key, canonical};
pub use lobby::{Batch, Call, Closing, Lobby, MAX_KEYS, Ticket, Turn};
pub use merge::{Merged, Plan, merge};
pub use split::{Cause, Verdict, split};
pub use window::{Ended, Gathering, Joined, Size, Window};
