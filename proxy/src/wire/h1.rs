//! HTTP/1.1 on a pingora stream.
//!
//! [`parse`] turns bytes into heads and refuses what is ambiguous, [`body`] finds where a body ends and frames ours,
//! [`server`] and [`client`] are the two ends of a connection.

pub mod body;
pub mod client;
mod conn;
pub mod parse;
pub mod server;

pub use client::ClientConn;
pub use conn::Conn;
pub use server::ServerConn;
