//! May this request enter? What can be said from its head alone, before anything is spent on it.

use http::Method;

use crate::{
    outcome::Outcome,
    request::{Failure, Request},
    wire::BodyLength,
};

/// Refuses what could not be served anyway.
///
/// # Errors
/// [`Outcome::MethodNotAllowed`] for `CONNECT`, [`Outcome::TooLarge`] for a declared body above the limit.
pub fn admit(request: &Request) -> Result<(), Failure> {
    if request.head.method == Method::CONNECT {
        let detail = "CONNECT is not offered: Outrigger is a reverse proxy";
        return Err(Failure::new(Outcome::MethodNotAllowed, detail));
    }
    let limit = request.snapshot.config.limits.body_bytes;
    match request.head.body {
        BodyLength::Exact(length) if length > limit => Err(too_large(limit)),
        BodyLength::Exact(_) | BodyLength::Empty | BodyLength::Unknown => Ok(()),
    }
}

/// A body above the limit.
pub fn too_large(limit: u64) -> Failure {
    let detail = format!("the request body is longer than limits.body_bytes ({limit} bytes)");
    Failure::new(Outcome::TooLarge, detail)
}
