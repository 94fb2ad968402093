//! Limits how much freed memory the allocator keeps.

use crate::sys;

/// The number of malloc arenas that all threads share. The byte loops do not allocate, so contention is rare.
const ARENAS: u16 = 2;

/// Lets all threads allocate from a few arenas. Call it before the first thread starts.
///
/// glibc gives each new thread its own arena, up to eight per core, and an arena keeps most of its freed memory. A
/// program that starts threads for each test then grows by about 1 MiB per arena, even long after its start.
pub fn share_arenas() {
    sys::limit_arenas(ARENAS);
}

/// The size of the smallest block that is given back at once: glibc's initial threshold.
const RETURNED_BYTES: u32 = 128 * 1024;

/// Gives each large block back to the system when it is freed.
///
/// By default, glibc raises its threshold to the size of the largest block that was freed, up to 32 MiB, and then keeps
/// later blocks below the threshold. The program would never give back the 19 MiB that the hash of a password takes.
pub fn return_large_blocks() {
    sys::fix_mmap_threshold(RETURNED_BYTES);
}
