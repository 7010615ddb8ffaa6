//! Tests of the whole crate, from text to configuration.

mod examples;
mod meaning;
mod mutations;
mod problems;
