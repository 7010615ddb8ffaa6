//! The phases of a request, one file each, in the order in which they run: [`admit`], [`route`], [`bound`], [`answer`],
//! [`enter`], [`ask`], [`attempt`], [`respond`], [`conclude`]. [`crate::gateway`] strings them together.

pub mod admit;
pub mod answer;
pub mod ask;
pub mod attempt;
pub mod batch;
pub mod bound;
pub mod conclude;
pub mod enter;
pub mod forward;
pub mod hedge;
pub mod mirror;
pub mod respond;
pub mod route;
