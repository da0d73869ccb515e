//! What the system's allocator does with memory that is given back, and what is said where there is none left.
//!
//! One of the few `unsafe`: no safe interface to these settings is at hand, nor to what happens when memory runs out.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;

/// The system's allocator, which ends the program with status 1 and a word to people where no memory is left: the standard
/// library would abort. Programs set it as theirs; a library that did so would decide for whoever uses it.
pub struct Saying;

// SAFETY: all is left to the system's allocator; a null pointer is never given on.
unsafe impl GlobalAlloc for Saying {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        given(unsafe { System.realloc(pointer, layout, size) }, size)
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[inline(always)]
fn given(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() {
        out_of_memory(bytes);
    }
    pointer
}

/// Says so without any memory, and ends at once: whoever has lost an allocation cannot go on, and nobody unwinds. What is
/// half written is removed or finished by the next start, as after a kill.
#[cold]
#[inline(never)]
fn out_of_memory(bytes: usize) -> ! {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), bytes);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let parts: [&[u8]; 4] = [
        NAME.get().map_or("netspectra", |name| *name).as_bytes(),
        b": out of memory: the system has no ",
        &digits[at..],
        b" bytes more for this program (see `ulimit -v` and the limits of its container or service); shorter windows \
          (--window), fewer workers (-w), fewer tasks or coarser keys need less\n",
    ];
    for part in parts {
        // Where that fails, there is nobody to tell.
        let _ = rustix::io::write(rustix::stdio::stderr(), part);
    }
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(1) }
}

/// What the program is called in messages.
static NAME: OnceLock<&'static str> = OnceLock::new();

/// Names the program, for the message that there is no memory left.
pub fn set_name(name: &'static str) {
    // The first name stays.
    let _ = NAME.set(name);
}

/// Has large allocations given back to the system as soon as they are freed. Left alone, glibc raises the size that it
/// maps up to 32 MiB as it meets larger ones, and keeps what was freed between what is in use (mallopt(3)). Does nothing
/// with another allocator.
pub fn give_back_large() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Allocations of so many bytes are mapped, and unmapped when they are freed: indexes of large tables, what sorts
        /// them. Chunks of groups are smaller: they are used again by the next table.
        const MAPPED: libc::c_int = 1 << 20;
        /// Free bytes at the end of a heap that are kept for the next allocation.
        const KEPT: libc::c_int = 64 << 20;
        // SAFETY: mallopt takes two numbers, and may be called at any time by any thread. Where it refuses, nothing changes.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        }
    }
}
