//! The phases of a request, one file each, in the order in which they run: [`admit`], [`route`], [`attempt`],
//! [`respond`], [`conclude`]. [`crate::gateway`] strings them together.

pub mod admit;
pub mod attempt;
pub mod conclude;
pub mod forward;
pub mod respond;
pub mod route;
