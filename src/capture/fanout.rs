//! Divides an interface's frames among several captures of one process, by flow (packet(7), `PACKET_FANOUT`).
//!
//! One of the few `unsafe`: no safe interface to this socket option is at hand.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Joins a capture's socket to the process's group number `group`: from now on each frame comes to one member of it,
/// all frames of a flow to the same one.
pub fn join(socket: BorrowedFd<'_>, group: u16) -> io::Result<()> {
    let argument = u32::from(group) | libc::PACKET_FANOUT_HASH << 16;
    // SAFETY: the kernel reads the four bytes of `argument`, which live until the call returns, and the descriptor is
    // borrowed for as long.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_FANOUT,
            std::ptr::from_ref(&argument).cast(),
            size_of_val(&argument) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
