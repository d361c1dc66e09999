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

/// An act failed and could not be undone: a GPU is stranded. This one and those below are said once for each event, by
/// [`crate::tell`].
pub const MESSAGE_STRANDED: &str = "2c9f6b1d7e0a4f58a3d1c8b5e47f9062";

/// A call of ours is stuck in the kernel.
pub const MESSAGE_WEDGED: &str = "94e1a07c3b5d4d2f8c6e0f1a7b2d5938";

/// A VM does not need its GPU any more, and that does not come home.
pub const MESSAGE_ABANDONED: &str = "d05c3e8f1a2b49c7b6f4e9d7a1835c2e";

/// A service or a container that was stopped for a handoff does not start again.
pub const MESSAGE_NOT_STARTED: &str = "6af8d2c40e1b4b73951c7e0d8b3f6a29";
