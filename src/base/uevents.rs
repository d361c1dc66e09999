//! What the kernel tells of devices, drivers and modules at the moment it happens: its netlink messages, as udev gets them.
//!
//! Only that something happened is taken from them; how things are is read afterwards.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The multicast group of the kernel's own messages; 2 is udev's (systemd, sd-device/device-monitor.c).
const KERNEL: u32 = 1;

/// Longest message, bytes (linux, include/linux/kobject.h, UEVENT_BUFFER_SIZE, and the path before it).
const LONGEST: usize = 8192;

/// The kernel's messages from now on.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Begins to listen.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Uevents(socket))
    }

    /// Takes what has come. Whether something of it is about one of these subsystems; messages that were lost may have been.
    pub fn drain(&self, subsystems: &[&str]) -> bool {
        let mut concerned = false;
        let mut buffer = [0; LONGEST];
        loop {
            match recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => concerned |= is_about(&buffer[..length], subsystems),
                Err(Errno::NOBUFS) => concerned = true,
                Err(Errno::INTR) => {}
                Err(_) => return concerned,
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a message is about one of these subsystems: `ACTION@PATH`, then `KEY=VALUE`, each ended by a zero byte (linux,
/// lib/kobject_uevent.c, kobject_uevent_env).
fn is_about(message: &[u8], subsystems: &[&str]) -> bool {
    let of = |field: &[u8]| field.strip_prefix(b"SUBSYSTEM=").map(<[u8]>::to_vec);
    let subsystem = message.split(|b| *b == 0).find_map(of);
    subsystem.is_some_and(|s| subsystems.iter().any(|wanted| wanted.as_bytes() == s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_about_its_subsystem() {
        let bind = b"bind@/devices/pci0000:00/0000:01:00.0\0ACTION=bind\0SUBSYSTEM=pci\0DRIVER=vfio-pci\0SEQNUM=7\0";
        for (message, expected) in [
            (&bind[..], true),
            (b"add@/module/nvidia\0ACTION=add\0SUBSYSTEM=module\0", true),
            (b"add@/devices/x\0ACTION=add\0SUBSYSTEM=pci_express\0", false),
            (b"libudev\0\xfe\xed", false),
            (b"", false),
        ] {
            assert_eq!(is_about(message, &["pci", "module"]), expected, "{message:?}");
        }
    }

    #[test]
    fn nothing_is_waited_for() {
        // A sandbox may have no such sockets.
        if let Ok(uevents) = Uevents::listen() {
            uevents.drain(&["no such subsystem"]);
        }
    }
}
