//! The demonstration: a throw-away PostgreSQL, services, load, injuries, and the script that judges them.

pub mod cluster;
