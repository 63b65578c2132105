//! Tests whole runs: those that are accepted and what they mean, and what is refused with which words at which place.

mod accepted;
mod arbitrary;
mod documented;
mod recorded;
mod refused;
