//! What is kept on disk: the records of what is lent, with the lock of whoever acts, the history, and what is stopped.

pub mod history; // what was done so far
pub mod stopped; // what would stay down after a boot
pub mod store;
