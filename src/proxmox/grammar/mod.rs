//! Proxmox's grammar to the letter, for each of its generations, invalid lines included.
//!
//! Pure: text in, values out. Not here: what a value means.

pub(crate) mod formats; // the tables of those that are property strings
pub mod generation; // which grammar counts
pub mod propstring; // property strings
pub mod schema; // which keys and values a VM's config file may have
pub mod value; // bytes, mostly text
pub mod values;
