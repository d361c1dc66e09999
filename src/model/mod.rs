//! What a handoff is made of, as data: acts, plans, records, reasons to refuse, how a run ends.
//!
//! Pure: nothing here reads the host, writes a file or says anything. What decides is [`crate::plan`], what acts is
//! [`crate::execute`].

pub mod act; // the vocabulary of a plan
pub mod claim; // why somebody still has something
pub mod doubt; // a process that may use another GPU
pub mod error; // exit codes and the error the administrator reads
mod expect; // what must be true after an act
pub mod hang; // a call of somebody else's, for a sentence
pub mod named; // a process as an act and a record know it
pub(crate) mod particulars; // longer sentences of a refusal
pub mod plan; // acts in their order, with deadlines and inverses
pub mod record; // what was taken from where
pub mod refusal; // every reason to refuse, in words
pub mod remedy; // what can be done about them
pub mod sentence; // what is the matter, with its hints
