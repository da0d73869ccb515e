//! The one `unsafe` of this crate: asking the processor to fetch a cache line before it is needed.
#![allow(unsafe_code)]

/// Hints that `slice[index]` will be read or written soon. Out of range is no error and has no effect.
#[inline(always)]
pub(crate) fn prefetch<T>(slice: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(element) = slice.get(index) {
        // SAFETY: PREFETCHT0 never faults and changes no architectural state; the address is that of a live element.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                std::ptr::from_ref(element).cast(),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, index);
}
