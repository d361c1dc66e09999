//! What is particular to a vendor's driver: which of its versions can do what, and which driver is natural for a device.

pub mod nvidia; // NVIDIA's, by version
