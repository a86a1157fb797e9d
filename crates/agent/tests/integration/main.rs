//! The agent with real child processes, real files and a server that misbehaves over a real socket.

#[cfg(test)]
#[path = "../../../client/tests/fake/mod.rs"]
mod fake;

#[cfg(test)]
mod files;
#[cfg(test)]
mod program;
#[cfg(test)]
mod run;
