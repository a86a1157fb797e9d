//! What tests of several crates share: a throw-away PostgreSQL, and a disk that loses power.

pub mod postgres;
pub mod power;
