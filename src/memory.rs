//! What the system's allocator does with memory that is given back.
//!
//! One of the few `unsafe`: no safe interface to these settings is at hand.
#![allow(unsafe_code)]

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
