//! What is kept on disk: the records of what is lent, with the lock of whoever acts, and the history.

pub mod history; // what was done so far
pub mod store;
