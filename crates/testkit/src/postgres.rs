//! A throw-away PostgreSQL cluster for tests. The code is the demonstration's; this is where tests name it.

pub use demo::cluster::{Cluster, Error, Mode, Options, Superuser};
