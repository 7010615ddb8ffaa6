//! Stored answers: what an endpoint said once, for the time when none says anything.
//!
//! Why: nobody in the field gives a stored answer where there would be an error. A model server that is overloaded, hung
//! or gone is no reason for an error where the same question, by the same tenant, was answered an hour ago and the answer
//! would be the same. Storing is off unless a route asks for it, and what comes from store says so
//! (`proxy/ANSWERS.md`).
//!
//! The parts, each without sockets and clocks:
//! - [`key`]: which requests are the same, and whose they are;
//! - [`policy`]: what may be stored and served, by the route, the client and the endpoint;
//! - [`record`]: what is stored, as bytes that are distrusted when they are wrong;
//! - [`memory`]: which records are worth their room.
//!
//! And what puts them together: [`store`] (the tiers), [`redis`] (the one that outlives the proxy and is shared),
//! [`recording`] (an answer while it passes), [`shared`] (one answer for several clients), [`warm_up`]. The phase of a
//! request is [`crate::phase::answer`].

pub mod key;
pub mod memory;
pub mod policy;
pub mod record;
pub mod recording;
pub mod redis;
pub mod shared;
pub mod store;
pub mod warm_up;

pub use key::{Key, Tags};
pub use policy::{Use, Wish};
pub use record::{Answer, Distrust};
pub use recording::Recording;
pub use store::{Purge, Store};
