//! The closed rotation loop: a credential is changed at its target, every consumer is proven to be on the new value, and the
//! old value is proven dead.
//!
//! [`core`] decides and touches nothing: one pure function, explored by a model checker. [`Lifecycle`] is the shell around it.

pub mod core;
mod shell;

pub use shell::Lifecycle;
