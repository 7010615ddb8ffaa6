//! Reaching endpoints: the live side of a backend, its connections, and how they are made.

pub mod backend;
pub mod breaker;
pub mod connect;
pub mod dial;
pub mod fetch;
pub mod locality;
pub mod pool;

pub use backend::Backend;
