//! The MESSAGE_IDs of our lines in the journal (systemd's journal fields, systemd.journal-fields(7)): what a monitor can
//! match without reading text. They never change.

/// A handoff to vfio-pci is complete.
pub const MESSAGE_OUT: &str = "5a1d8f0a4a0c4d0f9d3d6b8c1f5e7a21";

/// The devices are home.
pub const MESSAGE_HOME: &str = "0f5b6c1e2d7a4b38b1a9e4d3c2f60817";

/// A run was refused; nothing was changed.
pub const MESSAGE_REFUSED: &str = "c3e9a7d45b1f4c62a8d07e6f9b2c1d53";

/// A run failed.
pub const MESSAGE_FAILED: &str = "7b2d4e6f8a904c1db3e5f70a1c2d3e4f";
