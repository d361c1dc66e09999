//! x
pub mod steps;
