//! Divides an interface's frames among several captures of one process, by flow (packet(7), `PACKET_FANOUT`).
//!
//! One of the few `unsafe`: no safe interface to this socket option is at hand.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes a group that nobody else has for a capture's socket, and gives its number (Linux 4.12 and later).
pub fn found(socket: BorrowedFd<'_>) -> io::Result<u16> {
    set(socket, (libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID) << 16)?;
    let mut argument = 0u32;
    let mut length = size_of_val(&argument) as libc::socklen_t;
    // SAFETY: the kernel writes at most the four bytes of `argument`, as `length` tells it; both live until the call
    // returns, and the descriptor is borrowed for as long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_FANOUT,
            std::ptr::from_mut(&mut argument).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(argument as u16) } else { Err(io::Error::last_os_error()) }
}

/// Joins a group: from now on each frame comes to one member of it, by the hash of its flow (fragments by their
/// addresses alone).
pub fn join(socket: BorrowedFd<'_>, group: u16) -> io::Result<()> {
    set(socket, u32::from(group) | libc::PACKET_FANOUT_HASH << 16)
}

fn set(socket: BorrowedFd<'_>, argument: u32) -> io::Result<()> {
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
