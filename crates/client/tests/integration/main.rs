//! The client against a server that misbehaves over a real socket.

#[cfg(test)]
#[path = "../fake/mod.rs"]
mod fake;

#[cfg(test)]
mod api;
#[cfg(test)]
mod consume;
#[cfg(test)]
mod provider;
#[cfg(test)]
mod stream;
