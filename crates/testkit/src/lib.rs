//! What tests of several crates share: a throw-away PostgreSQL, a disk that loses power, a server in the same process.

pub mod postgres;
pub mod power;
