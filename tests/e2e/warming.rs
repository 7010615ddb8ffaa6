//! Endpoints that are cold: warm-up requests before the first request of a client, and a slow start after that.

mod slow_start;
mod warm_up;
