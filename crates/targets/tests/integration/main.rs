//! Targets against the real systems, and against servers that lie.

#[cfg(test)]
mod postgres;
#[cfg(test)]
mod postgres_hostile;
